"""Writes the pages of the reference: one per package, from the modules that are there."""

import importlib
import pkgutil
from pathlib import Path
from types import ModuleType

import jaxalign

FOLDER = Path(__file__).parent / "reference"
HIDDEN = ("jaxalign.commands", "jaxalign.cli")  # their reference is `jaxalign COMMAND --help`
INDEX = """Reference
=========

Each page starts with the public names of a package and goes on with what its modules hold beside
them. Shapes are written with the letters B batch, T tokens, D model width, N heads, G key and value
heads, H head width, F feed-forward, V vocabulary, L layers; U users, P pairs of a user, E embedding
width, K base rewards; R objectives, W weight vectors, C candidates or policies, X prompts.

.. toctree::
   :maxdepth: 1

"""


def write_reference() -> None:
    """Write `reference/index.rst` and a page per package; files that are up to date stay."""
    FOLDER.mkdir(exist_ok=True)
    modules: dict[str, list[str]] = {}  # by page: jaxalign itself, and each of its packages
    for module in pkgutil.walk_packages(jaxalign.__path__, "jaxalign."):
        parts = module.name.split(".")
        if not module.name.startswith(HIDDEN) and not any(x.startswith("_") for x in parts):
            page = ".".join(parts[:2]) if len(parts) > 2 or module.ispkg else "jaxalign"
            modules.setdefault(page, []).append(module.name)
    pages = {name: _page(name, names) for name, names in modules.items()}
    pages["index"] = INDEX + "".join(f"   {name}\n" for name in sorted(modules))
    for name, text in pages.items():
        path = FOLDER / f"{name}.rst"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
    for path in FOLDER.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()


def _page(page: str, names: list[str]) -> str:
    face = importlib.import_module(page)
    public = [name for name in getattr(face, "__all__", ()) if callable(getattr(face, name))]
    there = {id(getattr(face, name)) for name in public}
    parts = [_section(page, public, "=")]
    for name in names:
        if name != page:
            module = importlib.import_module(name)
            own = [x for x in _own(module) if id(getattr(module, x)) not in there]
            parts += [_section(name, own, "-")] if own else []
    return "\n".join(parts)


def _section(module: str, members: list[str], line: str) -> str:
    shown = f"   :members: {', '.join(members)}\n" if members else ""
    return f"{module}\n{line * len(module)}\n\n.. automodule:: {module}\n{shown}"


def _own(module: ModuleType) -> list[str]:
    """The public functions and classes that a module defines, in their order."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and callable(value)
        and getattr(value, "__module__", None) == module.__name__
    ]
