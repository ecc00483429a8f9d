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
    console.print(tables.terminal_table(["method", "gain"], [["[red]bayes", "+1"]]))
    assert "[red]bayes" in console.file.getvalue()


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
