"""The pages: tables before plots, nothing hidden, nothing that is no number."""

import io
import json

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from rich.console import Console

from jaxalign.experiments.moc import plots, report
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.statistics import evaluation_report
from jaxalign.moc.preferences import evaluation_points
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.plots import PALETTE

ODD = "a | b\n\n```\n# no heading\n"


def made(name, told, reach, held=0):
    told = np.asarray(told, float)
    count, size = told.shape
    noise = np.random.default_rng(1).normal(0, 0.1, (1, 12, size))
    return Evaluation(
        policy=name,
        scale=RewardScale(
            ("kind", "brief", "funny", "odd")[:size],
            *np.array([[0], [1], [0], [1]] * np.ones(size)),
        ),
        preferences=told,
        seen=np.arange(count) < count - held,
        rewards=np.array([reach(row) for row in told])[:, None] + noise,
        kl=np.full((count, 12), 1.25),
        entropy=np.full(count, 1.5),
        tokens=np.full(count, 30.0),
        prompts=tuple(f"question {number}" for number in range(12)),
        completions=tuple(
            tuple(f"answer {row} {n}: {ODD}" for n in range(12)) for row in range(count)
        ),
        samples=2,
        temperature=0.7,
    )


def reported(size, draws=20):
    told = evaluation_points(size).astype(float)
    few = np.eye(size)
    return evaluation_report(
        [
            made("moc", told, lambda row: row / np.linalg.norm(row), held=2),
            made("morlhf", few, lambda row: 0.9 * row),
            made("flat", told, lambda row: np.full(size, 0.4)),
        ],
        draws=draws,
    )


@pytest.fixture(scope="module")
def two():
    return reported(2)


def test_a_report_is_written_whole(two, tmp_path):
    report.write_report(tmp_path, two)
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.md", "front.png", "control.png",
    }  # fmt: skip
    assert json.loads(json.dumps(two, allow_nan=False)) == two
    page = (tmp_path / "report.md").read_text()
    table, picture, answers = (
        page.index(part) for part in ("| policy |", "![", "## Completions of moc")
    )
    assert table < picture < answers
    assert "nan" not in page.lower()
    assert "None" not in page


def test_the_page_says_what_was_measured(two):
    page = report.markdown(two)
    figures = two["policies"]["moc"]["parts"]["seen"]
    row = next(line for line in page.splitlines() if line.startswith("| moc | 9 seen"))
    assert f"{figures['tau']['kind']['value']:.2f}" in row
    assert "above (0, 0)" in page
    assert "2 completions each at temperature 0.7" in page
    # A constant policy has no tau: a dash, not a zero.
    flat = next(line for line in page.splitlines() if line.startswith("| flat | 11 seen"))
    assert flat.count("| - |") == 1
    assert flat.startswith("| flat | 11 seen | - | - |")
    assert page.count("preference (1, 0) (kind, brief):") == 3
    assert page.count("preference (") == 15


def test_answers_stand_as_they_are(two):
    lines = report.markdown(two).splitlines()
    assert "    # no heading" in lines
    assert "    ```" in lines
    assert not any(line.startswith(("# no", "```")) for line in lines)


def test_the_terminal_has_eighty_columns(two):
    for found in (two, reported(3, draws=2)):
        out = io.StringIO()
        Console(file=out, width=80).print(report.terminal(found))
        lines = out.getvalue().splitlines()
        assert max(map(len, lines)) <= 80
        assert "…" not in out.getvalue()
        assert any(line.startswith("morlhf") and "shared" in line for line in lines)


def test_the_sentence_names_the_figures(two):
    said = report.sentence(two)
    figures = two["policies"]["moc"]["parts"]["seen"]
    assert f"{figures['hypervolume']['value']:.3f}" in said
    assert f"{figures['regret']['direct_own']['value']:.3f}" in said
    alone = evaluation_report([made("one", [[0.5, 0.5]], lambda row: row)], draws=2)
    assert "tau-b - for kind, - for brief" in report.sentence(alone)
    assert "value table" not in report.sentence(alone)


@pytest.mark.parametrize("size", [2, 3])
def test_every_policy_is_drawn(size, tmp_path):
    found = reported(size, draws=2)
    plots.plot_front(found, tmp_path / "front.png")
    plots.plot_control(found, tmp_path / "control.png")
    for name in ("front.png", "control.png"):
        image = imread(tmp_path / name)[:, :, :3]
        for colour in PALETTE[:3]:
            close = np.abs(image - np.array(to_rgb(colour), np.float32)[None, None]).max(axis=2)
            assert (close < 0.02).sum() > 60, (name, colour)
        # Nothing is cut off: the margin is white.
        for edge in (image[:2], image[-2:], image[:, :2], image[:, -2:]):
            assert (edge == 1).all()
    assert not list(tmp_path.glob("*.part"))
