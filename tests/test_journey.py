"""The five-minute journey: its commands run literally, as the page has them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "journey.md"
BLOCK = re.compile(
    r"(?P<mark>^<!-- not run: .* -->\n)?^```(?P<kind>\w+)\n(?P<text>.*?)^```", re.M | re.S
)


def blocks(kind):
    """Blocks of the page that run: neither the installation nor what needs a download."""
    found = BLOCK.finditer(PAGE.read_text("utf-8"))
    return [
        x["text"] for x in found if x["kind"] == kind and not x["mark"] and "pip" not in x["text"]
    ]


@pytest.mark.slow
def test_the_commands_of_the_page_give_the_answers_of_the_page(tmp_path):
    program = tmp_path / ".venv" / "bin" / "jaxalign"
    program.parent.mkdir(parents=True)
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from jaxalign.cli import main"
    program.write_text(f"#!{sys.executable}\n{code}; sys.exit(main())\n")
    program.chmod(0o755)
    said = {}
    for block in blocks("bash"):
        result = subprocess.run(
            ["bash", "-e"], input=block, capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert result.returncode == 0, block + result.stderr
        said[block] = result
    (answers,) = [result for block, result in said.items() if "jaxalign answer" in block]
    assert answers.stdout == blocks("text")[0]
    likely = re.findall(r"better than the plain answer with probability (0\.\d+)", answers.stderr)
    assert [float(one) > 0.8 for one in likely] == [True, True]
