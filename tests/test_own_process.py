"""Tests that run in a process of their own: how it compiles, and what becomes of their outcome."""

import importlib.util
import os

import own_process
import pytest

pytestmark = pytest.mark.slow
TESTS = """
import pytest
def test_skipped(): pytest.skip("not here")
def test_failed(): assert 1 + 1 == 3
@pytest.fixture
def broken(): yield; assert 0
def test_failed_afterwards(broken): pass
"""


@pytest.mark.parametrize(
    ("name", "expected", "words"),
    [
        ("skipped", "skipped", "not here"),
        ("failed", "failed", "assert (1 + 1) == 3"),
        ("failed_afterwards", "failed", "assert 0"),
    ],
)
def test_the_outcome_is_that_of_the_process(tmp_path, name, expected, words):
    (tmp_path / "test_it.py").write_text(TESTS)
    outcome, printed = own_process.run_test(f"test_it.py::test_{name}", tmp_path)
    assert outcome == expected
    assert words in printed


@pytest.mark.optimised
def test_an_optimised_test_has_programs_that_are_compiled_well():
    assert own_process.is_optimised()
    assert "level=0" not in os.environ["XLA_FLAGS"]
    assert os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert importlib.util.find_spec("torch") is None
