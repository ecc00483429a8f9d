"""The folder of a run: its own run only, and finished when its report is there."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from jaxalign.errors import InputError
from jaxalign.runs import finished_report, open_run_dir


@dataclass(frozen=True)
class Loop:
    steps: int = 3


@dataclass(frozen=True)
class Config:
    rate: float = 0.5
    loop: Loop = field(default_factory=Loop)


def test_a_run_is_finished_by_its_report(tmp_path):
    run = open_run_dir(tmp_path / "new" / "run", "count", Config(), [np.arange(3)], ["model"])
    assert not run.finished
    with pytest.raises(InputError, match="holds an unfinished run: finish it with --resume first"):
        finished_report(run.path, "count", "run `count`")
    run.finish({"total": 3})
    assert run.finished
    assert finished_report(run.path, "count", "run `count`") == {"total": 3}
    with pytest.raises(
        InputError, match="holds a run of `count`; expected one of `sft`: run `sft`"
    ):
        finished_report(run.path, "sft", "run `sft`")
    with pytest.raises(InputError, match="no such file; expected the folder of a run"):
        finished_report(tmp_path, "sft", "run `sft`")


def test_the_same_run_goes_on_when_asked_to(tmp_path):
    arrays = [np.arange(3)]
    open_run_dir(tmp_path, "count", Config(), arrays)
    with pytest.raises(InputError, match="holds an unfinished run of the same settings"):
        open_run_dir(tmp_path, "count", Config(), arrays)
    open_run_dir(tmp_path, "count", Config(), arrays, resume=True).finish({})
    with pytest.raises(InputError, match="holds a finished run of the same settings"):
        open_run_dir(tmp_path, "count", Config(), arrays)


@pytest.mark.parametrize(
    ("kind", "config", "arrays", "names", "said"),
    [
        ("sum", Config(), [np.arange(3)], [], "holds a run of `count`; expected one of `sum`"),
        ("count", Config(loop=Loop(4)), [np.arange(3)], [], r"loop\.steps was 3, now it is 4"),
        ("count", Config(), [np.arange(4)], [], "other data or another model"),
        ("count", Config(), [np.arange(3.0)], [], "other data or another model"),
        ("count", Config(), [np.arange(3)], ["model"], "other data or another model"),
    ],
)
def test_another_run_is_refused(tmp_path, kind, config, arrays, names, said):
    open_run_dir(tmp_path, "count", Config(), [np.arange(3)])
    with pytest.raises(InputError, match=said):
        open_run_dir(tmp_path, kind, config, arrays, names, resume=True)


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
