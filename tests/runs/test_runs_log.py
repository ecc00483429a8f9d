"""Metrics of a run: written a step late, cut back on a resume, sent to trackers."""

import json
import sys

import jax.numpy as jnp
import pytest

from jaxalign.errors import InputError
from jaxalign.runs import log as log_module
from jaxalign.runs.log import FILE, TIMING, MetricsLog, check_trackers


def new_log(folder, step=0, trackers=(), said=None):
    say = (lambda text: None) if said is None else said.append
    return MetricsLog(folder, step, 3, say, lambda entry: f"loss {entry['loss']:.1f}", trackers)


def lines(folder):
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


def test_steps_are_written_one_late(tmp_path):
    said = []
    log = new_log(tmp_path, said=said)
    log.add(1, {"loss": jnp.float32(0.5)}, tokens=8)
    assert lines(tmp_path) == []
    log.add(2, {"loss": jnp.float32(0.25), "tokens": jnp.int32(4)})
    log.flush()
    log.add_validation(2, {"loss": 0.125})
    log.add(3, {"loss": jnp.float32(2.0)})
    log.flush()
    plain = [{k: v for k, v in line.items() if k not in TIMING} for line in lines(tmp_path)]
    assert plain == [
        {"step": 1, "loss": 0.5, "tokens": 8},
        {"step": 2, "loss": 0.25, "tokens": 4},
        {"step": 2, "validation_loss": 0.125},
        {"step": 3, "loss": 2.0},
    ]
    assert log.history == [line for line in plain if "loss" in line]
    assert said == ["step 2 of 3: validation loss 0.1250", "step 3 of 3: loss 2.0"]


def test_lines_say_how_much_time_is_left(tmp_path, monkeypatch):
    clock, said = iter([0.0, 60.0, 70.0, 75.0, 90.0]), []
    monkeypatch.setattr(log_module.time, "monotonic", lambda: next(clock))
    log = MetricsLog(tmp_path, 0, 400, said.append, lambda entry: f"loss {entry['loss']}")
    for step in range(1, 5):
        log.add(step, {"loss": step})
    log.flush()
    # The first step compiles and tells nothing; then 10 s, the median of 10 and 5, and of all.
    assert said == [
        "step 1 of 400: loss 1.0",
        "step 2 of 400: loss 2.0, about 66 min left",
        "step 4 of 400: loss 4.0, about 66 min left",
    ]


def test_a_resumed_run_drops_what_lies_behind_its_state(tmp_path):
    log = new_log(tmp_path)
    for step, loss in ((0, 0.5), (1, 0.4), (2, 0.4), (3, 0.6)):
        if step:
            log.add(step, {"loss": loss})
            log.flush()
        log.add_validation(step, {"loss": loss})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"step": 4, "lo')  # killed here
    again = new_log(tmp_path, step=2)
    assert [line["step"] for line in lines(tmp_path)] == [0, 1, 1, 2, 2]
    assert again.validations == {0: {"loss": 0.5}, 1: {"loss": 0.4}, 2: {"loss": 0.4}}
    assert again.history == log.history[:2]
    assert again.best_step() == 1


def test_values_that_are_not_finite_are_refused(tmp_path):
    log = new_log(tmp_path)
    log.add(1, {"loss": jnp.float32("nan")})
    with pytest.raises(InputError, match="step 1: loss is nan; expected a finite number: lower"):
        log.flush()
    with pytest.raises(InputError, match="step 2: validation_loss is inf"):
        log.add_validation(2, {"loss": float("inf")})
    assert lines(tmp_path) == []


def test_a_check_sees_the_values_first(tmp_path):
    def check(step, values):
        if values.pop("bad_row") >= 0:
            raise InputError(f"step {step} is bad")

    log = new_log(tmp_path)
    log.add(1, {"loss": 1.0, "bad_row": -1}, check=check)
    log.add(2, {"loss": 1.0, "bad_row": 5}, check=check)
    with pytest.raises(InputError, match="step 2 is bad"):
        log.flush()
    assert [sorted(set(line) - set(TIMING)) for line in lines(tmp_path)] == [["loss", "step"]]


@pytest.mark.parametrize(
    ("tracker", "package"),
    [("tensorboard", "tensorboardX"), ("trackio", "trackio"), ("wandb", "wandb")],
)
def test_trackers_are_optional(tmp_path, monkeypatch, tracker, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=f"{package} is not installed: pip install {package}"):
        new_log(tmp_path, trackers=[tracker])
    with pytest.raises(InputError, match=f"{package} is not installed: pip install {package}"):
        check_trackers([tracker])

    scalars, closed = {}, []

    class Client:
        def __init__(self, folder=None, purge_step=None, project=None, name=None):
            if tracker == "tensorboard":
                assert (folder, purge_step) == (str(tmp_path / "tensorboard"), 1)
            else:
                assert (project, name) == ("jaxalign", tmp_path.name)

        def add_scalar(self, name, value, step):
            scalars[name, step] = value

        def log(self, values, step):
            scalars.update({(name, step): value for name, value in values.items()})

        def close(self):
            closed.append(1)

        finish = close

    fake = type(sys)(package)
    fake.SummaryWriter = fake.init = Client
    monkeypatch.setitem(sys.modules, package, fake)
    log = new_log(tmp_path, trackers=[tracker])
    log.add(1, {"loss": 0.5})
    log.flush()
    log.close()
    assert scalars["loss", 1] == 0.5
    assert "step" not in {name for name, _ in scalars}
    assert closed == [1]
