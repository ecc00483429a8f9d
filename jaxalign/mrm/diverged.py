"""Refusal of a training whose losses or parameters are no longer finite."""

from collections.abc import Sequence

import jax
import numpy as np

from jaxalign.errors import InputError

_SHOWN = 8  # users that a message names


def all_finite(tree: object) -> bool:
    """Return whether every number in a tree of arrays is finite.

    Args:
        tree: arrays of any shapes.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.mrm.diverged import all_finite
        >>> all_finite({"mean": jnp.zeros(2)}), all_finite({"mean": jnp.array([jnp.nan])})
        (True, False)
    """
    return all(bool(np.isfinite(leaf).all()) for leaf in jax.device_get(jax.tree.leaves(tree)))


def training_diverged(
    what: str, where: str, remedy: str, users: Sequence[int] = (), kept: str = ""
) -> InputError:
    """Return the error of a training that has diverged.

    Args:
        what: is trained, such as the name of a method.
        where: the epoch or step.
        remedy: what to do.
        users: numbers of the users of that step, counted from 0.
        kept: the last good state on disk, if there is any.

    Example:
        >>> from jaxalign.mrm.diverged import training_diverged
        >>> print(training_diverged("vpl", "epoch 3 of 10", "lower learning_rate (1)", [4, 7]))
        vpl: training diverged at epoch 3 of 10, where the loss or the parameters are not finite \
(training users 4, 7, counted from 0): lower learning_rate (1).
    """
    shown = ", ".join(map(str, users[:_SHOWN]))
    more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
    parts = [f"training users {shown}{more}, counted from 0"] if len(users) else []
    parts += [kept] if kept else []
    place = f" ({'; '.join(parts)})" if parts else ""
    return InputError(
        f"{what}: training diverged at {where}, where the loss or the parameters are not "
        f"finite{place}: {remedy}."
    )
