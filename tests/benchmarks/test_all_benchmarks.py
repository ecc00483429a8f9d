"""One command for every row: what is kept, skipped, stopped and merged, and what is made of it."""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import all as everything
from benchmarks import harness, report, summary
from benchmarks.docs_pages import SPEED_PAGE, replaced
from benchmarks.moc import published
from benchmarks.moc_memory import CONFIG
from benchmarks.rows import ROWS, Row
from benchmarks.xla import environment
from jaxalign.config import load_config
from jaxalign.experiments.moc import MocRunConfig

ROOT = Path(__file__).resolve().parents[2]
MACHINE = {
    "processor": "A processor", "cores": 2, "devices": ["cpu"], "date": "2026-01-02",
    "versions": {"python": "3.11", "jax": "0.10.2", "torch": "2.13.0"},
}  # fmt: skip
# Of jaxalign's packages those that a machine with a GPU for an hour may well lack.
UNNEEDED = {"gguf", "datasets", "moocore", "pydantic", "tyro", "vaderSentiment", "rouge_score",
            "rank_bm25"}  # fmt: skip
CEILING = {"matmul_flops": 1e12, "copy_bytes": 1e10, "launch_seconds": 1e-5, "dtype": "float32"}
TIMES = {"jaxalign": 1.0, "torch eager": 4.0, "torch compiled": 0.5}


def measured(name="product", times=TIMES, **facts):
    timings = {side: harness.Timing(9.0, t, t, t, t, 3) for side, t in times.items()}
    return harness.row(name, timings, next(iter(times)), **facts)


def result_of(rows, machine=MACHINE, status="done"):
    found = {"benchmark": "all", "format": 1, "device": "cpu", "scale": "full",
             "name": "cpu", "versions": {"jax": "0.10.2", "torch": "2.13.0"}}  # fmt: skip
    about = {"machine": machine, "ceilings": {"float32": CEILING}}
    found["rows"] = {"ceilings": {"status": "done", "seconds": 1.0, "result": about}}
    for name, lines in rows.items():
        one = {"status": status, "seconds": 2.0, "result": {"rows": lines, "failed": []}}
        found["rows"][name] = one | ({} if status == "done" else {"why": "it broke"})
    return found


def arguments(tmp_path, *given):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    everything.add_arguments(parser)
    return parser.parse_args(["--device", "cpu", "--out", str(tmp_path / "out"), *given])


@pytest.fixture
def processes(monkeypatch):
    """Rows whose processes are played: the commands that were started."""
    started, answers = [], {"ceilings": (0, "", {"machine": MACHINE, "ceilings": {}})}

    def played(command, env, limit):
        started.append(command)
        name = Path(command[-1]).name
        code, words, wrote = answers.get(name, (0, "", {"machine": dict(MACHINE), "rows": []}))
        if wrote is not None:
            Path(command[-1]).mkdir(parents=True)
            (Path(command[-1]) / "result.json").write_text(json.dumps(wrote))
        return code, words

    monkeypatch.setattr(everything, "_process", played)
    return started, answers


def written(tmp_path):
    return json.loads((tmp_path / "out" / "cpu" / "2026-01-02.json").read_text())


def test_a_failing_row_leaves_the_others(tmp_path, processes):
    started, answers = processes
    answers["mrm_prism"] = (1, "one\nRuntimeError: out of memory", None)
    answers["palm"] = (-1, "stopped", {"machine": dict(MACHINE), "rows": [measured()]})
    everything.run(arguments(tmp_path))
    rows = written(tmp_path)["rows"]
    assert [*rows] == [row.name for row in ROWS]
    assert rows["mrm_prism"]["status"] == "failed"
    assert rows["mrm_prism"]["why"].endswith("out of memory")
    assert rows["palm"]["status"] == "partial"
    assert rows["palm"]["result"]["rows"]
    assert rows["pplug_personas"]["status"] == "done"
    assert rows["decode_8B"]["status"] == "not for here"  # a CPU tells nothing about it
    assert len(started) == 4


def test_a_resumed_run_measures_only_what_is_not_done(tmp_path, processes):
    started, answers = processes
    answers["mrm_prism"] = (1, "it broke", None)
    everything.run(arguments(tmp_path))
    before = tmp_path / "out" / "cpu" / "2026-01-02.json"
    started.clear()
    del answers["mrm_prism"]
    everything.run(arguments(tmp_path, "--resume", str(before)))
    assert [Path(command[-1]).name for command in started] == ["mrm_prism"]
    assert written(tmp_path)["rows"]["mrm_prism"]["status"] == "done"


def test_only_and_budget_say_what_is_left_out(tmp_path, processes, monkeypatch):
    started, _ = processes
    everything.run(arguments(tmp_path, "--only", "palm"))
    assert [*written(tmp_path)["rows"]] == ["ceilings", "palm"]
    started.clear()
    clock = iter([0.0, *[1.0] * 3, *[1e9] * 100])  # end; the ceilings' start and both ends
    monkeypatch.setattr(everything.time, "monotonic", lambda: next(clock))
    everything.run(arguments(tmp_path, "--budget", "60"))
    rows = written(tmp_path)["rows"]
    assert len(started) == 1
    assert rows["palm"]["status"] == "left out"
    assert "--resume" in rows["palm"]["why"]


def test_what_is_missing_is_named(tmp_path, processes, monkeypatch):
    real = everything.importlib.util.find_spec
    monkeypatch.setattr(
        everything.importlib.util,
        "find_spec",
        lambda name: None if name == "peft" else real(name),
    )
    everything.run(arguments(tmp_path, "--scale", "small"))
    rows = json.loads((tmp_path / "out" / "cpu" / "2026-01-02-small.json").read_text())["rows"]
    missing = {name for name, row in rows.items() if row["status"] == "missing"}
    assert missing == {row.name for row in ROWS if "peft" in row.needs and row.small}
    assert rows["adapters_1B"]["why"] == "needs peft"


def test_partial_runs_merge_and_a_done_row_is_never_lost():
    first = result_of({"palm": [measured("old")], "mrm_prism": [measured()]})
    second = result_of({"palm": [measured("new")]})
    third = result_of({"palm": [], "moc_7B": []}, status="failed")
    rows = everything.merged([first, second, third])["rows"]
    assert rows["palm"]["result"]["rows"][0]["name"] == "new"
    assert rows["mrm_prism"]["status"] == "done"
    assert rows["moc_7B"]["status"] == "failed"
    other = result_of({}, {**MACHINE, "versions": {**MACHINE["versions"], "jax": "0.11.2"}})
    with pytest.raises(SystemExit, match="one set of packages"):
        everything.merged([first, other])


def test_resuming_from_something_else_is_refused(tmp_path):
    path = tmp_path / "other.json"
    for text in ("{", "{}", json.dumps({"benchmark": "mrm"}), "[]"):
        path.write_text(text)
        with pytest.raises(SystemExit, match="expected a file"):
            everything.run(arguments(tmp_path, "--resume", str(path)))
    path.write_text(json.dumps(result_of({}) | {"device": "gpu"}))
    with pytest.raises(SystemExit, match="measured on gpu"):
        everything.run(arguments(tmp_path, "--resume", str(path)))


def test_a_row_that_takes_too_long_is_stopped_with_its_children(tmp_path):
    sleeper = (
        f"import subprocess, sys, pathlib; p = subprocess.Popen(['sleep', '60']); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(p.pid)); p.wait()"
    )
    code, words = everything._process(["-c", sleeper], os.environ, 3.0)
    assert code == -1
    assert "budget" in words
    child = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(50):  # a killed process that nobody has waited for yet is a zombie
        if not child.exists() or child.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    raise AssertionError("the row's child runs on")


def test_ceilings_are_measured_once_for_all_rows(tmp_path, monkeypatch):
    path = tmp_path / "known.json"
    path.write_text(json.dumps({"float32": CEILING}))
    monkeypatch.setenv(harness.CEILINGS, str(path))
    assert harness.ceilings("float32") == CEILING


def test_the_users_own_settings_of_xla_stay(tmp_path):
    own = environment("gpu", tmp_path, {"XLA_FLAGS": "--mine", "HOME": "here"}, quick=True)
    assert own["XLA_FLAGS"] == "--mine"
    assert own["HOME"] == "here"
    assert own["JAX_PLATFORMS"] == "cuda"
    assert own["XLA_PYTHON_CLIENT_PREALLOCATE"] == "false"
    assert "XLA_PYTHON_CLIENT_PREALLOCATE" not in environment("cpu", tmp_path, {})


def test_a_line_sets_ours_beside_the_best_and_the_untuned():
    goals = {row.name: row for row in ROWS}
    assert goals["token_logprob"].goal == (0.75, None)
    shares = {"share_of_ceiling": {"jaxalign": 0.8}, "ceiling": "matmul_flops"}
    slow = {"share_of_ceiling": {"jaxalign": 0.5}, "ceiling": "matmul_flops"}
    far = {"share_of_ceiling": {"jaxalign": 0.7}, "ceiling": "copy_bytes"}
    rows = {
        "token_logprob": [measured("forward", **shares), measured("backward", **slow)],
        "decode_1B": [
            measured("decode 1B batch 1", **far),
            measured("decode 1B batch 64", **far),
            measured("decode 1B batch 64 again", {"jaxalign": 1.0, "torch eager": 5.0}, **far),
        ],
        "palm": [measured("sweep", share_of_ceiling={"jaxalign": {"exp": 0.4, "bandwidth": 0.1}})],
        "mrm_prism": [measured("train", share_of_bandwidth={"jaxalign": 0.1}, unit="epoch")],
    }
    found = {line.name: line for line in summary.lines(result_of(rows))}
    assert found["forward"].best == ("torch compiled", 0.5)
    assert found["forward"].plain == ("torch eager", 4.0)
    assert (found["forward"].met, found["backward"].met) == (True, False)
    assert found["decode 1B batch 1"].met is None  # no goal is set for it
    assert found["decode 1B batch 64"].met is False  # 4 times eager torch where 5 are asked
    assert found["decode 1B batch 64 again"].met is True
    assert (found["sweep"].share, found["sweep"].ceiling) == (0.4, "exponentials")
    assert (found["train"].share, found["train"].unit) == (0.1, "epoch")


def test_sides_that_do_only_a_part_are_no_rivals():
    times = {
        "jaxalign, 2 objectives": 2.0,
        "jaxalign, rollout alone": 0.5,
        "transformers + peft, 1 reward": 8.0,
        "transformers + peft, rollout alone": 1.0,
    }
    (line,) = summary.lines(result_of({"moc_7B": [measured("7B", times)]}))
    assert line.best == line.plain == ("transformers + peft, 1 reward", 4.0)


def test_times_that_hold_compilation_are_named():
    found = measured("forward")
    assert [*summary.failures(result_of({"token_logprob": [found]}))] == []
    found["seconds"]["jaxalign"]["again"] = 2
    (failure,) = summary.failures(result_of({"token_logprob": [found]}))
    assert failure[0] == "token_logprob, forward, jaxalign"
    assert "compilation of 2 programs" in failure[1]


def test_the_report_says_where_we_are_behind(tmp_path):
    rows = {
        "token_logprob": [
            measured("forward"),
            measured("backward", {"jaxalign": 1.0, "torch eager": 3.0}),
        ]
    }
    result = result_of(rows)
    result["rows"]["palm"] = {"status": "failed", "why": "a\nout of memory"}
    path = tmp_path / "benchmarks" / "results" / "cpu" / "2026-01-02.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(result))
    (path.parent / "2026-01-01.json").write_text("{}")  # an older one
    (path.parent / "2026-01-03-small.json").write_text("{}")  # which claims nothing
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text("before\n<!-- speed: begin -->\nold\n<!-- speed: end -->\nafter\n")
    report.run(argparse.Namespace(out=path.parents[1], page=page))
    text = page.read_text()
    assert text.startswith("before\n<!-- speed: begin -->\n")
    assert text.endswith("<!-- speed: end -->\nafter\n")
    assert "Slower than the fastest alternative: forward." in text
    assert "Goals missed: forward, backward." in text
    assert "**0.5 x (torch compiled)**" in text
    assert "| 3 x (torch eager) |" in text
    assert "palm (failed: out of memory)" in text
    assert "(../benchmarks/results/cpu/speed.png)" in text
    assert (path.parent / "speed.png").stat().st_size > 10_000
    report.run(argparse.Namespace(out=path.parents[1], page=page))
    assert page.read_text() == text


def test_only_what_is_between_the_markers_changes():
    text = "before\n<!-- part: begin -->\nold\n<!-- part: end -->\nafter\n"
    once = replaced(text, "part", "new\n")
    assert once == "before\n<!-- part: begin -->\nnew\n<!-- part: end -->\nafter\n"
    assert replaced(once, "part", "new\n") == once
    with pytest.raises(SystemExit, match="expected"):
        replaced("no markers", "part", "new\n")


def test_the_docs_show_the_committed_results():
    text = SPEED_PAGE.read_text(encoding="utf-8")
    part = report.rendered(report.newest(report.RESULTS), SPEED_PAGE.parent)
    assert replaced(text, "speed", part) == text, (
        "the speeds in the docs are not those of the results: python -m benchmarks report"
    )


def test_every_row_is_a_command_that_its_benchmark_takes():
    from benchmarks.__main__ import NAMES

    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert isinstance(row, Row)
        assert row.benchmark in NAMES
        module = everything.importlib.import_module(f"benchmarks.{row.benchmark}")
        for options in (row.full, row.small, row.cpu):
            parser = argparse.ArgumentParser()
            module.add_arguments(parser)
            parser.parse_args((options or "").split())


def test_the_sizes_of_a_step_are_those_of_the_preset():
    preset, own = load_config(MocRunConfig, CONFIG, []).moc, published()
    others = {"steps": preset.steps, "preferences": preset.preferences}  # of a whole run
    assert dataclasses.replace(own, **others) == preset


@pytest.mark.slow
def test_the_whole_command_runs_small_without_what_it_does_not_need(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n\n\nclass Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {UNNEEDED}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n\n\n"
        "sys.meta_path.insert(0, Missing())\n"
    )
    command = [sys.executable, "-m", "benchmarks", "all", "--device", "cpu", "--scale", "small"]
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [*command, "--out", str(tmp_path), "--budget", "900"],
        cwd=ROOT, check=True, timeout=1200, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    (path,) = tmp_path.glob("cpu/*-small.json")
    result = json.loads(path.read_text())
    for row in ROWS:
        found = result["rows"][row.name]
        expected = "done" if row.small else "not for here"
        assert found["status"] == expected, f"{row.name}: {found.get('why')}"
    assert [*summary.failures(result)] == []
    compared = {line.row for line in summary.lines(result)}
    assert compared == {row.name for row in ROWS if row.small} - {"ceilings"}
    assert all(line.best for line in summary.lines(result))
