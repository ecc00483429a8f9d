"""Compiled programs are kept: each jax and CPU apart, in one folder for all, never in the way."""

import os
import subprocess
import sys
from pathlib import Path

import chex
import compile_cache
import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache


def test_the_home_is_outside_of_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compile_cache.home({}) == tmp_path / ".cache" / "jaxalign-tests"
    assert compile_cache.home({"XDG_CACHE_HOME": "/x"}) == Path("/x/jaxalign-tests")
    assert compile_cache.home({"JAXALIGN_TEST_CACHE": "/y", "XDG_CACHE_HOME": "/x"}) == Path("/y")


def test_this_process_uses_it_and_keeps_every_program():
    assert jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0
    assert jax.config.jax_persistent_cache_min_entry_size_bytes == -1
    assert compile_cache.variables(os.environ).items() <= os.environ.items()


def test_another_process_reads_what_one_has_compiled(tmp_path):
    code = (
        "import jax, jax.numpy as jnp\n"
        "heard = []\n"
        "jax.monitoring.register_event_listener(lambda event, **_: heard.append(event))\n"
        "jax.jit(lambda x: x * 3 + 1)(jnp.arange(4.0))\n"
        "print(sum('cache_hits' in event for event in heard),\n"
        "      sum('cache_misses' in event for event in heard))\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    environment |= compile_cache.variables(environment | {"JAXALIGN_TEST_CACHE": str(tmp_path)})
    first, second = (
        subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            env=environment, check=True, capture_output=True, text=True,
        ).stdout.split()
        for _ in range(2)
    )  # fmt: skip
    assert first[0] == "0"
    assert int(first[1]) > 0
    assert second == [first[1], "0"]


def test_a_home_that_cannot_be_written_is_not_used(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"JAXALIGN_TEST_CACHE": str(tmp_path / "file")}
    path = Path(compile_cache.variables(environment)["JAX_COMPILATION_CACHE_DIR"])
    assert path.is_dir()
    assert not path.is_relative_to(tmp_path)


@pytest.fixture
def own_folder(tmp_path):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "programs"))
    compilation_cache.reset_cache()
    yield tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_a_program_cut_short_is_compiled_and_fails_no_test(own_folder):
    x = jnp.arange(5.0)
    want = jax.jit(lambda x: jnp.tanh(x) * 7)(x)
    programs = list(own_folder.glob("*-cache"))
    assert programs
    for path in programs:
        path.write_bytes(path.read_bytes()[:-9])
    chex.assert_trees_all_equal(jax.jit(lambda x: jnp.tanh(x) * 7)(x), want)


def test_a_folder_that_can_no_longer_be_written_fails_no_test(own_folder):
    own_folder.write_text("a file in its place")
    assert float(jax.jit(lambda x: x + 40)(2.0)) == 42


def test_flags_that_this_xla_does_not_know_are_left_out(monkeypatch):
    known = compile_cache.xla_flags()
    assert "--xla_backend_optimization_level=0" in known
    # The second one is a part of a name only, as those of flags that were removed are.
    others = ("--xla_cpu_of_tomorrow=1", "--xla_backend_optimization=0")
    monkeypatch.setattr(compile_cache, "FLAGS", (*compile_cache.FLAGS, *others))
    assert compile_cache.xla_flags() == known
