"""Tables and plots that all reports share."""

import io

import pytest
from matplotlib.image import imread
from rich.console import Console

from jaxalign.errors import InputError
from jaxalign.runs import plots, tables


def test_markdown_escapes_bars():
    text = tables.markdown_table(["a|b", "n"], [["x|y", "1"]], left=2)
    assert text == "| a\\|b | n |\n| --- | --- |\n| x\\|y | 1 |\n"


def test_terminal_table_keeps_markup_as_text():
    console = Console(width=40, file=io.StringIO())
    console.print(tables.TerminalTable(["method", "gain"], [["[red]bayes", "+1"]]))
    assert "[red]bayes" in console.file.getvalue()


@pytest.mark.parametrize("width", [80, 60])
def test_a_table_that_is_too_wide_is_printed_in_parts(width):
    names = ["brevity", "positivity", "simplicity", "warmth", "structure"]
    header = ["member", *[f"w {name}" for name in names], *names, "KL"]
    rows = [[str(number), *["0.123"] * 10, "1.000"] for number in range(3)]
    console = Console(width=width, file=io.StringIO())
    console.print(tables.TerminalTable(header, rows))
    said = console.file.getvalue()
    assert "…" not in said
    assert all(name in said for name in header)
    parts = said.split("\n\n")
    assert len(parts) == (2 if width == 80 else 3)
    assert all(part.lstrip().startswith("member") for part in parts)


def test_a_plot_is_written_whole(tmp_path):
    figure = plots.new_figure(3, 2, dpi=50)
    axes = figure.subplots()
    plots.draw_curve(axes, [1, 2], [0.5, 0.6], ([0.5000001, 0.5], [0.6, 0.7]), "cost in $", 0)
    plots.draw_interval(axes, 1, 0.2, 0.4, plots.PALETTE[1], outer=True)
    plots.tidy(axes)
    plots.legend_right(axes)
    plots.save_png(figure, tmp_path / "p.png")
    assert imread(tmp_path / "p.png").shape == (100, 150, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["p.png"]
    with pytest.raises(InputError, match="nothing to draw"):
        plots.refuse_empty([])


def test_a_legend_stays_inside_the_figure():
    names = [f"a policy with a long name {number}" for number in range(6)]
    figure = plots.new_figure(6, 4)
    axes = figure.subplots()
    for name in names:
        axes.plot([0, 1], label=name)
    plots.legend_below(figure, axes, 5)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert legend.get_window_extent().width <= figure.bbox.width
    assert [text.get_text() for text in legend.get_texts()] == names
