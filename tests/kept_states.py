"""What a training that fails says of the state that it leaves."""

import re


def failed_step(error):
    """The step whose loss is NaN, by an error that names its rows and keeps the state before it."""
    found = re.fullmatch(
        r"step (\d+): loss is nan; expected a finite number: .* "
        r"\(training rows .*, counted from 0; the state of step (\d+) is kept\)\.",
        str(error),
    )
    step, kept = int(found[1]), int(found[2])
    assert step == kept + 1
    return step
