"""What every benchmark shares: jobs of which one may fail, results that are always whole."""

import json
import time

import jax
import jax.numpy as jnp
import pytest

from benchmarks import harness


def test_a_job_that_fails_is_named_and_the_next_goes_on(tmp_path, capsys):
    result = {"rows": [], "failed": []}

    def table(result):
        return f"{len(result['rows'])} rows\n"

    def attempt(name, job):
        done = harness.attempt(result, name, job, tmp_path, table)
        assert json.loads((tmp_path / "result.json").read_text()) == result
        return done

    def failing():
        raise RuntimeError("out of memory\nat line 3")

    assert attempt("first", lambda: {"name": "first"})
    assert not attempt("second", failing)
    assert attempt("check", lambda: None)
    assert result["rows"] == [{"name": "first"}]
    assert result["failed"] == [{"name": "second", "why": "out of memory"}]
    assert (tmp_path / "table.md").read_text() == "1 rows\n"
    assert capsys.readouterr().err == "first ...\nsecond ...\ncheck ...\n"

    def wrong():
        raise KeyError("a mistake of ours is no failure to be noted")

    with pytest.raises(KeyError):
        attempt("third", wrong)


def test_a_side_that_compiles_again_is_known():
    held, doubled = [jnp.ones(2)], jax.jit(lambda x: jnp.concatenate([x, x]))
    plain = jax.jit(lambda x: x + 1)

    def growing():
        held[0] = harness.wait(doubled(held[0]))

    sides = {"growing": growing, "plain": lambda: harness.wait(plain(jnp.ones(3)))}
    found = harness.measure(sides, rounds=3, seconds=0.0)
    assert (found["growing"].calls, found["growing"].again) == (3, 4)
    assert found["plain"].again == 0


def test_first_calls_that_were_made_before_are_kept():
    calls = []
    found, seconds = harness.timed(lambda: time.sleep(0.01) or "what it returns")
    assert found == "what it returns"
    assert 0.01 <= seconds < 5
    sides = {"known": lambda: calls.append("known"), "new": lambda: calls.append("new")}
    timings = harness.measure(sides, rounds=1, seconds=0.0, firsts={"known": 9.0})
    assert timings["known"].first == 9.0
    assert timings["new"].first < 9.0
    assert (calls.count("known"), calls.count("new")) == (2, 3)  # no first call but the new one's


def test_a_result_begins_with_the_machine(monkeypatch):
    monkeypatch.setattr(harness, "ceilings", lambda dtype: {"dtype": dtype})
    found = harness.started("models", "float32")
    assert found["claim"] == harness.NO_CLAIM  # on a CPU
    assert (found["benchmark"], found["ceilings"]) == ("models", {"dtype": "float32"})
    assert found["machine"]["versions"]["jax"]
    assert (found["rows"], found["failed"]) == ([], [])
