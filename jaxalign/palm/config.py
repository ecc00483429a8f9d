"""What can be set in a portfolio: tolerances, search, selection."""

import math
from dataclasses import dataclass, field
from typing import Literal

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.palm.policy_pool import PolicyPoolConfig

DRAWS, LEVEL = 1000, 0.95
"""Bootstrap draws of a band and its level, unless others are stated."""
GRID_LIMIT = 200_000
"""Most weights of a grid that are built without being confirmed."""
WeightKind = Literal["simplex", "signed"]
Criterion = Literal["additive", "share"]
ScaleKind = Literal["standard", "range", "none"]


@dataclass(frozen=True)
@checks_fields
class PalmConfig:
    """How policies are searched, and how few of them are kept.

    Attributes:
        weights: domain of users' weights: "simplex" for weights of 0 or more that sum to 1, or
            "signed" for likes and dislikes, absolute values summing to at most 1.
        eps: multiplicative step of the grid of weights, above 0 and below 1; smaller values make a
            finer grid, whose size grows fast with the number of rewards.
        delta: additive tolerance of the grid, in units of reward, above 0 and below 1.
        stop_eps: multiplicative tolerance at which the lazy search stops, 0 or more; it counts only
            where the optimum is positive. None takes `eps`.
        stop_delta: additive tolerance at which the lazy search stops, in units of reward, 0 or
            more; lower it when the certificate against the optimum is too loose. None takes
            `delta`.
        search: "lazy" stops as soon as the bounds meet the tolerance; "full" solves every target.
        targets: weights that must be served: "grid", the structured grid, or "corners", the points
            where two or more policies tie as best, which need no grid; signed weights always take
            "corners".
        max_calls: largest number of oracle calls. Those of the corners, from which every search
            starts, are made whatever it is, and count. null takes 10,000 where there is a grid, and
            150 where the points where policies tie take its place: their number grows with a power
            of the calls, so that 150 calls take about half a minute for 5 signed rewards. The
            certificate states the gap that is left.
        prune_eps: multiplicative tolerance of the cover, on top of the search's; 0 or more, below
            1. It is used where `size` is None.
        prune_delta: additive tolerance of the cover, in units of reward; 0 or more.
        size: None for the fewest members within the tolerances, or a number of members: the best
            portfolio of that size, the free reference policy not counted.
        criterion: what a portfolio of a given size minimises: the "additive" gap in standard
            deviations of the rewards, or the "share" of the improvement over the reference that is
            lost.
        selection: "exact" integer programs, or "greedy", which is faster and needs up to twice the
            members.
        time_limit: seconds for the selection; past them the best choice found is taken, and the
            report states how far from optimal it may be.
        refine: rounds in which the worst weights are added to the targets of the selection.
        grid_limit: largest number of grid weights that is built without being confirmed.
        confirm_grid: whether a grid above `grid_limit` is built all the same.
        floor: least improvement over the reference, in standard deviations of the rewards, of the
            users for whom the share lost is reported; above 0.

    Example:
        >>> from jaxalign.palm import PalmConfig
        >>> PalmConfig(eps=0.1, delta=0.05, stop_delta=None).tolerance
        (0.02, 0.05)
    """

    weights: WeightKind = "simplex"
    eps: float = 0.15
    delta: float = 0.1
    stop_eps: float | None = 0.02
    stop_delta: float | None = 0.005
    search: Literal["lazy", "full"] = "lazy"
    targets: Literal["grid", "corners"] = "grid"
    max_calls: int | None = None
    prune_eps: float = 0.02
    prune_delta: float = 0.005
    size: int | None = None
    criterion: Criterion = "additive"
    selection: Literal["exact", "greedy"] = "exact"
    time_limit: float = 60.0
    refine: int = 20
    grid_limit: int = GRID_LIMIT
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
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}: found {value}, expected above 0; correct it.")
        if self.search == "full" and self.by_ties:
            raise InputError(
                "search: found full, expected lazy where there is no grid to solve, with signed "
                "weights or targets corners; leave it out."
            )
        if self.size is not None and self.size < 1:
            raise InputError(f"size: found {self.size}, expected 1 or more; correct it.")

    @property
    def by_ties(self) -> bool:
        """Whether the points where policies tie take the place of a grid."""
        return self.weights == "signed" or self.targets == "corners"

    @property
    def call_limit(self) -> int:
        """Largest number of oracle calls."""
        if self.max_calls is not None:
            return self.max_calls
        return 150 if self.by_ties else 10_000

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
@checks_fields
class BuildConfig:
    """How a portfolio is built from candidates or trained policies, judged and compared.

    Attributes:
        rewards: names of the rewards, in order: columns of the candidates, or registered rewards of
            the answers of trained policies. Empty for those of `scale_from`, or else for the column
            `rewards` of objects or all columns of numbers (for the demo: brevity, positivity,
            simplicity).
        scale: what a reward of 0 and of 1 means: "standard" takes `clip` standard deviations below
            and above the mean, the same for all rewards; "range" takes `reward_range`; "none" takes
            rewards as they are, already between 0 and 1.
        scale_from: folder of another run, its scale.json, or scores of `jaxalign reward score`,
            whose mean and standard deviations are used. Set it to the run whose users are to be
            routed, so that their weights mean the same here. Empty for the scale that `jaxalign
            reward score` has written beside the candidates, else for the candidates' own.
        reward_range: lowest and highest raw reward that is accepted; required for scale "range",
            0 and 1 unless given for "none", any otherwise.
        clip: standard deviations on either side of the mean for scale "standard", above 0; 3 cuts
            off 1 % of a heavy-tailed reward, and the report states how much was cut off.
        beta: price of one nat of KL from the reference, in units of the scaled reward; smaller
            values allow policies further from the reference. With scale "standard" and clip 3, 0.1
            is 0.6 standard deviations. null takes 0.1 for candidates, which need one above 0, and
            0 for trained policies, whose training has paid for their KL.
        certify_share: share of the prompts, between 0 and 1, on which nothing is chosen and the
            portfolio is certified.
        seed: seed of the split of the prompts, 0 or more.
        draws: bootstrap draws over prompts for the bands, at least 1 / (1 - `level`); 0 for no
            bands over the sizes, where the certificate takes 1,000.
        level: probability, between 0 and 1, that a band holds for all users at once.
        compare: largest size at which portfolios are compared with uniform, random and k-center
            weights; 0 for no comparison.
        compare_draws: draws of random and k-center weights that are averaged.
        compare_seconds: seconds at most for choosing the members of one size.
        palm: tolerances or size, search and selection.
        policies: for `--policies`: which policies are made of the folders, and how they answer.

    Example:
        >>> from jaxalign.palm.config import BuildConfig
        >>> BuildConfig(scale="none").checked_range
        (0.0, 1.0)
    """

    rewards: tuple[str, ...] = ()
    scale: ScaleKind = "standard"
    scale_from: str = ""
    reward_range: tuple[float, float] | None = None
    clip: float = 3.0
    beta: float | None = None
    certify_share: float = 0.5
    seed: int = 0
    draws: int = DRAWS
    level: float = LEVEL
    compare: int = 10
    compare_draws: int = 5
    compare_seconds: float = 2.0
    palm: PalmConfig = field(default_factory=PalmConfig)
    policies: PolicyPoolConfig = field(default_factory=PolicyPoolConfig)

    def __post_init__(self) -> None:
        if self.beta is not None and not self.beta >= 0:
            raise InputError(f"beta: found {self.beta}, expected 0 or more; correct it.")
        for name in ("clip", "compare_seconds", "compare_draws"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name}: found {getattr(self, name)}, expected above 0.")
        for name in ("seed", "draws", "compare"):
            if getattr(self, name) < 0:
                raise InputError(f"{name}: found {getattr(self, name)}, expected 0 or more.")
        for name in ("certify_share", "level"):
            if not 0 < getattr(self, name) < 1:
                raise InputError(f"{name}: found {getattr(self, name)}, expected between 0 and 1.")
        least = math.ceil(1 / (1 - self.level) - 1e-9)  # below it no draw lies beyond the band
        if 0 < self.draws < least:
            raise InputError(
                f"draws: found {self.draws}, expected at least {least} for a band of level "
                f"{self.level:g}, or 0 for no bands over the sizes; raise it."
            )
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
    def band_draws(self) -> int:
        """Bootstrap draws of the certificate's band, which is always given."""
        return self.draws or DRAWS

    @property
    def price(self) -> float:
        """Price of one nat of KL where the portfolio is built from candidates."""
        return 0.1 if self.beta is None else self.beta

    @property
    def checked_range(self) -> tuple[float, float] | None:
        """Lowest and highest raw reward that is accepted, None for any."""
        return (0.0, 1.0) if self.scale == "none" and not self.reward_range else self.reward_range
