"""From candidates to a certified portfolio in a folder: resumable call by call."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from jaxalign.errors import InputError
from jaxalign.experiments.palm.report import write_report
from jaxalign.experiments.palm.statistics import (
    BuiltPortfolio,
    SizeRow,
    clipped_share,
    compare_sizes,
    described_members,
    smallest,
)
from jaxalign.files import write_json
from jaxalign.palm import (
    ClosedForm,
    HeldOut,
    PalmConfig,
    Portfolio,
    SearchState,
    build,
    grid_size,
    load_state,
    search,
)
from jaxalign.palm.candidates import Candidates, split_prompts, unseen
from jaxalign.palm.closed_form import candidate_oracle, candidate_scale
from jaxalign.palm.config import BuildConfig
from jaxalign.palm.portfolio import load
from jaxalign.progress import Progress
from jaxalign.rewards.reward_scale import SCALE_FILE, load_scale
from jaxalign.runs.run_dir import Identity, RunDir, finished_report, open_run_dir
from jaxalign.version import __version__

KIND = "palm build"
_STATE = "search.safetensors"
Say = Callable[[str], None]


def run(
    config: BuildConfig,
    candidates: Candidates,
    source: str,
    out: Path,
    resume: bool = False,
    confirm: bool = False,
) -> BuiltPortfolio:
    """Build, certify on other prompts, compare sizes, and write it all to a folder.

    Args:
        config: settings of the build.
        candidates: candidates of all prompts, raw rewards.
        source: name of the data, for the report.
        out: folder of the portfolio, its scale (scale.json), the report and the plots.
        resume: whether an unfinished build of the same settings may be continued.
        confirm: whether the grid is built whatever its size.

    Returns:
        BuiltPortfolio. report.json is written last of all: a folder without it holds an
        unfinished build.

    Raises:
        InputError: candidates that cannot be used, a grid above its limit, or a folder that holds
            something else.
    """
    say = Progress().say
    _show_grid(config.palm, len(candidates.names), say, confirm)
    first, second = split_prompts(candidates, config.certify_share, config.seed)
    units = load_scale(config.scale_from) if config.scale_from else None
    scale = candidate_scale(first, config.scale, config.clip, config.reward_range, units)
    oracle, evaluator = (candidate_oracle(part, scale, config.beta) for part in (first, second))
    identity: dict[str, Identity] = {
        "candidates": [candidates.rewards, candidates.log_ref, *candidates.prompts],
        "scale of rewards": scale.digest,
    }
    folder = open_run_dir(out, KIND, config, identity, resume)
    settings = replace(config.palm, confirm_grid=config.palm.confirm_grid or confirm)
    found = _searched(oracle, settings, folder, say)
    say(f"choosing the members, in at most {settings.time_limit:g} s")
    portfolio = build(oracle, settings, found, scale=scale, chosen_on=first.marks)
    say(f"{len(portfolio.members) - 1} members; certifying on {len(second.prompts)} other prompts")
    judged = portfolio.held_out(evaluator, max(config.draws, 2), config.level)
    sizes: list[SizeRow] = []
    if config.compare:
        hurried = replace(settings, time_limit=config.compare_seconds)
        sizes = compare_sizes(
            oracle, evaluator, hurried, found, config.compare, config.compare_draws, config.draws,
            config.level, say,
        )  # fmt: skip
    built = BuiltPortfolio(portfolio, judged, sizes, source, len(first.prompts))
    portfolio.save(folder.path)
    write_json(folder.path / SCALE_FILE, scale.to_json())
    write_report(folder.path, built)
    folder.finish(
        {
            "format": 2,
            "version": __version__,
            "source": source,
            "config": asdict(config),
            "rewards": list(scale.names),
            "scale": scale.digest,
            "prompts": {"chosen_on": len(first.prompts), "certified_on": len(second.prompts)},
            "clipped": clipped_share(first, scale),
            "members": described_members(portfolio),
            "selection": {
                "calls": portfolio.calls,
                "search_done": portfolio.search_done,
                **(asdict(portfolio.selection) if portfolio.selection else {}),
            },
            "certificate": portfolio.certificate.as_dict(),
            "held_out": judged.as_dict(),
            "sizes": sizes,
            "smallest_under_5_percent": {
                "share_lost": smallest(sizes, "share_lost"),
                "mean_lost": smallest(sizes, "mean_lost"),
            },
        }
    )
    return built


def load_built(folder: str | Path) -> Portfolio:
    """Read the portfolio of a finished build.

    Args:
        folder: output folder of `jaxalign palm build`.

    Returns:
        Portfolio; its scale is known.

    Raises:
        InputError: the folder holds no build, an unfinished one, or no whole portfolio.
    """
    finished_report(folder, KIND, "build it with `jaxalign palm build`")
    return load(folder)


def evaluate(portfolio: Portfolio, candidates: Candidates, source: str) -> HeldOut:
    """Return the worst gaps of a portfolio on prompts that it was not chosen on.

    Args:
        portfolio: a portfolio of `run`.
        candidates: candidates with raw rewards; prompts that the members were chosen on are left
            out.
        source: where they came from, for messages.

    Returns:
        HeldOut.

    Raises:
        InputError: candidates of other rewards, or fewer than 2 other prompts.
    """
    if portfolio.scale is None or candidates.names != portfolio.scale.names:
        expected = "a known scale" if portfolio.scale is None else ", ".join(portfolio.scale.names)
        raise InputError(
            f"{source}: found rewards {', '.join(candidates.names)}, expected those of the "
            f"portfolio: {expected}."
        )
    other = unseen(candidates, portfolio.chosen_on, source)
    return portfolio.held_out(candidate_oracle(other, portfolio.scale, portfolio.beta))


def _show_grid(config: PalmConfig, rewards: int, say: Say, confirm: bool) -> None:
    """Say how many weights the grid has before any work is done, and refuse too many."""
    if config.by_ties:
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


def _searched(oracle: ClosedForm, config: PalmConfig, folder: RunDir, say: Say) -> SearchState:
    """The search, its state saved after every call and continued from there."""
    path = folder.state / _STATE
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
    end = "the bounds meet"
    if not found.done:
        end = (
            f"the bounds are {np.nanmax(found.gaps[-1:]):.4f} apart: the certificate against the "
            "optimum counts that in; more calls (--palm.max_calls) narrow it slowly"
        )
    say(f"{len(found.weights)} oracle calls, {end}")
    return found
