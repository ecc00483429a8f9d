"""Sizes that tests and benchmarks share."""

from typing import NamedTuple


class SweepShape(NamedTuple):
    """W weights, X prompts, C candidates, R rewards."""

    weights: int
    prompts: int
    candidates: int
    rewards: int


class RouteShape(NamedTuple):
    """U users, M members, R rewards."""

    users: int
    members: int
    rewards: int


SWEEPS = {
    "uneven": SweepShape(71, 13, 9, 3),
    "golden": SweepShape(1657, 40, 60, 3),
    "grid_d3": SweepShape(4921, 1000, 64, 3),
}
ROUTES = {
    "uneven": RouteShape(1037, 5, 3),
    "million": RouteShape(1_000_000, 64, 5),
    "ten_million": RouteShape(10_000_000, 64, 5),
}
