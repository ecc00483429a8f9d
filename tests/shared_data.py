"""Real data sets that lie beside the checkout: tests of them are skipped where they do not."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "data"


def shared(name: str) -> Path:
    """The folder of a data set; skips the test that asks where it is absent."""
    folder = FOLDER / name
    if not folder.is_dir():
        pytest.skip(f"the data set {name} is not beside the checkout, in {FOLDER}")
    return folder
