"""CONTRIBUTING's table of imports is what import-linter enforces, and its second stack is there."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SIBLINGS = {"": None, "independent": "|", "may import each other": ":"}


@pytest.fixture(scope="module")
def text():
    return (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def contracts():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return settings["tool"]["importlinter"]["contracts"]


def enforced(layer: str) -> tuple[list[str], str | None]:
    """The modules of a layer, and the sign between them."""
    signs = {sign for sign in "|:" if sign in layer}
    assert len(signs) < 2, f"{layer}: expected one kind of sign"
    return re.findall(r"[\w.]+", layer), signs.pop() if signs else None


def documented(section: str) -> list[tuple[list[str], str | None]]:
    rows = re.findall(r"^\| (`.*`) \| (.*?) ?\|$", section, re.MULTILINE)
    return [(re.findall(r"`([\w.]+)`", names), SIBLINGS[how]) for names, how in rows]


def test_the_table_of_imports_is_what_is_enforced(text, contracts):
    (layers,) = [contract for contract in contracts if contract["type"] == "layers"]
    section = text.split("## Who may import whom\n")[1].split("\n## ")[0]
    assert documented(section) == [enforced(layer) for layer in layers["layers"]]


def test_every_other_contract_is_listed(text, contracts):
    section = text.split("The other contracts:\n")[1].split("\n## ")[0]
    listed = re.findall(r"^- (.*(?:\n  .*)*)$", section, re.MULTILINE)
    assert [" ".join(item.split()) for item in listed] == [
        contract["name"] for contract in contracts if contract["type"] != "layers"
    ]


def test_every_folder_of_the_package_has_a_row(text):
    section = text.split("## Where things go\n")[1].split("\n## ")[0]
    named = set(re.findall(r"`(?:jaxalign/)?(\w+)/`", section))
    folders = {path.parent.name for path in ROOT.glob("jaxalign/*/__init__.py")}
    assert folders <= named


def second_stack(tmp_path, python):
    """Run the command in a checkout of its own where `python3.12` is a given shell script."""
    script = tmp_path / ".ci" / "second_stack"
    script.parent.mkdir()
    shutil.copy(ROOT / ".ci" / "second_stack", script)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "mkdir", "cat", "chmod"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3.12").write_text(python)
    (tools / "python3.12").chmod(0o755)
    return lambda *words: subprocess.run(
        [str(tools / "bash"), str(script), *words],
        capture_output=True, text=True, env={"PATH": str(tools)},
    )  # fmt: skip


def test_the_second_stack_is_skipped_where_its_python_is_not_found(tmp_path):
    found = second_stack(tmp_path, "#!/bin/sh\necho other version >&2\nexit 127\n")()
    assert (found.returncode, found.stderr) == (0, "")
    assert "skipped: there is no python3.12" in found.stdout
    assert not (tmp_path / "build").exists()


def test_the_second_stack_runs_what_contributing_says(tmp_path, text):
    # Its environment is played by programs that print their arguments.
    run = second_stack(
        tmp_path,
        '#!/bin/sh\n[ "$1" = -m ] || exit 0\nmkdir -p "$3/bin"\n'
        "for name in pip pytest; do\n"
        """  printf '#!/bin/sh\\necho %s "$*"\\n' $name > "$3/bin/$name"\n"""
        '  chmod +x "$3/bin/$name"\ndone\n',
    )
    pip, pytest_ = run().stdout.splitlines()
    section = text.split("### The second stack\n")[1].split("\n## ")[0]
    versions = re.findall(r"(jax|flax)\s+(\d+\.\d+\.\d+)", section)
    assert pip == " ".join(["pip install -q -e .[test]", *map("==".join, versions)])
    _, *folders = pytest_.split()
    assert folders
    assert all((ROOT / folder).is_dir() and f"{folder}" in section for folder in folders)
    assert run("tests", "-m", "slow").stdout.splitlines()[1] == "pytest tests -m slow"
