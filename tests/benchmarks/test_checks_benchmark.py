"""What the checks of public functions cost in jitted programs, counted."""

from benchmarks import checks


def test_adaptation_costs_what_it_does_without_checks():
    case = checks.CASES["adapt, 1 step"]()
    checked, unchecked = (
        checks.count_work(checks.compile_side(case, side, unrolled=True)) for side in checks.SIDES
    )
    assert 0 < unchecked["flops"] <= checked["flops"] <= checks.LIMIT * unchecked["flops"]
    assert 0 < unchecked["bytes"] <= checked["bytes"] <= checks.LIMIT * unchecked["bytes"]
