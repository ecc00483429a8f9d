"""Rules of the code base that no linter knows: names, types, files, examples."""

import ast
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "jaxalign"
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text("utf-8")
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.relative_to(PACKAGE).parts[0] != "kernels"
}
TREES = {name: ast.parse(text) for name, text in SOURCES.items()}
LINEN = {
    "models/decoder.py", "models/gpt2.py", "models/encoder.py", "models/heads.py", "mrm/base.py",
    "mrm/baselines/gpo.py", "mrm/baselines/vpl.py",
}  # fmt: skip


def imported(tree):
    """Return the modules that a module imports, wherever it does."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_no_class_name_stands_twice():
    places = defaultdict(set)
    for name, tree in TREES.items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].add(name)
    assert {cls: found for cls, found in places.items() if len(found) > 1} == {}


def test_no_module_is_hidden_by_a_function_of_its_name():
    hidden = []
    for name, tree in TREES.items():
        folder = PACKAGE / Path(name).parent
        if Path(name).name != "__init__.py":
            continue
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module != f"jaxalign.{folder.name}":
                hidden += [
                    f"{folder.name}.{alias.asname or alias.name}"
                    for alias in node.names
                    if (folder / f"{alias.asname or alias.name}.py").exists()
                    and f"jaxalign.{folder.relative_to(PACKAGE).as_posix().replace('/', '.')}"
                    != node.module
                ]
    assert hidden == []


def test_files_are_renamed_into_place_in_one_module():
    renames = re.compile(r"os\.(replace|rename)\(|\.rename\(")
    found = {name for name, text in SOURCES.items() if renames.search(text)}
    # Orbax writes checkpoints as folders of its own.
    assert found <= {"files.py", "train/checkpoint.py"}


def test_folders_of_users_are_found_in_one_module():
    # Path.expanduser raises RuntimeError for an unknown ~NAME. `recognise` asks os.path, which
    # leaves it as it is.
    found = {name for name, text in SOURCES.items() if re.search(r"\)?\.expanduser\(", text)}
    assert found == {"files.py", "recognise.py"}


def test_types_are_stated():
    lines = uses = 0
    for name, tree in TREES.items():
        docs = [
            ast.get_docstring(node, clean=False) or ""
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module)
        ]
        text = SOURCES[name]
        code = [line for line in text.splitlines() if line.strip() and line.strip()[0] != "#"]
        lines += len(code) - sum(doc.count("\n") + 1 for doc in docs if doc)
        uses += len(re.findall(r"\bAny\b", text)) - len(re.findall(r"import .*\bAny\b", text))
    assert 1000 * uses / lines <= 10, f"{uses} uses of Any in {lines} lines"


def test_control_flow_has_no_assertions():
    found = [
        f"{name}:{node.lineno}"
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
    ]
    assert found == []


def test_linen_stays_behind_few_files():
    found = {
        name
        for name, tree in TREES.items()
        if any(module.startswith("flax.linen") for module in imported(tree))
    }
    assert found <= LINEN, sorted(found - LINEN)


@pytest.mark.parametrize("name", [n for n in SOURCES if Path(n).name == "__init__.py"])
def test_all_names_exist(name):
    module = "jaxalign." + str(Path(name).parent).replace("/", ".")
    found = __import__(module.removesuffix(".."), fromlist=["x"]) if name != "__init__.py" else None
    for public in getattr(found, "__all__", ()):
        assert hasattr(found, public), f"{module}.{public}"


def test_no_two_files_of_tests_have_one_name():
    """pytest imports them by name alone, and refuses the second one."""
    names = [path.name for path in Path(__file__).parent.rglob("test_*.py")]
    assert len(names) == len(set(names)), sorted({n for n in names if names.count(n) > 1})


def test_results_name_no_path_of_the_machine_that_made_them():
    results = sorted((PACKAGE.parent / "benchmarks" / "results").rglob("*.json"))
    commands = {
        str(path): found["command"]
        for path in results
        if isinstance(found := json.loads(path.read_text("utf-8")).get("machine"), dict)
        and "command" in found
    }
    assert commands
    absolute = {k: v for k, v in commands.items() if any(w.startswith("/") for w in v.split())}
    assert not absolute
