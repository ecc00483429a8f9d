"""The `>>>` examples of every docstring run, each in a namespace of its own."""

import ast
import doctest
import io
from pathlib import Path
from typing import NamedTuple

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("jaxalign", "kernels")  # jaxalign/kernels is a link to the second
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
EXPECTED = 200  # public definitions with an example; only ever raised


class Docstring(NamedTuple):
    """A docstring with an example, and where it stands."""

    path: Path
    name: str  # module.Class.function
    public: bool
    line: int
    text: str


def docstrings(source: str, module: str, path: Path) -> list[Docstring]:
    """The docstrings of a module's source that hold an example, read without importing it."""
    found = []

    def visit(node, name, public):
        text = ast.get_docstring(node, clean=False)
        if text and ">>>" in text:
            found.append(Docstring(path, name, public, node.body[0].lineno - 1, text))
        for child in node.body:
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                visit(child, f"{name}.{child.name}", not child.name.startswith("_"))

    visit(ast.parse(source), module, False)
    return found


def of_package(package: str) -> list[Docstring]:
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[:2] != ("jaxalign", "kernels"):
            module = ".".join(parts).removesuffix(".__init__")
            found += docstrings(path.read_text(encoding="utf-8"), module, path)
    return found


FOUND = [docstring for package in PACKAGES for docstring in of_package(package)]


def failures(docstring: Docstring) -> str:
    """Run the examples of a docstring; return what doctest prints about those that fail."""
    test = doctest.DocTestParser().get_doctest(
        docstring.text,
        {"__name__": "__main__"},
        docstring.name,
        str(docstring.path),
        docstring.line,
    )
    said = io.StringIO()
    doctest.DocTestRunner(verbose=False, optionflags=OPTIONS).run(test, out=said.write)
    return said.getvalue()


@pytest.mark.parametrize("docstring", FOUND, ids=lambda docstring: docstring.name)
def test_example(docstring, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = dict(jax.config.values)
    said = failures(docstring)
    assert not said, said
    after = dict(jax.config.values)
    assert after == before, "an example changes the settings of jax"


def test_enough_public_definitions_have_an_example():
    shown = [docstring.name for docstring in FOUND if docstring.public]
    assert len(shown) >= EXPECTED, f"{len(shown)} public definitions have an example: {shown}"


SOURCE = '''
"""A module.

>>> 1 + 1
{total}
"""

def double(x):
    """Twice.

    >>> double = lambda x: 2 * x
    >>> double(2)
    {double}
    """

class _Hidden:
    def method(self):
        """A namespace of its own.

        >>> "double" in globals()
        False
        """
'''


def test_every_docstring_is_found_and_runs_alone():
    good = docstrings(SOURCE.format(total=2, double=4), "module", Path("module.py"))
    assert [(docstring.name, docstring.public) for docstring in good] == [
        ("module", False),
        ("module.double", True),
        ("module._Hidden.method", True),
    ]
    assert [failures(docstring) for docstring in good] == ["", "", ""]


def test_a_failing_example_is_named():
    _, double, _ = docstrings(SOURCE.format(total=2, double=5), "module", Path("module.py"))
    said = failures(double)
    assert 'File "module.py", line 12, in module.double' in said
    assert "Expected:\n    5\nGot:\n    4" in said


def test_a_warning_in_an_example_fails():
    text = 'import warnings\n>>> import warnings\n>>> warnings.warn("old")\n'
    said = failures(Docstring(Path("module.py"), "module", False, 0, text))
    assert "UserWarning: old" in said


def test_names_that_an_example_does_not_import_are_unknown():
    text = ">>> jax.numpy.zeros(2).shape\n(2,)\n"
    said = failures(Docstring(Path("module.py"), "module", False, 0, text))
    assert "NameError" in said
