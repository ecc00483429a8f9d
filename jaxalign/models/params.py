"""Types that all models share."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray
"""An array on the device or on the host."""

Params: TypeAlias = Mapping[str, "Params | jax.Array"]
"""Parameters of a model, an adapter or a head: nested dicts of arrays."""

PyTree: TypeAlias = Any
"""A tree of arrays of any structure, as `jax.tree` walks it; jax has no type for it."""
