"""Tables and pictures: what they say, and that they arrive whole."""

import io
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from jaxalign.errors import InputError
from jaxalign.experiments.mrm import plots
from jaxalign.experiments.mrm.tables import markdown_tables, terminal_tables
from jaxalign.metrics import users

METHODS = ("bt", "mrm_published", "mrm", "hierarchical_bayes", "a|b$c", "f", "g", "one_per_user")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(0)
    mask = np.ones((50, 8), bool)
    items = rng.permuted(np.tile(np.arange(20), (50, 1)), axis=1)
    found = {}
    for regime in ("new users, known items", "known users, new items", "new users, new items"):
        base = rng.random(mask.shape)
        pairs = (items[:, :8], items[:, 8:16]) if regime != "known users, new items" else ()
        found[regime] = {
            name: users.judge(
                base if name == "bt" else rng.random(mask.shape), base, base, mask, *pairs, draws=50
            )
            for name in METHODS
        }
    return found


def test_markdown(report):
    lines = markdown_tables(report).splitlines()
    assert lines[0] == "**new users, known items: 50 users, 400 pairs; gain over bt**"
    assert sum(line.startswith("| bt |") for line in lines) == 3
    assert r"| a\|b$c |" in "\n".join(lines)
    result = report["known users, new items"]["mrm"]
    row = next(line for line in lines[14:] if line.startswith("| mrm |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    low, high = 100 * result["gain_low"], 100 * result["gain_high"]
    assert cells == [
        "mrm",
        f"{100 * result['accuracy']:.1f}",
        f"{100 * result['gain']:+.1f}",
        f"{low:+.1f}..{high:+.1f}",
        f"{result['nll']:.3f}",
        f"{100 * result['calibration_error']:.1f}",
        *(f"{100 * result[key]:.1f}" for key in ("worst_10_split", "worst_10")),
        *(f"{100 * result[key]:.1f}" for key in ("harmed", "harm_floor")),
        f"{100 * result['harm_excess']:+.1f}",
        f"{100 * result['flipped']:.1f}",
    ]


def test_terminal_fits_eighty_columns(report):
    console = Console(width=80, record=True, file=io.StringIO())
    with console.file:
        console.print(terminal_tables(report))
    text = console.export_text()
    assert "…" not in text
    assert all(len(line.rstrip()) <= 80 for line in text.splitlines())
    assert text.count("hierarchical_bayes") == 3
    assert "new users, new items: 50 users, 400 pairs; gain over bt in points" in text


def test_missing_figures_are_dashes(report):
    result = dict(report["new users, new items"]["mrm"])
    del result["worst_10_split"]
    text = markdown_tables({"r": {"mrm": result, "bt": {**result, "users": 3, "gain": 0.0}}})
    assert text.startswith("**r; gain over bt**")
    bt = text.splitlines()[-1].split(" | ")
    assert bt[2:5] == ["-", "-", "-"]
    assert bt[7] == "-"


def test_plots_are_png_and_leave_nothing_else(report, tmp_path):
    rng = np.random.default_rng(0)
    p, mask = rng.random((30, 8)), np.ones((30, 8), bool)
    curves = {name: [(n, 0.6, 0.6, 0.62) for n in (0, 5, 40)] for name in METHODS}
    gains = {name: np.append(rng.normal(0, 0.1, 30), np.nan) for name in METHODS}
    tables = {name: users.reliability(p, mask) for name in METHODS}
    plots.plot_gains(report, tmp_path / "gains.png")
    plots.plot_shots(curves, tmp_path / "shots.png")
    plots.plot_user_gains(gains, str(tmp_path / "user_gains.png"))
    plots.plot_reliability(tables, tmp_path / "reliability.png")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["gains.png", "reliability.png", "shots.png", "user_gains.png"]
    assert all((tmp_path / name).read_bytes().startswith(PNG) for name in files)


def test_a_failed_plot_leaves_the_old_one(tmp_path):
    path = tmp_path / "gains.png"
    path.write_bytes(b"old")
    for draw in (plots.plot_gains, plots.plot_shots, plots.plot_user_gains, plots.plot_reliability):
        with pytest.raises(InputError, match="nothing to draw"):
            draw({}, path)
    with pytest.raises(InputError, match="nothing to draw"):
        plots.plot_user_gains({"bt": [np.nan]}, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_metrics_know_no_method():
    code = (
        "import sys, jaxalign.metrics.users, jaxalign.metrics.calibration;"
        "bad = [m for m in sys.modules if m.startswith(('jaxalign.mrm', 'jaxalign.data'))"
        " or m in ('jax', 'torch', 'matplotlib.pyplot')];"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
