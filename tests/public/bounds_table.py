"""Entries of `jaxalign.palm`: covers, bounds and certificates."""

import itertools

import numpy as np
from edge_table import Entry, empty, refusals
from palm_table import VALUES, gap

from jaxalign import palm

COVERS = np.array([[True, True, False], [False, True, True], [True, False, False], [False] * 3])
LOSSES = np.array([[0.0, 1.0, 0.5], [1.0, 0.0, 0.25], [0.5, 0.75, 0.25]])
POLICIES = np.array([[1.0, 0.0], [0.0, 1.0], [0.75, 0.5]])
SOLVED = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
GRID = np.stack([np.linspace(0, 1, 9), np.linspace(1, 0, 9)], axis=1)
# Of two policies on three prompts.
BY_PROMPT = np.array([
    [[1.0, 0.0], [0.75, 0.25], [1.25, 0.5]],
    [[0.0, 1.0], [0.25, 0.75], [0.5, 1.0]],
])  # fmt: skip
SPREAD = np.ones(2)


def fewest(covers):
    """By every choice of policies."""
    counts = range(1, len(covers) + 1)
    choices = itertools.chain.from_iterable(
        itertools.combinations(covers > 0, count) for count in counts
    )
    return next(len(rows) for rows in choices if np.any(rows, axis=0).all())


def least_worst(losses, free):
    return min(np.minimum(row, free).max() for row in losses)


def ties(policies):
    """Where two policies are the best at once, by their crossings, and the two corners."""
    points = {0.0, 1.0}
    for one, other in itertools.combinations(policies, 2):
        slope = (one - other) @ [1, -1]
        place = -(one - other)[1] / slope if slope else 0
        if 0 < place < 1:
            at = np.array([place, 1 - place])
            if one @ at >= (policies @ at).max() * (1 - 1e-9):
                points.add(place)
    found = np.array(sorted(points))
    return np.stack([found, 1 - found], axis=1)


def upper_bound(values):
    """The convex interpolation of three solved values."""
    return np.interp(GRID[:, 0], [0, 0.5, 1], [values[1], values[2], values[0]])


def report(pool, members):
    found = palm.report(pool, members, np.zeros(2), SPREAD, np.eye(2))
    return found.additive.value, found.additive_sd.value


def worst_gaps(pool, members):
    found = gap(pool, np.concatenate([members, np.zeros((1, 2))]))
    return found, found


def on_prompts(values):
    members = np.concatenate([0 * VALUES[:1, None], VALUES[1:, None]]) + np.zeros((2, 3, 2))
    return palm.held_out(values, members, SPREAD, np.eye(2), draws=4).report.additive.value


def gap_on_prompts(values):
    return gap(values.mean(1), np.concatenate([0 * VALUES[:1], VALUES[1:]]))


def one_or_more(name, place):
    """The sentences for weights that are not finite."""
    return {
        probe: f"{name}[{place}] is {shown}; expected a finite weight of 0 or more: correct it, "
        "with 0 for what does not count."
        for probe, shown in (("nan live", "nan"), ("infinity live", "infinity"))
    }


def not_covered(count):
    return (
        f"cover: found {count} weights that no policy is good enough for, expected none; raise "
        "prune_eps or prune_delta, or solve more policies."
    )


_ALL = {"one row": "all of them are needed", "zero rows": "all of them are needed"}

BOUNDS = {
    "cover": Entry(
        lambda covers: len(palm.cover(covers).members), {"covers": COVERS}, fewest, "covers",
        rows=("covers",),
        refused={
            **one_or_more("covers", "3, 2"), "zero rows": not_covered(3),
            "one row": not_covered(1),
            "wrong rank": refusals("covers", "", "P W", "1, 4, 3")["wrong rank"],
        },
    ),
    "best_of_size": Entry(
        lambda losses, free: palm.best_of_size(losses, 1, free).worst,
        {"losses": LOSSES, "free": np.array([0.75, 2.0, 2.0])}, least_worst, "losses",
        rows=("losses",), tolerance=1e-9,
        refused={
            **refusals("losses", "2, 2", "P W", "1, 3, 3"), **empty("losses", "0, 3", "P W", "P"),
        },
    ),
    "tie_points": Entry(
        lambda policies: palm.tie_points(policies, np.eye(2)), {"policies": POLICIES}, ties,
        "policies", rows=("policies",), tolerance=1e-9,
        refused={
            **refusals("policies", "2, 1", "M D", "1, 3, 2"),
            **empty("policies", "0, 2", "M D", "M"),
        },
    ),
    "upper_facets": Entry(
        lambda values: (GRID @ palm.upper_facets(SOLVED, values).T).max(1),
        {"values": np.array([1.0, 1.25, 0.75])}, upper_bound, "values", tolerance=1e-9,
        refused=refusals("values", "2", "n", "1, 3"), skipped=_ALL,
    ),
    "report": Entry(
        report, {"pool": POLICIES, "members": VALUES}, worst_gaps, "pool", rows=("pool",),
        scaled=("pool", "members"), tolerance=1e-3,
        refused={
            **refusals("pool", "2, 1", "C D", "1, 3, 2"), **empty("pool", "0, 2", "C D", "C"),
        },
    ),
    "held_out": Entry(
        on_prompts, {"values": BY_PROMPT}, gap_on_prompts, "values", rows=("values",),
        tolerance=1e-3, skipped={"scale 1e-8": "against members of size 1"},
        refused={
            **refusals("values", "1, 2, 1", "C X D", "1, 2, 3, 2"),
            **empty("values", "0, 3, 2", "C X D", "C"),
        },
    ),
    "usage": Entry(
        lambda counts: palm.usage(counts).share, {"counts": np.array([2.0, 0.0, 6.0])},
        lambda counts: counts / counts.sum(), "counts", rows=("counts",), tolerance=1e-6,
        refused={
            **one_or_more("counts", "2"), **empty("counts", "0", "M", "M"),
            "wrong rank": refusals("counts", "", "M", "1, 3")["wrong rank"],
        },
    ),
}  # fmt: skip
