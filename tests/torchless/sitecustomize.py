"""Python imports this file when it starts: torch cannot be found, as on most users' machines."""

from importlib.machinery import PathFinder

_find_spec = PathFinder.find_spec


def _find_all_but_torch(_, name, path=None, target=None):
    return None if name == "torch" else _find_spec(name, path, target)


PathFinder.find_spec = classmethod(_find_all_but_torch)
