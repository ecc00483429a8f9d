"""CONTRIBUTING's table of imports is what import-linter enforces."""

import re
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
