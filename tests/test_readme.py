"""The README and the docs do what they say: their Python runs, their test command is CI's."""

import pkgutil
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from test_configs import COMMANDS

from jaxalign import cli
from jaxalign.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
# Python of a page; what needs a download or a GPU stands after a comment that says so.
SNIPPET = re.compile(
    r"(?P<mark>^<!-- not run: .* -->\n)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)
TEST_COMMAND = "python3 -m venv .venv && .venv/bin/pip install -q -e '.[test]' && .venv/bin/pytest"
NAME = re.compile(
    r"`(?:jaxalign\.)?((?:data|demo|experiments|kernels|metrics|moc|models|mrm|palm|personalize"
    r"|pplug|rewards|rollout|runs|serve|train)(?:\.[A-Za-z_]\w*)+)(?:\([^`]*\))?`"
)


@pytest.fixture
def readme():
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_quick_start_is_python(readme):
    assert SNIPPET.search(readme), "README.md has no python block, expected the quick start"


# CONTRIBUTING's recipes have tests of their own, which follow them.
@pytest.mark.parametrize(
    "page", [PAGES[0], *PAGES[2:]], ids=lambda page: str(page.relative_to(ROOT))
)
def test_snippets_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    text = page.read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "__main__"}
    for found in SNIPPET.finditer(text):
        if not found["mark"]:
            line = text[: found.start("code")].count("\n")
            exec(compile("\n" * line + found["code"], str(page), "exec"), names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_links_to_are_there(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_a_page_are_there(page):
    for name in NAME.findall(page.read_text(encoding="utf-8")):
        pkgutil.resolve_name(f"jaxalign.{name}")  # raises for an unknown one


def commands(page):
    """The words of every `jaxalign` command in the bash blocks of a page."""
    for block in re.findall(r"^```bash\n(.*?)^```", page.read_text("utf-8"), re.M | re.S):
        for part in re.split(r"\n|&&", block.replace("\\\n", " ")):
            program, *words = shlex.split(part, comments=True) or [""]
            if program.endswith("jaxalign"):
                yield words


def written_files(page, folder):
    """Write the YAML files that a page shows, "file `NAME`", and return their paths by name."""
    shown = re.compile(r"file `(\w+\.yaml)`[^`]*?\n```yaml\n(.*?)^```", re.M | re.S)
    found = {}
    for name, text in shown.findall(page.read_text("utf-8")):
        found[name] = folder / name
        found[name].write_text(text, "utf-8")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_parse(page, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    files = written_files(page, tmp_path)
    configs = {command: config for config, command in COMMANDS.values()}
    for words in commands(page):
        arguments, rest = cli._parser().parse_known_args(words)
        if getattr(arguments, "config", None) or rest:
            (config,) = [c for command, c in configs.items() if " ".join(words).startswith(command)]
            load_config(config, files.get(str(arguments.config), arguments.config), rest)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_do_not_write_over_what_earlier_ones_read(page):
    """Somebody who types them one after another keeps the files that they brought."""
    read, faults = set(), []
    for words in commands(page):
        given = vars(cli._parser().parse_known_args(words)[0])
        out = given.pop("out", None)
        if out and given.get("out_kind") == "file" and str(out) in read:
            faults.append(" ".join(words))
        values = [
            one
            for value in given.values()
            for one in (value if isinstance(value, list) else [value])
        ]
        read.update(str(one) for one in values if isinstance(one, str | Path))
    assert not faults


def test_ci_runs_the_test_command_of_the_readme(readme):
    assert TEST_COMMAND in readme
    shown = subprocess.run(
        ["bash", str(ROOT / ".ci/run"), "--show"], capture_output=True, text=True, check=True
    )
    assert shown.stdout == f"{TEST_COMMAND}\n"
