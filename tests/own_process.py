"""Environments of processes that tests start, each of which begins with its imports."""

import os
from pathlib import Path

TORCHLESS = Path(__file__).parent / "torchless"


def torchless():
    """Return an environment in which torch cannot be found.

    transformers imports torch wherever it is installed, which takes half of the processor time of
    a short command. No command needs torch.
    """
    paths = [str(TORCHLESS), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def optimised():
    """Return an environment whose programs are compiled as users compile them.

    What tests compile runs at half the speed, see `compile_cache`: for minutes of computation in a
    few programs it pays to compile them well.
    """
    return {name: value for name, value in torchless().items() if name != "XLA_FLAGS"}
