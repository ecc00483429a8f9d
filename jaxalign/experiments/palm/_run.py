"""From candidates to a certified portfolio in a folder: resumable call by call."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.experiments.palm import report as R
from jaxalign.experiments.palm.statistics import compare_sizes, smallest
from jaxalign.palm._search import SearchState, load_state, search
from jaxalign.palm.candidates import Candidates, split_prompts
from jaxalign.palm.certificate import HeldOut
from jaxalign.palm.config import BuildConfig, PalmConfig
from jaxalign.palm.grid import grid_size
from jaxalign.palm.oracle import ClosedForm
from jaxalign.palm.portfolio import Portfolio, build
from jaxalign.palm.provenance import Provenance, candidate_scale, closed_form
from jaxalign.progress import Progress
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.run_dir import open_run_dir
from jaxalign.version import __version__

STATE = "search.npz"


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
    first, second = split_prompts(candidates, config.certify_share, config.seed)
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
    R.write(out, report, portfolio)
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
