"""Settings of every test: programs kept, no silent rank promotion, matplotlib without a display."""

import ctypes
import gc
import os
from pathlib import Path

import compile_cache
import own_process

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # see jaxalign.train.blas
os.environ.setdefault("XLA_FLAGS", compile_cache.xla_flags())
os.environ.update(compile_cache.variables(os.environ))

import jax
import pytest
from hypothesis import settings

# Tracing makes objects by the million, few of them garbage: at the default thresholds a tenth of
# the time of the tests is spent on looking through them.
gc.set_threshold(50_000, 20, 100)
# Workers share out what is left: a test of minutes that began last would run alone at the end.
LONGEST = ("test_real_people.py", "test_demo.py", "test_all_benchmarks.py")
MOST_GIB = 4  # of a worker; two of them, and the processes that tests start, fit into 16 GiB
jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("cli_calls")
# The first example compiles, and a busy machine is slow. The same examples every time: a change is
# judged by what it changes.
settings.register_profile("tests", settings(), deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture(autouse=True, scope="module")
def memory_within_bounds():
    """Give memory back between modules: garbage first, then the programs of earlier modules."""
    yield
    if resident_gib() > MOST_GIB:
        give_back()
        if resident_gib() > MOST_GIB:
            jax.clear_caches()
            give_back()


def give_back():
    """Collect garbage, and return what is free to the system, which glibc does not by itself."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def resident_gib():
    """Memory that this process holds, GiB; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def pytest_collection_modifyitems(items):
    """Begin with the files whose tests take longest."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is marked `optimised` in a process of its own, see `own_process.run_test`."""
    if pyfuncitem.get_closest_marker("optimised") is None or own_process.is_optimised():
        return None
    outcome, printed = own_process.run_test(pyfuncitem.nodeid, pyfuncitem.config.rootpath)
    if outcome == "skipped":
        pytest.skip(printed)
    if outcome == "failed":
        pytest.fail(printed, pytrace=False)
    return True


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
