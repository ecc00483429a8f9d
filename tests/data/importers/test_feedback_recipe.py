"""A new format is one file and one line: the recipe of CONTRIBUTING, followed word for word."""

import json
import re
import sys
import types
from pathlib import Path

from jaxalign.cli import main
from jaxalign.data.importers import registry

RECIPE = Path(__file__).resolve().parents[3] / "CONTRIBUTING.md"


def test_a_format_added_by_the_recipe_is_recognised(monkeypatch, tmp_path):
    section = RECIPE.read_text("utf-8").partition("### A format of feedback\n")[2]
    file, line = re.findall(r"```python\n(.*?)```", section.partition("\n### ")[0], re.DOTALL)
    name = re.search(r"`jaxalign/data/importers/(\w+)\.py`", section)[1]
    monkeypatch.setattr(registry, "_FORMATS", dict(registry._FORMATS))
    module = types.ModuleType(f"jaxalign.data.importers.{name}")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(sys.modules["jaxalign.data.importers"], name, module, raising=False)
    exec(file, vars(module))
    assert len(line.strip().splitlines()) == 1
    exec(line, {})
    source, out = tmp_path / "in.csv", tmp_path / "out.jsonl"
    source.write_text("person,liked,other\n7,yes,no\n")
    assert main(["import", "auto", str(source), "--out", str(out)]) == 0
    assert json.loads(out.read_text()) == {"user": "7", "chosen": "yes", "rejected": "no"}
