"""What can be set in a portfolio: tolerances, search, selection."""

from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class BuildConfig:
    """How a portfolio is built from candidates.

    Attributes:
        rewards: columns of the rewards; empty for all numeric ones (of the demo: brevity,
            positivity, simplicity).
        scale: "standard" puts `clip` standard deviations either side of the mean to 0 and 1, alike
            for all rewards; "range" the stated range; "none" takes rewards in [0, 1] as they are.
        reward_range: what every raw reward must lie in; needed by "range", 0 to 1 for "none".
        clip: standard deviations of "standard"; 3 leaves 1 % of a heavy tail clipped.
        beta: price of one nat of KL, in units of the scaled reward; .1 is .6 standard deviations.
        certify_share: share of the prompts that nothing is chosen on, for the certificate.
        seed: of the split of the prompts.
        draws: of the bootstrap over prompts; 0 for no band over the sizes.
        level: of the band, over all users at once.
        compare: sizes 1 to this are compared with uniform, random and k-center weights; 0 for none.
        compare_draws: of the random and the k-center weights, averaged.
        compare_seconds: at most for choosing the members of one size.
        palm: tolerances or size, search, selection.
    """

    rewards: tuple[str, ...] = ()
    scale: ScaleKind = "standard"
    reward_range: tuple[float, float] | None = None
    clip: float = 3.0
    beta: float = 0.1
    certify_share: float = 0.5
    seed: int = 0
    draws: int = 1000
    level: float = 0.95
    compare: int = 10
    compare_draws: int = 5
    compare_seconds: float = 2.0
    palm: PalmConfig = field(default_factory=PalmConfig)

    def __post_init__(self) -> None:
        for name in ("beta", "clip", "compare_seconds", "compare_draws"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: found {getattr(self, name)}, expected above 0.")
        for name in ("seed", "draws", "compare"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: found {getattr(self, name)}, expected 0 or more.")
        for name in ("certify_share", "level"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected between 0 and 1.")
        if self.scale == "range" and self.reward_range is None:
            raise InputError("reward_range: found none, expected two numbers for scale: range.")
        if self.reward_range is not None and not self.reward_range[0] < self.reward_range[1]:
            raise InputError(
                f"reward_range: found {self.reward_range[0]:g} to {self.reward_range[1]:g}, "
                "expected the lower end first."
            )
        low, high = self.checked_range or (0.0, 1.0)
        if self.scale == "none" and not (low >= 0 and high <= 1):
            raise InputError(
                f"reward_range: found {low:g} to {high:g}, expected it within 0 to 1 for scale: "
                "none; take scale: range."
            )

    @property
    def checked_range(self) -> tuple[float, float] | None:
        """What raw rewards must lie in."""
        return (0.0, 1.0) if self.scale == "none" and not self.reward_range else self.reward_range
