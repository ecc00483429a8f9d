"""Ctrl-C at several moments, then --resume: the bytes of an uninterrupted run."""

import json
import signal
import subprocess
import sys
import time

import own_process
import pytest
import tiny_lms
import yaml
from few_choices import write_choices

SPLIT = {"item_folds": 2, "min_support": 3, "min_query": 3}
STOPPED = ["jaxalign: stopped. Go on with the same command and --resume."]
SAME = ("report.json", "report.md", "splits.json", "model.safetensors")


def write_world(root, **changes):
    """Choices, features and a config in a folder."""
    write_choices(root)
    config = {
        "features": {"path": str(root / "features.npz")},
        "split": SPLIT,
        "bayes": {"em_steps": 4},
        # Many short spans, so that there is a middle to interrupt.
        "mrm": {
            "epochs": 40,
            "users_per_batch": 4,
            "hidden_sizes": [3],
            "snapshots": 20,
            "rates": [0.1],
        },
        "methods": ["bayes", "mrm"],
        "fold_methods": ["bayes"],
        "seeds": 1,
        "shots": [0, 5],
        "draws": 100,
    } | changes
    (root / "config.yaml").write_text(yaml.dump(config))


def start(root, out, *more):
    words = ("mrm", "train", "--data", "choices.jsonl", "--config", "config.yaml")
    return start_command(root, *words, "--out", out, *more)


def start_command(root, *words):
    code = "import sys, jaxalign.cli as c; print('ready', flush=True); sys.exit(c.main())"
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=root,
        env=own_process.torchless(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    try:
        out, err = process.communicate(timeout=500)
    finally:
        process.kill()
    assert process.returncode == 0, err
    return out, err


def interrupt(process, moment, timeout=300):
    """Send SIGINT as soon as the path `moment` exists."""
    end = time.monotonic() + timeout
    try:
        while not moment.exists():
            assert process.poll() is None, f"ended before {moment}: {process.communicate()[1]}"
            assert time.monotonic() < end, f"no {moment} after {timeout} s"
            time.sleep(0.005)
        stop(process, moment)
    finally:
        process.kill()


def stop(process, moment, number=signal.SIGINT):
    """Send a signal: exit code 128 + its number, and one line."""
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, f"at {moment}: {err}"
    said = [line for line in err.splitlines() if line.startswith("jaxalign: stopped")]
    assert said in (STOPPED, [STOPPED[0][:18]]), err
    for word in ("Traceback", "Exception", "KeyboardInterrupt"):
        assert word not in err, err


def assert_same(one, two):
    for name in SAME:
        assert (one / name).read_bytes() == (two / name).read_bytes(), f"{name} differs"


def interrupted_run(root, moments):
    """A run that is stopped when each of the files of its state folder appears, then finished."""
    for index, moment in enumerate(moments):
        process = start(root, "stopped", *(["--resume"] if index else []))
        interrupt(process, root / "stopped" / moment)
        assert not (root / "stopped/report.json").exists()
    return finish(start(root, "stopped", "--resume"))[1]


@pytest.mark.slow
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path):
    write_world(tmp_path, methods=["mrm"], split=SPLIT | {"item_folds": 0})
    finish(start(tmp_path, "whole"))
    said = interrupted_run(tmp_path, ["state/bt.safetensors", "state/mrm.epochs/000002"])
    assert "bt: kept from before" in said
    assert_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
def test_every_method_seed_and_fold_resumes(tmp_path):
    write_world(
        tmp_path,
        methods=["bt_per_user", "item_ids", "bayes", "mrm_published", "mrm"],
        fold_methods=["item_ids", "bayes", "mrm"],
        seeds=2,
        mrm_published={"epochs": 20},
    )
    finish(start(tmp_path, "whole"))
    moments = [
        "run.json",
        "state/bayes.safetensors",
        "state/mrm_published.epochs/000010",
        "state/mrm.epochs/000002",
        "state/mrm.epochs/000022",
        "state/fold00.safetensors",
    ]
    said = interrupted_run(tmp_path, moments)
    for name in ("bt", "item_ids", "bayes", "mrm_published", "mrm", "fold00"):
        assert f"{name}: kept from before" in said
    assert_same(tmp_path / "whole", tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_training_that_is_told_to_stop_keeps_its_last_step(tmp_path, number):
    """Checkpoints are 100 steps apart: what --resume goes on from was written at the signal."""
    tiny_lms.write(tmp_path / "model", "llama")
    rows = [{"prompt": f"say {row}", "completion": "the the"} for row in range(64)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["sft", "--model", "model", "--data", "data.jsonl", "--loop.batch_size", "2"]
    words += ["--loop.epochs", "6", "--trunk.lora.rank", "2", "--loop.checkpoint_every", "1000"]
    finish(start_command(tmp_path, *words, "--out", "whole"))
    process = start_command(tmp_path, *words, "--out", "stopped")
    metrics = tmp_path / "stopped/metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 9):
        assert process.poll() is None
        time.sleep(0.01)
    stop(process, "a step", number)
    (state,) = (path.name for path in (tmp_path / "stopped/state").glob("0*"))
    assert 9 <= int(state) < 192
    err = finish(start_command(tmp_path, *words, "--out", "stopped", "--resume"))[1]
    assert f"resumed at step {int(state)} of" in err
    for name in ("model/adapter_model.safetensors", "report.json"):
        whole, stopped = ((tmp_path / run / name).read_bytes() for run in ("whole", "stopped"))
        assert whole == stopped


@pytest.mark.parametrize(
    ("seconds", "number"),
    [(0.1, signal.SIGINT), (0.5, signal.SIGINT), (1.0, signal.SIGTERM), (2.0, signal.SIGINT)],
)
def test_ctrl_c_while_libraries_load(tmp_path, seconds, number):
    write_world(tmp_path)
    process = start(tmp_path, "stopped")
    assert process.stdout.readline() == "ready\n"
    time.sleep(seconds)
    stop(process, f"{seconds} s", number)


@pytest.mark.slow
def test_a_file_of_answers_is_killed_at_several_moments(tmp_path):
    tiny_lms.write(tmp_path / "model", "llama")
    rows = "".join(json.dumps({"prompt": f"say {row}"}) + "\n" for row in range(60))
    (tmp_path / "prompts.jsonl").write_text(rows)
    words = ["generate", "--model", "model", "--prompts", "prompts.jsonl", "--samples", "2"]
    words += ["--temperature", "1", "--max-tokens", "100", "--batch-size", "1"]
    finish(start_command(tmp_path, *words, "--out", "whole.jsonl"))
    part = tmp_path / ".stopped.jsonl.run/rows.jsonl"
    size, seen = 0, []
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGKILL):
        more = ["--resume"] if seen else []
        process = start_command(tmp_path, *words, "--out", "stopped.jsonl", *more)
        while not (part.exists() and part.stat().st_size > size):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.001)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert not (tmp_path / "stopped.jsonl").exists()
        size = part.stat().st_size
        seen.append(size)
    assert len(set(seen)) == 4
    finish(start_command(tmp_path, *words, "--out", "stopped.jsonl", "--resume"))
    whole, stopped = (tmp_path / f"{name}.jsonl" for name in ("whole", "stopped"))
    assert whole.read_bytes() == stopped.read_bytes()
