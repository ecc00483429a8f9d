"""Compiled programs kept from one command to the next, in the user's cache folder.

Code compiled for another CPU can crash, and jax reads back what another version wrote: each jax,
jaxlib and CPU has a folder of its own. jax tells programs, devices and XLA's flags apart by itself,
and compiles again where a program cannot be read.

This module imports no jax, which reads the variables set here when it is imported.
"""

import hashlib
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from jaxalign.files import cache_folder

SWITCH = "JAXALIGN_COMPILE_CACHE"
FOLDER = "JAX_COMPILATION_CACHE_DIR"
# Reading a program takes milliseconds: what compiles faster than this is not worth its file.
_LEAST_SECONDS = "0.2"
_UNREAD_DAYS = 30

# What /proc/cpuinfo says of the kind of a CPU, on x86 and on ARM; clock rates and the like differ
# from one moment to the next.
_KIND = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip


def cpuinfo() -> str:
    """Return what Linux says of the CPU; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def cpu(info: str) -> str:
    """Return the kind of CPU that programs are compiled for, from what `cpuinfo` gives."""
    lines = info.splitlines()
    fields = {name.strip(): value for name, _, value in (line.partition(":") for line in lines)}
    kind = (fields.get(name, "") for name in _KIND)
    return "\n".join([platform.machine(), platform.processor(), *kind])


def folder(home: Path, jax: str, jaxlib: str, cpu: str) -> Path:
    """Return the folder for one jax, jaxlib and CPU below the home of all."""
    return home / f"jax-{jax}-jaxlib-{jaxlib}-cpu-{hashlib.sha256(cpu.encode()).hexdigest()[:12]}"


def own_folder(home: Path) -> Path:
    """Return the folder for the jax, jaxlib and CPU of this process."""
    return folder(home, version("jax"), version("jaxlib"), cpu(cpuinfo()))


def writable(path: Path) -> bool:
    """Return whether files can be made in a folder, which is made where it is missing."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment variables by which jax keeps what a command compiles.

    Args:
        environment: of the process. A folder that it names for jax already stays, and
            `JAXALIGN_COMPILE_CACHE=off` keeps nothing.

    Returns:
        The variables to add; none where nothing is to be kept, or the folder cannot be written.
    """
    if environment.get(SWITCH) == "off" or FOLDER in environment:
        return {}
    home = cache_folder() / "compiled"
    path = own_folder(home)
    if not writable(path):
        return {}
    _remove_unread(home)
    own = {
        FOLDER: str(path.absolute()),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": _LEAST_SECONDS,
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    return {name: value for name, value in own.items() if name not in environment}


def _remove_unread(home: Path) -> None:
    """Remove programs, of any jax and CPU, that no command has read for a month."""
    oldest = time.time() - _UNREAD_DAYS * 86_400
    for path in home.glob("jax-*/*"):
        try:
            if path.stat().st_atime < oldest:
                os.unlink(path)
        except OSError:  # another command has removed it, or it is not ours to remove
            continue
