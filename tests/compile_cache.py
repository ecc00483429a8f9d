"""Where compiled programs are kept between tests, workers and runs: most of a test is compilation.

Code compiled for another CPU can crash, and jax reads back what another version wrote: each jax,
jaxlib and CPU has a folder of its own. jax tells programs and XLA's flags apart by itself.
"""

import atexit
import hashlib
import platform
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

# What /proc/cpuinfo says of the kind of a CPU, on x86 and on ARM; clock rates and the like differ
# from one moment to the next.
KIND = (
    "vendor_id", "cpu family", "model", "model name", "stepping", "flags",
    "CPU implementer", "CPU architecture", "CPU variant", "CPU part", "CPU revision", "Features",
)  # fmt: skip


def cpuinfo() -> str:
    """What Linux says of the CPU; nothing elsewhere."""
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def cpu(info: str) -> str:
    """The kind of CPU that programs are compiled for, from what `cpuinfo` gives."""
    lines = info.splitlines()
    fields = {name.strip(): value for name, _, value in (line.partition(":") for line in lines)}
    return "\n".join([platform.machine(), platform.processor(), *(fields.get(n, "") for n in KIND)])


def folder(home: Path, jax: str, jaxlib: str, cpu: str) -> Path:
    """The folder for one jax, jaxlib and CPU below the home of all."""
    return home / f"jax-{jax}-jaxlib-{jaxlib}-cpu-{hashlib.sha256(cpu.encode()).hexdigest()[:12]}"


def home(environment: Mapping[str, str]) -> Path:
    """Outside the checkout, so that a fresh one finds what others have compiled."""
    if own := environment.get("JAXALIGN_TEST_CACHE"):
        return Path(own).absolute()
    caches = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "jaxalign-tests"


def writable(path: str) -> bool:
    """Whether files can be made in a folder, which is made where it is missing."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What jax is told, by its environment: in this process, and in those that it starts.

    A folder that is set already stays. Where the home cannot be written, programs are shared by
    the workers of this one run.
    """
    path = environment.get("JAX_COMPILATION_CACHE_DIR")
    if path is None:
        path = str(folder(home(environment), version("jax"), version("jaxlib"), cpu(cpuinfo())))
        if not writable(path):
            path = tempfile.mkdtemp(prefix="jaxalign-tests-")
            atexit.register(shutil.rmtree, path, ignore_errors=True)
    return {
        "JAX_COMPILATION_CACHE_DIR": path,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
