"""What can be set in a portfolio: tolerances, search, selection."""

from dataclasses import dataclass
from typing import Literal

from jaxalign.errors import InputError

WeightKind = Literal["simplex", "signed"]
Criterion = Literal["additive", "share"]
ScaleKind = Literal["standard", "range", "none"]


@dataclass(frozen=True)
class PalmConfig:
    """How a portfolio is searched, thinned out and certified.

    Attributes:
        weights: users' weights lie on the "simplex", or are "signed", in the L1 ball.
        eps: multiplicative step of the grid.
        delta: additive tolerance of the grid, in units of reward.
        stop_eps: multiplicative tolerance at which the lazy search stops, None for eps; counts only
            where the optimum is positive.
        stop_delta: additive tolerance at which it stops, None for delta.
        search: "lazy" stops as soon as the bounds meet the tolerance, "full" solves every target.
        targets: "grid", the structured grid, or "corners", the points where two policies or more
            tie as best, which need no grid; signed weights always take "corners".
        max_calls: oracle calls at most, the start included.
        prune_eps: multiplicative tolerance of the cover, on top of the search's.
        prune_delta: additive tolerance of the cover, in units of reward.
        size: None for the fewest members within the tolerances; or a budget, the best of that size
            (the free reference policy not counted).
        criterion: what a budget keeps small: the "additive" gap in standard deviations of the
            rewards, or the "share" of the improvement over the reference that is lost.
        selection: "exact" integer programs, or "greedy".
        time_limit: seconds for the selection; past them the best found, with the gap shown.
        refine: rounds in which the worst weights of all are added to the targets of the selection.
        grid_limit: largest grid that is built without being confirmed.
        confirm_grid: build it whatever its size.
        floor: least improvement over the reference, in standard deviations of the rewards, at which
            the share lost is asked for.
    """

    weights: WeightKind = "simplex"
    eps: float = 0.15
    delta: float = 0.1
    stop_eps: float | None = 0.02
    stop_delta: float | None = 0.005
    search: Literal["lazy", "full"] = "lazy"
    targets: Literal["grid", "corners"] = "grid"
    max_calls: int = 10_000
    prune_eps: float = 0.02
    prune_delta: float = 0.005
    size: int | None = None
    criterion: Criterion = "additive"
    selection: Literal["exact", "greedy"] = "exact"
    time_limit: float = 60.0
    refine: int = 20
    grid_limit: int = 200_000
    confirm_grid: bool = False
    floor: float = 0.1

    def __post_init__(self) -> None:
        check_tolerances(self.eps, self.delta)
        for name in ("stop_eps", "stop_delta", "prune_eps", "prune_delta", "refine"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise InputError(f"{name}: found {value}, expected 0 or more; correct it.")
        if self.tolerance == (0.0, 0.0) and self.search == "lazy":
            raise InputError(
                "stop_eps, stop_delta: found 0 and 0, expected one above 0; bounds meet exactly "
                "nowhere but at solved weights."
            )
        if not self.prune_eps < 1:
            raise InputError(f"prune_eps: found {self.prune_eps}, expected below 1; correct it.")
        if self.prune_eps == self.prune_delta == 0 and self.size is None:
            raise InputError(
                "prune_eps, prune_delta: found 0 and 0, expected one above 0, or a size; no small "
                "portfolio is exactly optimal for everyone."
            )
        for name in ("max_calls", "time_limit", "floor", "grid_limit"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"{name}: found {getattr(self, name)}, expected above 0; correct it."
                )
        if self.size is not None and self.size < 1:
            raise InputError(f"size: found {self.size}, expected 1 or more; correct it.")

    @property
    def tolerance(self) -> tuple[float, float]:
        """Multiplicative and additive tolerance at which the lazy search stops."""
        eps = self.eps if self.stop_eps is None else self.stop_eps
        return eps, self.delta if self.stop_delta is None else self.stop_delta


def check_tolerances(eps: float, delta: float) -> None:
    """Refuse tolerances that no grid can be built for.

    Raises:
        InputError: eps or delta outside (0, 1).
    """
    for name, value in (("eps", eps), ("delta", delta)):
        if not 0 < value < 1:
            raise InputError(f"{name}: found {value}, expected between 0 and 1; correct it.")
