"""Lines of progress."""

from jaxalign.progress import Progress


def test_brackets_in_a_line_are_no_markup(capsys):
    Progress().say("a prompt [bold]of[/bold] [1, 2] and [/nothing]")
    assert capsys.readouterr().err.endswith("a prompt [bold]of[/bold] [1, 2] and [/nothing]\n")
