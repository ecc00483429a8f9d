"""The closed-form worlds of the specification, float64."""

import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from golden_numbers import golden
from worlds import cover_interval, net_values

from jaxalign import palm


@pytest.mark.parametrize("size", [2, 3])
def test_grid_and_sweep(size, x64):
    world = golden(f"palm/world_d{size}")
    grid = palm.weight_grid(size, 0.15, 0.1)
    np.testing.assert_allclose(grid, world["grid"], rtol=0, atol=1e-14)
    assert palm.grid_size(size, 0.15, 0.1) == json.loads(str(world["info"]))["grid"]
    inputs = (jnp.asarray(world[name]) for name in ("rewards", "log_ref", "grid"))
    values, expected, kl = palm.sweep(*inputs, 0.1)
    chex.assert_trees_all_close(values, world["values"], rtol=0, atol=1e-10)
    chex.assert_trees_all_close(expected, world["expected_rewards"], rtol=0, atol=1e-10)
    chex.assert_trees_all_close(kl, world["kl"], rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("kind", ["additive", "multiplicative"])
def test_worst_gaps(size, kind):
    world = golden(f"palm/world_d{size}")
    values = net_values(world)
    gap, weight = palm.worst_gap(values, values[world["optimal_members"]], kind)
    assert abs(gap - world[f"pool_gap_{kind}"]) < 1e-7
    best = (values @ weight).max()
    lost = best - (values[world["optimal_members"]] @ weight).max()
    assert abs(gap - (lost if kind == "additive" else lost / best)) < 1e-9


@pytest.mark.parametrize(("size", "fewest"), [(2, 4), (3, 5)])
def test_smallest_covers(size, fewest):
    world = golden(f"palm/world_d{size}")
    scores = world["grid"] @ net_values(world).T
    covers = (scores >= 0.98 * world["values"][:, None] - 1e-12).T
    found = palm.cover(covers)
    assert len(found.members) == fewest
    assert found.optimal
    assert covers[found.members].any(axis=0).all()
    if size == 2:
        order = np.argsort(world["grid"][:, 0])
        assert len(cover_interval(covers[:, order])) == fewest


def test_lazy_search_certifies_with_few_calls(x64):
    world = golden("palm/world_d3")
    oracle = palm.ClosedForm(world["rewards"], world["log_ref"], 0.1)
    state = palm.search(oracle, palm.PalmConfig(stop_eps=0.02, stop_delta=0.0))
    assert state.done
    assert len(state.weights) <= 30
    known = state.policies.rewards - 0.1 * state.policies.kl[:, None]
    best = (world["grid"] @ known.T).max(axis=1)
    assert (best >= 0.98 * world["values"] - 1e-9).all()


def test_grid_counts():
    assert palm.grid_size(2, 0.1, 0.05) == 67
    assert palm.grid_size(3, 0.1, 0.05) == 4921
    assert palm.grid_size(3, 0.15, 0.1) == 1657
