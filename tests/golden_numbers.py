"""The reference numbers of `tests/goldens`: what is in them and where they come from, see there."""

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "goldens"


def golden(name: str) -> dict[str, np.ndarray]:
    """The arrays of one file, named as `mrm/k2_one_step`."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)
