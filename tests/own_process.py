"""Environments of processes that tests start, each of which begins with its imports."""

import os
from pathlib import Path

TORCHLESS = Path(__file__).parent / "torchless"


def torchless(*folders):
    """Return an environment in which torch cannot be found, and some folders can be imported from.

    transformers imports torch wherever it is installed, which takes half of the processor time of
    a short command. No command needs torch.
    """
    own = os.environ.get("PYTHONPATH")
    paths = [TORCHLESS, *folders, *([own] if own else [])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
