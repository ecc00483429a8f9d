"""Lines of progress."""

import time

import pytest

from jaxalign import progress
from jaxalign.progress import Progress, track


@pytest.fixture
def _often(monkeypatch):
    monkeypatch.setattr(progress, "_SAY_EVERY", 0.005)


def test_brackets_in_a_line_are_no_markup(capsys):
    Progress().say("a prompt [bold]of[/bold] [1, 2] and [/nothing]")
    assert capsys.readouterr().err.endswith("a prompt [bold]of[/bold] [1, 2] and [/nothing]\n")


@pytest.mark.usefixtures("_often")
@pytest.mark.parametrize(("total", "said"), [(4, "adding: 3 of 4, 0 s left"), (None, "adding: 3")])
def test_without_a_terminal_lines_say_how_far_the_work_is(capsys, total, said):
    for _ in track("adding", [[1, 2], [3]], total, len, show=True):
        time.sleep(0.01)
    # The first batch is there at once, but on a busy machine its wait may be remarked on.
    lines = [line for line in capsys.readouterr().err.splitlines() if "at work" not in line]
    assert len(lines) == 2
    assert lines[1].endswith(said)
    list(track("adding", [[1, 2], [3]], total, len, show=False))
    assert not capsys.readouterr().err


def test_a_block_without_progress_of_its_own_is_said_to_be_at_work(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SAY_EVERY", 0.01)
    with Progress().waiting("fitting"):
        time.sleep(0.1)
    assert "fitting: at work for 0 s" in capsys.readouterr().err


def test_of_blocks_inside_one_another_the_innermost_is_said_to_be_at_work(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SAY_EVERY", 0.01)
    lines = Progress()
    with lines.waiting("gates"):
        with lines.waiting("fitting"):
            time.sleep(0.1)
        inner = capsys.readouterr().err
        time.sleep(0.1)
    assert "fitting: at work" in inner
    assert "gates: at work" not in inner
    assert "gates: at work" in capsys.readouterr().err


def test_a_first_batch_that_takes_long_is_said_to_be_at_work(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SAY_EVERY", 0.01)

    def compiled():
        time.sleep(0.1)
        yield [1]

    assert list(track("adapting", compiled(), 1, len, show=True)) == [[1]]
    assert "adapting: at work for 0 s" in capsys.readouterr().err
