"""jaxalign: personalise language models on accelerators, with pure functions.

`import jaxalign` is light: JAX and the other heavy libraries load with the subpackage that uses
them.
"""

import importlib
from types import ModuleType

from jaxalign.version import __version__

_SUBPACKAGES = (
    "data",
    "demo",
    "kernels",
    "metrics",
    "moc",
    "models",
    "mrm",
    "palm",
    "personalize",
    "pplug",
    "rewards",
    "runs",
    "train",
)

__all__ = ["__version__", *_SUBPACKAGES]


def __getattr__(name: str) -> ModuleType:
    if name in _SUBPACKAGES:
        return importlib.import_module(f"jaxalign.{name}")
    raise AttributeError(f"module 'jaxalign' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
