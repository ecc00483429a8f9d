"""Settings of the documentation: `sphinx-build -W --keep-going -n docs build/docs`."""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("MPLBACKEND", "Agg")
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from escape import escape  # noqa: E402
from reference import write_reference  # noqa: E402

from jaxalign.version import __version__  # noqa: E402

write_reference()

project = "jaxalign"
author = "the jaxalign authors"
copyright = author
version = release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"jaxalign {__version__}"
html_show_sphinx = False

myst_enable_extensions = ["colon_fence", "dollarmath", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has the types
default_role = "code"  # docstrings put names between single backticks
suppress_warnings = ["ref.python"]  # a short name in a docstring that two modules define
nitpick_ignore_regex = [  # annotations name what other projects document
    ("py:class", ".*"),
    ("py:obj", r"typing\..*"),
]


def setup(app):
    """Docstrings are escaped before napoleon (priority 500) reads their sections."""

    def process(app, what, name, obj, options, lines):
        lines[:] = escape(lines)

    def link_results(app, name, source):  # a report in Markdown is a file here, and no page
        source[0] = source[0].replace("](../benchmarks/results/", "](path:../benchmarks/results/")
        source[0] = re.sub(r"(!\[[^\]]*\]\()path:", r"\1", source[0])

    def skip_field(app, what, name, obj, skip, options):  # the class's docstring explains it
        named_tuple = str(getattr(obj, "__doc__", "")).startswith("Alias for field number")
        return True if named_tuple else None

    app.connect("autodoc-process-docstring", process, priority=400)
    app.connect("autodoc-skip-member", skip_field)
    app.connect("source-read", link_results)
