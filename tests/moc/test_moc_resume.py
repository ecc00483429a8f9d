"""Runs that stop: killed, refused by a reward, or gone astray; and what is on disk then."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import moc_world as world
import numpy as np
import pytest

from jaxalign import moc
from jaxalign.errors import InputError
from jaxalign.rewards.vector import TextReward, TokenReward
from jaxalign.runs.log import TIMING, MetricsLog

STEPS = 5


class Stop(BaseException):
    """In place of Ctrl-C."""


def run(folder, reward=None, steps=STEPS, **changes):
    config = world.config(steps=steps, epochs=1, groups=2, **changes)
    policy = moc.init_policy(jax.random.key(0), world.language_model(), world.NAMES, config)
    return moc.train(policy, reward or world.reward(), world.PROMPTS, config, folder)


def lines(folder):
    """Metrics as they were written, but for the clock."""
    text = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in text]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    return run(folder), folder


def same_run(whole, result, folder):
    first, before = whole
    assert result.history == first.history == lines(before) == lines(folder)
    assert [entry["step"] for entry in result.history] == list(range(1, STEPS + 1))
    chex.assert_trees_all_equal(result.policy.trained, first.policy.trained)


@pytest.mark.parametrize(
    "stop", [pytest.param(1, marks=pytest.mark.slow), 3, pytest.param(4, marks=pytest.mark.slow)]
)
def test_a_stopped_run_ends_with_the_same_bits(whole, tmp_path, stop, monkeypatch):
    real = MetricsLog.add

    def add(self, step, *rest, **checks):
        real(self, step, *rest, **checks)
        if step == stop:
            raise Stop

    monkeypatch.setattr(MetricsLog, "add", add)
    with pytest.raises(Stop):
        run(tmp_path)
    monkeypatch.setattr(MetricsLog, "add", real)
    same_run(whole, run(tmp_path), tmp_path)


def test_ctrl_c_writes_the_state_before_it_leaves(whole, tmp_path, monkeypatch, capfd):
    real = MetricsLog.add

    def add(self, step, *rest, **checks):
        real(self, step, *rest, **checks)
        if step == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MetricsLog, "add", add)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, checkpoint_every=100)
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["00000003"]
    assert "stopping when the state is written" in capfd.readouterr().err
    monkeypatch.setattr(MetricsLog, "add", real)
    same_run(whole, run(tmp_path, checkpoint_every=100), tmp_path)


@pytest.mark.slow
def test_a_longer_run_is_the_run_of_that_length(whole, tmp_path):
    assert run(tmp_path, steps=3).steps == 3
    same_run(whole, run(tmp_path), tmp_path)


def test_a_finished_run_stays_as_it_is(whole):
    first, folder = whole
    again = run(folder)
    assert again.history == first.history
    chex.assert_trees_all_equal(again.policy.trained, first.policy.trained)


KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
from pathlib import Path
import test_moc_resume as own
from jaxalign.runs.log import MetricsLog
real = MetricsLog.add
def add(self, step, *rest, **checks):
    real(self, step, *rest, **checks)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
MetricsLog.add = add
own.run(Path(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_with_the_same_bits(whole, tmp_path):
    here = Path(__file__).parent
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(here), str(here.parent / "models")])
    }
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], env=environment, check=False
    )
    assert killed.returncode == -9
    assert len(lines(tmp_path)) < STEPS
    same_run(whole, run(tmp_path), tmp_path)


def texts(fail=None, at=3):
    """The shares of letters, on the host; the call numbered `at` does what `fail` does."""
    calls = []

    def function(prompts, answers):
        # A batch that fails is taken apart: only whole ones are counted.
        calls.append(len(prompts))
        found = [[a.count("a") + 1.0, 0.5 * a.count("p")] for a in answers]
        return fail(prompts, found) if fail and calls.count(8) == at else found

    return TextReward(world.NAMES, function, "letters")


def raises(prompts, found):
    if len(prompts) > 1 or prompts[0] == raises.prompt:
        raises.prompt = prompts[min(2, len(prompts) - 1)]
        raise RuntimeError("the server is gone")
    return found


def no_number(prompts, found):
    return [*found[:2], [1.0, float("nan")], *found[3:]] if len(prompts) > 2 else found


def one_less(prompts, found):
    return found[:-1] if len(prompts) > 1 else found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fail", "message"),
    [
        (raises, r"red, blue raised RuntimeError: the server is gone \(row 2, prompt .*, answer"),
        (no_number, r"the reward blue gave nan where .* \(row 2, prompt .*, answer"),
        (one_less, r"gave shape \(7, 2\) where \(8, 2\) was expected"),
    ],
)
def test_a_reward_that_fails_costs_no_step(tmp_path, fail, message):
    """The state before the step that failed is on disk, whenever states are kept."""
    with pytest.raises(InputError, match=message):
        run(tmp_path / "failed", texts(fail), steps=4, checkpoint_every=100)
    assert (tmp_path / "failed" / "state" / "00000002").is_dir()
    assert len(lines(tmp_path / "failed")) == 2
    again = run(tmp_path / "failed", texts(), steps=4, checkpoint_every=100)
    expected = run(tmp_path / "whole", texts(), steps=4, checkpoint_every=100)
    assert again.history == expected.history
    chex.assert_trees_all_equal(again.policy.trained, expected.policy.trained)


def test_a_traced_reward_that_is_no_number_is_named(tmp_path):
    def function(prompts, lengths, answers, ends):
        rows = jnp.arange(len(ends))[:, None]
        good = world.reward().function(prompts, lengths, answers, ends)
        return jnp.where((rows == 5) & (prompts[5].max() == world.FIRST + 12), jnp.nan, good)

    with pytest.raises(
        InputError, match=r"step \d+: one of the rewards red, blue is not .*\(row 5, prompt"
    ):
        run(tmp_path, TokenReward(world.NAMES, function, "broken"), checkpoint_every=1)
    for path in (tmp_path / "state").iterdir():
        assert path.name.startswith("0000")
    assert all(np.isfinite(list(entry.values())).all() for entry in lines(tmp_path))
