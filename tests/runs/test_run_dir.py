"""The folder of a run: its own run only, and finished when its report is there."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from jaxalign.config import on_resume
from jaxalign.errors import InputError
from jaxalign.files import read_json
from jaxalign.runs import finished_report, open_run_dir, run_dir


@dataclass(frozen=True)
class Loop:
    steps: int = on_resume("more", 3)
    batch: int = 2


@dataclass(frozen=True)
class Config:
    rate: float = 0.5
    loop: Loop = field(default_factory=Loop)
    every: int = on_resume("any", 10)


DATA = {"data": np.arange(3), "model": "abc"}


def test_a_run_is_finished_by_its_report(tmp_path):
    run = open_run_dir(tmp_path / "new" / "run", "count", Config(), DATA)
    assert not run.finished
    with pytest.raises(InputError, match="holds an unfinished run of `count`: finish it with"):
        finished_report(run.path, "count", "run `count`")
    run.finish({"total": 3})
    assert run.finished
    assert finished_report(run.path, "count", "run `count`") == {"total": 3}
    with pytest.raises(
        InputError, match="holds a run of `count`; expected a run of `sft`: run `sft`"
    ):
        finished_report(run.path, "sft", "run `sft`")
    with pytest.raises(InputError, match="no such file; expected the folder of a run"):
        finished_report(tmp_path, "sft", "run `sft`")


def test_the_same_run_goes_on_when_asked_to(tmp_path):
    open_run_dir(tmp_path, "count", Config(), DATA)
    with pytest.raises(InputError, match="holds an unfinished run of the same settings"):
        open_run_dir(tmp_path, "count", Config(), DATA)
    open_run_dir(tmp_path, "count", Config(), DATA, resume=True).finish({})
    with pytest.raises(InputError, match="holds a finished run of the same settings"):
        open_run_dir(tmp_path, "count", Config(), DATA)


@pytest.mark.parametrize(
    ("kind", "config", "identity", "said"),
    [
        ("sum", Config(), DATA, "holds a run of `count`; expected one of `sum`"),
        ("count", Config(loop=Loop(batch=4)), DATA, r"loop\.batch was 2, now it is 4\)"),
        (
            "count",
            Config(0.25, Loop(2, 4)),
            {"data": np.arange(4), "model": "ab"},
            r"rate was 0\.5, now it is 0\.25; loop\.steps was 3, now it is 2; a run can only be "
            r"made longer; loop\.batch was 2, now it is 4; and 2 more\)",
        ),
        ("count", Config(), DATA | {"data": np.arange(4)}, r"run \(not the same data as before\)"),
        ("count", Config(), DATA | {"data": np.arange(3.0)}, "not the same data as before"),
        ("count", Config(), DATA | {"model": "ab"}, "not the same model as before"),
        ("count", Config(), {"data": np.arange(3)}, "not the same model as before"),
        ("count", Config(), DATA | {"more": ["a"]}, "not the same more as before"),
    ],
)
def test_another_run_is_refused_by_all_that_differs(tmp_path, kind, config, identity, said):
    open_run_dir(tmp_path, "count", Config(), DATA)
    with pytest.raises(InputError, match=said):
        open_run_dir(tmp_path, kind, config, identity, resume=True)


@dataclass(frozen=True)
class Listed:
    ends: tuple[float, float]


@dataclass(frozen=True)
class Named:
    scale_from: str = ""


def test_a_setting_that_was_empty_is_called_so(tmp_path):
    open_run_dir(tmp_path, "count", Named())
    with pytest.raises(InputError, match="scale_from was empty, now it is run"):
        open_run_dir(tmp_path, "count", Named("run"), resume=True)


def test_lists_of_texts_are_not_their_sum(tmp_path):
    open_run_dir(tmp_path, "count", Config(), {"data": ["ab", "c"]})
    with pytest.raises(InputError, match="not the same data"):
        open_run_dir(tmp_path, "count", Config(), {"data": ["a", "bc"]}, resume=True)


def test_fields_that_may_change_make_a_finished_run_unfinished(tmp_path):
    first = open_run_dir(tmp_path, "count", Config(), DATA)
    first.finish({})
    longer = open_run_dir(tmp_path, "count", Config(loop=Loop(5), every=4), DATA, resume=True)
    assert longer.changes == {
        "loop.steps": "was 3, now it is 5",
        "every": "was 10, now it is 4",
    }
    assert longer.fingerprint == first.fingerprint
    assert not longer.finished
    kept = read_json(tmp_path / "run.json")["config"]
    assert (kept["loop"], kept["every"]) == ({"steps": 5, "batch": 2}, 4)
    with pytest.raises(InputError, match="steps was 5, now it is 3; a run can only be made longer"):
        open_run_dir(tmp_path, "count", Config(), DATA, resume=True)
    longer.finish({})
    assert open_run_dir(
        tmp_path, "count", Config(loop=Loop(5), every=4), DATA, resume=True
    ).finished


def test_a_longer_run_that_is_killed_at_its_start_is_unfinished(tmp_path, monkeypatch):
    open_run_dir(tmp_path, "count", Config(), DATA).finish({})
    written = run_dir.write_json

    def killed(*arguments):
        written(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(run_dir, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        open_run_dir(tmp_path, "count", Config(loop=Loop(5)), DATA, resume=True)
    monkeypatch.undo()
    assert not open_run_dir(tmp_path, "count", Config(loop=Loop(5)), DATA, resume=True).finished


def test_outdated_stages_are_discarded_before_the_new_settings_are_written(tmp_path, monkeypatch):
    open_run_dir(tmp_path, "count", Config(), DATA).stage("sum", lambda: {"total": np.ones(1)})

    def discard(state, changes):
        assert set(changes) == {"loop.steps"}
        (state / "sum.safetensors").unlink(missing_ok=True)

    def killed(*arguments):
        raise KeyboardInterrupt

    given = ("count", Config(loop=Loop(5)), DATA, True, discard)
    monkeypatch.setattr(run_dir, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        open_run_dir(tmp_path, *given)
    monkeypatch.undo()
    again = open_run_dir(tmp_path, *given)
    assert again.changes == {"loop.steps": "was 3, now it is 5"}
    assert not (again.state / "sum.safetensors").exists()


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_settings_that_are_not_finite_are_refused_by_name(tmp_path, value):
    with pytest.raises(InputError, match=r"^rate: found (inf|nan), expected a finite number"):
        open_run_dir(tmp_path / "run", "count", Config(rate=value), DATA)
    with pytest.raises(InputError, match=r"^ends: found"):
        open_run_dir(tmp_path / "run", "count", Listed((0.0, value)))
    with pytest.raises(InputError, match=r"^ends\.1\.rate: found (inf|nan)"):
        open_run_dir(tmp_path / "run", "count", Listed((Config(), Config(rate=value))))
    assert not (tmp_path / "run").exists()


def test_foreign_folders_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        open_run_dir(tmp_path, "count", Config())
    with pytest.raises(InputError, match="is a file"):
        open_run_dir(tmp_path / "file", "count", Config())
    with pytest.raises(InputError, match=r"lies below the file .*: give another --out"):
        open_run_dir(tmp_path / "file" / "run", "count", Config())
    (tmp_path / "run.json").write_text("[]")
    with pytest.raises(InputError, match=r"holds a JSON list; .* `count`: give a new folder"):
        open_run_dir(tmp_path, "count", Config(), resume=True)


def test_a_stage_is_computed_once(tmp_path):
    calls, said = [], []

    def compute():
        calls.append(1)
        return {"a": {"b": np.arange(2)}, "text": "one"}

    run = open_run_dir(tmp_path, "count", Config())
    first = run.stage("part", compute, said.append)
    again = open_run_dir(tmp_path, "count", Config(), resume=True).stage(
        "part", compute, said.append
    )
    np.testing.assert_array_equal(first["a"]["b"], again["a"]["b"])
    assert str(again["text"]) == "one"
    assert len(calls) == 1
    assert said == ["part", "part: kept from before"]
