"""How tests compile, which is most of what they do: fast, and once for all workers and runs.

The folders of versions and CPUs are those of `jaxalign.commands.compile_cache`, in another place:
the flags below are no user's.
"""

import atexit
import mmap
import shutil
import tempfile
from collections.abc import Mapping
from importlib.metadata import distribution
from pathlib import Path

from jaxalign.commands.compile_cache import own_folder, writable

# Compiling fast is what counts: a training step of the tests takes 3.6 s of processor time in
# place of 24, and twice the time to run, of which there is little. The last is the greatest part
# (11.3 s without), and the one that a later XLA may no longer know.
OPTIMISED = ("--xla_cpu_parallel_codegen_split_count=1", "--xla_cpu_use_fusion_emitters=false")
"""Flags of programs that run for long. Six steps of EM with their compilation take 4.7 s of
processor time, 7.9 without any flag and 2.7 with all; compiled, 0.63 s, 0.56 and 1.0. A product
with a Hessian of `bt_items` takes 0.12 ms, 0.09 and 0.28.
"""
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    *OPTIMISED,
)


def xla_flags(flags: tuple[str, ...] = FLAGS) -> str:
    """The flags that this XLA knows: it ends the process over any other."""
    library = Path(str(distribution("jaxlib").locate_file("jaxlib/libjax_common.so")))
    if not library.is_file():
        return " ".join(flags[:-1])
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        # A whole string of C: descriptions of messages keep the names of flags that were removed.
        strings = {flag: f"\0{flag.strip('-').partition('=')[0]}\0".encode() for flag in flags}
        known = [flag for flag, string in strings.items() if text.find(string) >= 0]
    return " ".join(known)


def home(environment: Mapping[str, str]) -> Path:
    """Outside the checkout, so that a fresh one finds what others have compiled."""
    if own := environment.get("JAXALIGN_TEST_CACHE"):
        return Path(own).absolute()
    caches = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "jaxalign-tests"


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What jax is told, by its environment: in this process, and in those that it starts.

    A folder that is set already stays. Where the home cannot be written, programs are shared by
    the workers of this one run.
    """
    path = environment.get("JAX_COMPILATION_CACHE_DIR")
    if path is None:
        path = str(own_folder(home(environment)))
        if not writable(Path(path)):
            path = tempfile.mkdtemp(prefix="jaxalign-tests-")
            atexit.register(shutil.rmtree, path, ignore_errors=True)
    return {
        "JAX_COMPILATION_CACHE_DIR": path,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
