"""From candidates to a certified portfolio in a folder: resumable call by call."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from jaxalign.config import to_yaml
from jaxalign.errors import InputError
from jaxalign.experiments.palm.report import reward_names, write_report
from jaxalign.experiments.palm.statistics import (
    BuiltPortfolio,
    SizeRow,
    clipped_share,
    compare_sizes,
    described_members,
    smallest,
)
from jaxalign.experiments.palm.training import next_steps, write_distillation
from jaxalign.files import write_json, write_text
from jaxalign.palm import (
    ClosedForm,
    Evaluator,
    HeldOut,
    Oracle,
    PalmConfig,
    Portfolio,
    SearchState,
    grid_size,
    load_state,
    search,
    select_members,
)
from jaxalign.palm.candidates import Candidates, split_prompts, unseen
from jaxalign.palm.closed_form import candidate_oracle, candidate_scale
from jaxalign.palm.config import DRAWS, LEVEL, BuildConfig
from jaxalign.palm.portfolio import load
from jaxalign.progress import Progress, counted
from jaxalign.rewards.reward_scale import SCALE_FILE, RewardScale, expect_scale
from jaxalign.runs.run_dir import Identity, RunDir, finished_report, open_run_dir
from jaxalign.version import __version__

KIND, CONFIG = "palm build", "config.yaml"
_STATE = "search.safetensors"
Say = Callable[[str], None]


def run(
    config: BuildConfig,
    candidates: Candidates,
    source: str,
    out: Path,
    resume: bool = False,
    confirm: bool = False,
    export: bool = False,
) -> BuiltPortfolio:
    """Build, certify on other prompts, compare sizes, and write it all to a folder.

    Args:
        config: settings of the build.
        candidates: candidates of all prompts, raw rewards.
        source: name of the data, for the report.
        out: folder of the portfolio, its scale (scale.json), the report and the plots.
        resume: whether an unfinished build of the same settings may be continued.
        confirm: whether the grid is built whatever its size.
        export: whether each member's favourite answers are written, to train it on.

    Returns:
        BuiltPortfolio. report.json is written last of all: a folder without it holds an
        unfinished build.

    Raises:
        InputError: candidates that cannot be used, a grid above its limit, or a folder that holds
            something else.
    """
    say = Progress().say
    if export and candidates.answers is None:
        raise InputError("--export: found candidates without answers, expected their texts.")
    if export and candidates.numbered:
        raise InputError(
            f"--export: found prompts that are numbers, such as {candidates.prompts[0]}, expected "
            "their texts, on which the members are trained; give texts, or leave --export out."
        )
    check_grid(config.palm, len(candidates.names), say, confirm)
    first, second = split_prompts(candidates, config.certify_share, config.seed)
    scale = candidate_scale(first, config)
    oracle, evaluator = (candidate_oracle(part, scale, config.price) for part in (first, second))
    identity: dict[str, Identity] = {
        "candidates": [candidates.rewards, candidates.log_ref, *candidates.prompts],
        "scale of rewards": scale.digest,
    }
    folder = open_run_dir(out, KIND, config, identity, resume)
    write_text(folder.path / CONFIG, to_yaml(config))
    config = confirmed(config, confirm)
    found = _searched(oracle, config.palm, folder, say)
    built = judge(Judged(oracle, evaluator, found, scale, first.marks), config, source, say)
    if export:
        write_distillation(folder.path, built.portfolio, first, oracle)
    steps = next_steps(built, out, export)
    write_built(folder, config, built, {"clipped": clipped_share(first, scale)}, steps)
    return built


@dataclass(frozen=True, eq=False)
class Judged:
    """The policies of a build, on the prompts to choose on and on others.

    Attributes:
        oracle: on the prompts that the members are chosen on.
        evaluator: on the others.
        found: the policies.
        scale: of the rewards, whose levels the oracle's are.
        marks: hashes of the prompts that the members are chosen on.
    """

    oracle: Oracle
    evaluator: Evaluator
    found: SearchState
    scale: RewardScale
    marks: tuple[str, ...]


def judge(judged: Judged, config: BuildConfig, source: str, say: Say) -> BuiltPortfolio:
    """Choose the members, certify them on other prompts, and compare sizes.

    Args:
        judged: the policies.
        config: of the build.
        source: name of the data, for the report.
        say: called with one line on what is being done.
    """
    oracle, evaluator, found = judged.oracle, judged.evaluator, judged.found
    say(f"choosing the members, in at most {config.palm.time_limit:g} s")
    portfolio = select_members(oracle, config.palm, found, judged.scale, judged.marks)
    count = counted(len(portfolio.members) - 1, "member")
    say(f"{count} beside the reference; certifying on other prompts")
    held_out = portfolio.held_out(evaluator, config.band_draws, config.level)
    sizes: list[SizeRow] = []
    if config.compare:
        hurried = replace(config.palm, time_limit=config.compare_seconds)
        most = min(config.compare, len(found.policies))
        sizes = compare_sizes(
            oracle, evaluator, hurried, found, most, config.compare_draws, config.draws,
            config.level, say,
        )  # fmt: skip
    return BuiltPortfolio(portfolio, held_out, sizes, source, len(judged.marks))


def write_built(
    folder: RunDir,
    config: BuildConfig,
    built: BuiltPortfolio,
    more: Mapping[str, object],
    steps: str = "",
) -> None:
    """Write a portfolio, its scale, and the report last.

    Args:
        folder: of the build.
        config: of the build.
        built: what it came to.
        more: further entries of report.json.
        steps: last section of report.md, on what to do next.
    """
    portfolio, scale = built.portfolio, built.portfolio.scale
    portfolio.save(folder.path)
    if scale is not None:
        write_json(folder.path / SCALE_FILE, scale.to_json())
    write_report(folder.path, built, steps)
    folder.finish(
        {
            "format": 2,
            "version": __version__,
            "source": built.source,
            "config": asdict(config),
            "rewards": list(reward_names(portfolio)),
            "scale": None if scale is None else scale.digest,
            "prompts": {"chosen_on": built.chosen_on, "certified_on": built.held_out.prompts},
            **more,
            "members": described_members(built),
            "selection": {
                "calls": portfolio.calls,
                "search_done": portfolio.search_done,
                **(asdict(portfolio.selection) if portfolio.selection else {}),
            },
            "certificate": portfolio.certificate.as_dict(),
            "held_out": built.held_out.as_dict(),
            "sizes": built.sizes,
            "smallest_under_5_percent": {
                "share_lost": smallest(built.sizes, "share_lost"),
                "mean_lost": smallest(built.sizes, "mean_lost"),
            },
        }
    )


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


def evaluate(
    portfolio: Portfolio,
    candidates: Candidates,
    source: str,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> HeldOut:
    """Return the worst gaps of a portfolio on prompts that it was not chosen on.

    Args:
        portfolio: a portfolio of `run`.
        candidates: candidates with raw rewards; prompts that the members were chosen on are left
            out.
        source: where they came from, for messages.
        draws: bootstrap draws over prompts for the band.
        level: probability that the band holds for all users at once.

    Returns:
        HeldOut.

    Raises:
        InputError: candidates of other rewards or on another scale, or fewer than 2 other prompts.
    """
    if portfolio.scale is None or candidates.names != portfolio.scale.names:
        expected = "a known scale" if portfolio.scale is None else ", ".join(portfolio.scale.names)
        raise InputError(
            f"{source}: found rewards {', '.join(candidates.names)}, expected those of the "
            f"portfolio: {expected}."
        )
    expect_scale(candidates.scale, [portfolio.scale.digest], source, "the portfolio")
    other = unseen(candidates, portfolio.chosen_on, source)
    evaluator = candidate_oracle(other, portfolio.scale, portfolio.beta)
    return portfolio.held_out(evaluator, draws, level)


def check_grid(config: PalmConfig, rewards: int, say: Say, confirm: bool) -> None:
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


def confirmed(config: BuildConfig, confirm: bool) -> BuildConfig:
    """Return the config of a build whose grid `--confirm` may have confirmed."""
    return replace(
        config, palm=replace(config.palm, confirm_grid=config.palm.confirm_grid or confirm)
    )


def _searched(oracle: ClosedForm, config: PalmConfig, folder: RunDir, say: Say) -> SearchState:
    """The search, its state saved after every call and continued from there."""
    path = folder.state / _STATE
    state = load_state(path) if path.exists() else None
    if state is not None:
        say(f"going on after {counted(len(state.weights), 'oracle call')}")

    def on_call(now: SearchState) -> None:
        now.save(path)
        count, gap = len(now.weights), now.gaps[-1]
        if np.isfinite(gap) and count % 10 == 0:
            say(f"{count} oracle calls, largest gap between the bounds {gap:.4f}")

    found = search(oracle, config, state, on_call)
    found.save(path)
    end = "the bounds meet"
    if not found.done and len(found.gaps) and np.isfinite(found.gaps[-1]):
        end = (
            f"the bounds are {found.gaps[-1]:.4f} apart: the certificate against the optimum "
            "counts that in; more calls (--palm.max_calls) narrow it slowly"
        )
    elif not found.done:
        end = (
            "the limit of calls came before the bounds could meet: the certificate against the "
            "optimum counts that in; raise --palm.max_calls"
        )
    say(f"{counted(len(found.weights), 'oracle call')}, {end}")
    return found
