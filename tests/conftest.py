"""Settings of every test: programs kept, no silent rank promotion, matplotlib without a display."""

import gc
import os

import compile_cache

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
jax.config.update("jax_numpy_rank_promotion", "raise")
pytest.register_assert_rewrite("cli_calls")
# The first example compiles, and a busy machine is slow. The same examples every time: a change is
# judged by what it changes.
settings.register_profile("tests", settings(), deadline=None, derandomize=True)
settings.load_profile("tests")


@pytest.fixture
def x64():
    """Float64 for one test."""
    with jax.enable_x64(True):
        yield
