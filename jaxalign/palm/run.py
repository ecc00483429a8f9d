"""From candidates to a certified portfolio in a folder: resumable call by call."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.palm import pages
from jaxalign.palm.certificate import HeldOut
from jaxalign.palm.config import PalmConfig, ScaleKind
from jaxalign.palm.files import Candidates
from jaxalign.palm.grid import grid_size
from jaxalign.palm.oracle import ClosedForm
from jaxalign.palm.portfolio import Portfolio, build
from jaxalign.palm.provenance import Provenance, candidate_scale, scaled
from jaxalign.palm.search import SearchState, load_state, search
from jaxalign.palm.sizes import compare_sizes, smallest
from jaxalign.progress import Progress
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.run_dir import open_run_dir
from jaxalign.version import __version__

STATE = "search.npz"


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


def run(
    config: BuildConfig,
    candidates: Candidates,
    source: str,
    out: Path,
    resume: bool = False,
    confirm: bool = False,
) -> tuple[Portfolio, dict[str, Any]]:
    """Build, certify on other prompts, compare sizes, and write it all to a folder.

    Args:
        config: of the build.
        candidates: of all prompts, raw rewards.
        source: name of the data, for the report.
        out: folder of portfolio, report and plots.
        resume: go on with an unfinished build of the same settings.
        confirm: build the grid whatever its size.

    Returns:
        Portfolio, and the report as in report.json.

    Raises:
        InputError: candidates that cannot be used, a grid above its limit, or a folder that holds
            something else.
    """
    say = Progress().say
    show_grid(config.palm, len(candidates.names), say, confirm)
    first, second = split(candidates, config.certify_share, config.seed)
    scale = candidate_scale(first, config.scale, config.clip, config.reward_range)
    provenance = Provenance(scale, config.beta, candidates.digest, first.marks)
    oracle, evaluator = (closed_form(part, provenance) for part in (first, second))
    arrays = [candidates.rewards, candidates.log_ref]
    open_run_dir(out, "palm build", config, arrays, candidates.prompts, resume)
    settings = replace(config.palm, confirm_grid=config.palm.confirm_grid or confirm)
    found = _searched(oracle, settings, out / STATE, say)
    say("choosing the members")
    portfolio = build(oracle, settings, found)
    say(f"{len(portfolio.members) - 1} members; certifying on {len(second.prompts)} other prompts")
    judged = portfolio.held_out(evaluator, max(config.draws, 2), config.level)
    rows: list[dict[str, Any]] = []
    if config.compare:
        hurried = replace(settings, time_limit=config.compare_seconds)
        rows = compare_sizes(
            oracle, evaluator, hurried, found, config.compare, config.compare_draws, config.draws,
            config.level, say,
        )  # fmt: skip
    report = {
        "format": 1,
        "version": __version__,
        "source": source,
        "config": asdict(config),
        "rewards": list(scale.names),
        "prompts": {"chosen_on": len(first.prompts), "certified_on": len(second.prompts)},
        "clipped": _clipped(first, scale),
        "members": described(portfolio),
        "selection": portfolio.selection,
        "certificate": portfolio.certificate.as_dict(),
        "held_out": held_out_dict(judged),
        "sizes": rows,
        "smallest_under_5_percent": {
            name: smallest(rows, name) for name in ("share_lost", "mean_lost")
        },
    }
    provenance.save(out)
    pages.write(out, report, portfolio)
    portfolio.save(out)
    return portfolio, report


def show_grid(config: PalmConfig, rewards: int, say: Any, confirm: bool) -> None:
    """Say how many weights the grid has before any work is done, and refuse too many."""
    if config.weights == "signed" or config.targets == "corners":
        say("no grid: the points where policies tie take its place")
        return
    count = grid_size(rewards, config.eps, config.delta)
    say(f"a grid of {count:,} weights for {rewards} rewards at eps {config.eps}, {config.delta}")
    if count > config.grid_limit and not (confirm or config.confirm_grid):
        raise InputError(
            f"eps {config.eps}, delta {config.delta}: found a grid of {count:,} weights for "
            f"{rewards} rewards, expected at most {config.grid_limit:,}; raise the tolerances "
            "(--palm.eps, --palm.delta), take --palm.targets corners, or add --confirm."
        )


def split(candidates: Candidates, share: float, seed: int) -> tuple[Candidates, Candidates]:
    """Return the candidates to choose on and those to certify on, by whole prompts."""
    count = len(candidates.prompts)
    held = max(2, round(share * count))
    if count - held < 1:
        raise InputError(
            f"prompts: found {count}, expected at least 3, to choose on some and certify on two or "
            "more; add prompts."
        )
    order = np.random.default_rng(seed).permutation(count)
    return candidates.take(np.sort(order[held:])), candidates.take(np.sort(order[:held]))


def closed_form(candidates: Candidates, provenance: Provenance) -> ClosedForm:
    """Return the oracle over candidates, their raw rewards scaled."""
    return ClosedForm(
        scaled(provenance.scale, candidates.rewards).astype(np.float32),
        candidates.log_ref.astype(np.float32),
        provenance.beta,
        names=provenance.scale.names,
        fingerprint=provenance.fingerprint,
    )


def _searched(oracle: ClosedForm, config: PalmConfig, path: Path, say: Any) -> SearchState:
    """The search, its state saved after every call and gone on from where there is one."""
    state = load_state(path) if path.exists() else None
    if state is not None:
        say(f"going on after {len(state.weights)} oracle calls")

    def on_call(now: SearchState) -> None:
        now.save(path)
        count, gap = len(now.weights), now.gaps[-1]
        if np.isfinite(gap) and count % 10 == 0:
            say(f"{count} oracle calls, largest gap between the bounds {gap:.4f}")

    found = search(oracle, config, state, on_call)
    found.save(path)
    end = "the bounds meet" if found.done else "the bounds do not meet yet"
    say(f"{len(found.weights)} oracle calls, {end}")
    return found


def described(portfolio: Portfolio) -> list[dict[str, Any]]:
    """Return every member with its weight, expected rewards and KL, the reference first."""
    members = portfolio.members
    return [
        {
            "weight": members.payload["weight"][i].tolist() if i else None,
            "rewards": members.rewards[i].tolist(),
            "kl": float(members.kl[i]),
        }
        for i in range(len(members))
    ]


def held_out_dict(judged: HeldOut) -> dict[str, Any]:
    """Return a certificate on other prompts ready for JSON."""
    plain = {name: value for name, value in vars(judged).items() if name != "report"}
    return {**judged.report.as_dict(), **plain}


def _clipped(candidates: Candidates, scale: RewardScale) -> dict[str, float]:
    """Share of the candidates whose reward lay outside the scale, by reward."""
    rows = candidates.rewards[candidates.log_ref > -np.inf]
    levels = scale.levels(rows)
    off = ((levels < 0) | (levels > 1)).mean(axis=0)
    return dict(zip(scale.names, off.tolist(), strict=True))
