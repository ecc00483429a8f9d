"""The README does what it says: its quick start runs, its test command is the one that CI runs."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEST_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest"


@pytest.fixture
def readme():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if not text.strip():
        pytest.skip("README.md is not written yet")
    return text


def test_quick_start_runs(readme, tmp_path, monkeypatch):
    block = re.search(r"^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert block, "README.md has no python block, expected the quick start"
    monkeypatch.chdir(tmp_path)
    exec(compile(block[1], "README.md", "exec"), {"__name__": "__main__"})


def test_ci_runs_the_test_command_of_the_readme(readme):
    assert TEST_COMMAND in readme
    shown = subprocess.run(
        ["bash", str(ROOT / ".ci/run"), "--show"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"{TEST_COMMAND}\n"
