"""Rewards, rollouts and generation run on all devices of a process."""

import json
import subprocess
import sys
from pathlib import Path

import own_process
import pytest
import several
import tiny_lms

WORKER = Path(__file__).with_name("devices_worker.py")
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}


@pytest.mark.slow
def test_eight_devices_share_the_rows(tmp_path):
    tiny_lms.write(tmp_path / "model", "llama", **SMALL)
    tiny_lms.write(tmp_path / "judge", "llama", seed=1, labels=2, **SMALL)
    rows = "".join(json.dumps({"prompt": f"say {word}"}) + "\n" for word in "abcdefghijkl")
    (tmp_path / "prompts.jsonl").write_text(rows)
    judge = {"kind": "classifier", "model": str(tmp_path / "judge")}
    config = several.moc_config(steps=1, prompt_tokens=80, mesh={"data": 2, "fsdp": 4})
    config |= {
        "rewards": [
            judge | {"name": name, "label": label} for label, name in enumerate(("first", "second"))
        ],
        "prompts": {"template": "plain", "hold_out_share": 0.25},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "out").mkdir()
    words = [sys.executable, str(WORKER), str(tmp_path), str(tmp_path / "out")]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=400, check=False,
        env=own_process.torchless(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out" / "devices.json").read_text())
    assert found["codes"] == [0, 0, 2], done.stderr[-3000:]
    assert "rows, which do not divide over the mesh" in " ".join(done.stderr.split())
    assert not (tmp_path / "out" / "more").exists()
    assert found["devices"] == 8
    # Eight devices, each with rows of its own.
    for part in (found["train"]["rewards"], found["train"]["completions"]):
        assert part
        assert all(one == [8, 8] for one in part)
    assert found["train"]["rollouts"] == [[8]]
    assert found["generate"]["completions"]
    assert all(one == [8, 8] for one in found["generate"]["completions"])
    answers = (tmp_path / "out" / "answers.jsonl").read_text().splitlines()
    assert len(answers) == 12
