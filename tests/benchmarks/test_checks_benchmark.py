"""What the checks of public functions cost in jitted programs, counted."""

import jax
import jax.numpy as jnp

from benchmarks import checks


def test_adaptation_costs_what_it_does_without_checks():
    case = checks.CASES["adapt, 1 step"]()
    checked, unchecked = (
        checks.count_work(checks.compile_side(case, side, unrolled=True)) for side in checks.SIDES
    )
    assert 0 < unchecked["flops"] <= checked["flops"] <= checks.LIMIT * unchecked["flops"]
    assert 0 < unchecked["bytes"] <= checked["bytes"] <= checks.LIMIT * unchecked["bytes"]


def test_programs_of_a_single_computation_differ():
    square = jnp.ones((3, 3))
    products = (jnp.matmul, lambda a, b: b @ a)
    texts = [checks.program_text(jax.jit(one).lower(square, square).compile()) for one in products]
    assert all("ENTRY" in text for text in texts)
    assert texts[0] != texts[1]
