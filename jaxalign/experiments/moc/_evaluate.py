"""A trained policy judged beside its baselines: evaluations, report, plots, value table."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxalign.config import load_config
from jaxalign.config_fields import checks_fields
from jaxalign.data.chat_template import chosen_template
from jaxalign.data.prompts import Prompt, load_prompts
from jaxalign.errors import InputError
from jaxalign.experiments.moc import baselines
from jaxalign.experiments.moc._run import (
    PROMPTS,
    held_out_prompts,
    named_few,
    prompts_for,
)
from jaxalign.experiments.moc.config import CONFIG, MocRunConfig
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.judge import (
    EvaluatedPolicy,
    evaluate_policy,
    judged_preferences,
)
from jaxalign.experiments.moc.reference_baselines import (
    ReferenceBaselines,
    check_no_system_turn,
    read_system_prompts,
)
from jaxalign.experiments.moc.report import write_report
from jaxalign.experiments.moc.statistics import MocEvaluationReport, evaluation_report
from jaxalign.files import expand_user
from jaxalign.moc.files import load, policy_folder
from jaxalign.moc.policy import ConditionedPolicy
from jaxalign.moc.preferences import parse_preference
from jaxalign.models.language import LanguageModel
from jaxalign.progress import Progress, counted
from jaxalign.rewards.spec import build_rewards
from jaxalign.runs.run_dir import Identity, check_run_dir, finished_report, open_run_dir
from jaxalign.train.mesh import inference_shardings

KIND = "moc evaluate"


@dataclass(frozen=True)
@checks_fields
class MocEvaluateConfig:
    """How policies are judged.

    Attributes:
        samples: completions of each prompt under each preference, 1 or more; more reduce noise.
        limit: the most prompts, 2 or more; null for all that were held out.
        batch_size: the most completions that are decoded at once; lower it if memory is short.
        reference_point: reference point of the hypervolume, in levels of the rewards, one number
            for each; null for zeros, the level that the scale calls low.
        best_of: n, where the best of n completions of the reference is judged as well, chosen for
            each preference: a baseline that trains nothing. 1 leaves it out. At equal cost, n is
            the number of completions that the training sampled, divided by `samples` times the
            number of prompts that are judged on.
        system_prompts: file of system prompts, one a line, which are tried on the reference: each
            preference gets the one that is best on half of the prompts, judged on the other half.
            null leaves this baseline out.
        draws: bootstrap resamples of the prompts for intervals, 1 or more; 500 is usual.
        seed: random seed of completions and resamples, at least 0.
    """

    samples: int = 1
    limit: int | None = 256
    batch_size: int = 32
    reference_point: tuple[float, ...] | None = None
    best_of: int = 1
    system_prompts: str | None = None
    draws: int = 500
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"samples": 1, "limit": 2, "batch_size": 1, "best_of": 1, "draws": 1, "seed": 0}
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise InputError(f"{name} is {value}; expected at least {bound}.")


class MocRun(NamedTuple):
    """A finished run of `jaxalign moc train`.

    Attributes:
        folder: of the run.
        config: of the run.
        policy: trained.
        weight: [R] that it was trained on, None for a conditioned policy.
    """

    folder: Path
    config: MocRunConfig
    policy: ConditionedPolicy
    weight: NDArray[np.float32] | None


def load_run(folder: str | Path, model: LanguageModel | None = None) -> MocRun:
    """Read the policy and the config of a run.

    Args:
        folder: of `jaxalign.experiments.moc.run`.
        model: the base model, if it is loaded already.

    Raises:
        InputError: no such run, one that is not through, or one on another model.
    """
    folder = expand_user(folder)
    place = policy_folder(folder)
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"{folder} holds a policy and no {CONFIG}; expected the whole folder of `jaxalign moc "
            "train`."
        )
    finished_report(folder, "moc train", "run `jaxalign moc train`")
    config = load_config(MocRunConfig, folder / CONFIG, [])
    policy = load(place, model, config.moc.trunk.weights, inference_shardings())
    weight = None if config.weight is None else parse_preference(config.weight, policy.names)
    return MocRun(folder, config, policy, weight)


def evaluate(
    config: MocEvaluateConfig,
    folder: str | Path,
    out: str | Path,
    others: Sequence[str | Path] = (),
    data: str | None = None,
    resume: bool = False,
    show: bool = True,
) -> MocEvaluationReport:
    """Judge a run's policy, with other runs beside it, and leave its value table in its folder.

    All are judged on the same prompts, rewards and scale, those of the first run. Of the others,
    conditioned policies are judged as they are, and policies for one weighting together: those of
    PPO as MORLHF, those of MODPO as MODPO. Where each reward alone has a policy of PPO, their soups
    and mixtures are judged as well.

    Args:
        config: how the policies are judged.
        folder: folder of the run.
        out: folder for report.json, report.md, plots, and evaluations/ of each policy.
        others: folders of other runs on the same model and rewards.
        data: prompts to judge on; None for those that the run held out.
        resume: continue an unfinished evaluation in `out`.
        show: progress on standard error.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: a folder that is no run, runs that do not fit each other, no prompts, or a
            reward that fails.
    """
    out, progress = expand_user(out), Progress(show)
    check_run_dir(out, KIND, config, resume)
    first = load_run(folder)
    if first.policy.conditioning == "none":
        raise InputError(
            f"{folder}: the policy is conditioned on nothing; give a run that is conditioned on "
            "preferences as --model, and this one behind --with."
        )
    if first.policy.scale is None:
        raise InputError(
            f"{folder}: the policy has no scale of rewards, expected one, in whose levels it is "
            "judged; give a run of `jaxalign moc train`, which estimates the scale."
        )
    point, names = config.reference_point, first.policy.names
    if point is not None and len(point) != len(names):
        raise InputError(
            f"reference_point: found {counted(len(point), 'number')}, expected {len(names)}, one "
            f"for each reward: {', '.join(names)}."
        )
    beside = [load_run(other, first.policy.model) for other in others]
    for other in beside:
        _check(first, other)
        if other.policy.scale != first.policy.scale:
            progress.say(f"{other.folder} was trained on another scale than {first.folder}")
    prompts = _prompts(first, data, config, progress.say)
    texts = () if config.system_prompts is None else read_system_prompts(config.system_prompts)
    if texts:
        check_no_system_turn(prompts)
    rewards = build_rewards(first.config.rewards, inference_shardings())
    scale = first.policy.scale
    judged = evaluated_policies(first, beside)
    runs = [first, *beside]
    trained = [np.asarray(leaf) for one in runs for leaf in jax.tree.leaves(one.policy.trained)]
    template = first.config.prompts.template
    identity: dict[str, Identity] = {
        "policies": [*(str(one.folder.resolve()) for one in runs), *trained],
        "model": first.policy.model.sha256,
        "rewards": rewards.id,
        "scale": json.dumps(scale.to_json()),
        "prompts": repr(prompts),
        "chat template": chosen_template(first.policy.model.tokenizer, template),
        "system_prompts": repr(texts),
    }
    run = open_run_dir(out, KIND, config, identity, resume)
    (out / "evaluations").mkdir(exist_ok=True)
    sampling = first.config.moc.sampling(())
    key = jax.random.key(config.seed)

    def trained_policy(one: EvaluatedPolicy) -> Evaluation:
        return evaluate_policy(
            one, rewards, scale, prompts, sampling, key, config.samples, config.batch_size, show
        )

    judgings: dict[str, Callable[[], Evaluation]] = {
        one.name: partial(trained_policy, one) for one in judged
    }
    untrained = ReferenceBaselines(
        first.policy.model, rewards, scale, prompts, sampling, *_points(first), key,
        config.samples, config.batch_size, show,
    )  # fmt: skip
    judgings |= untrained.named(config.best_of, texts)
    found = []
    for number, (name, judging) in enumerate(judgings.items()):
        # The number keeps names apart that are alike but for a sign.
        path = out / "evaluations" / f"{number:02d}_{_slug(name)}.safetensors"
        if not path.exists():
            progress.say(f"{name}: {counted(len(prompts), 'prompt')}")
            judging().save(path)
        found.append(Evaluation.load(path))
    found[0].value_table().save(policy_folder(first.folder))
    report = evaluation_report(found, config.reference_point, config.draws, config.seed)
    write_report(out, report)
    run.finish(report)
    return report


def evaluated_policies(first: MocRun, others: Sequence[MocRun]) -> list[EvaluatedPolicy]:
    """Return the policies that some runs give to be judged, the first run's policy first.

    Args:
        first: conditioned on preferences.
        others: on the same model and rewards.
    """
    points, seen = _points(first)
    found = [baselines.conditioned(first.policy, _name(first, []), points, seen)]
    fixed = [run for run in others if run.config.baseline == "morlhf"]
    modpo = [run for run in others if run.config.baseline == "modpo"]
    for run in others:
        if run.weight is None:
            name = _name(run, [one.name for one in found])
            found.append(baselines.conditioned(run.policy, name, *_points(run)))
    if modpo:
        found.append(_separate(modpo, "MODPO"))
    if not fixed:
        return found
    found.append(_separate(fixed, "MORLHF"))
    weights = np.stack([run.weight for run in fixed if run.weight is not None])
    corners = [
        np.flatnonzero((weights == corner).all(axis=1)) for corner in np.eye(weights.shape[1])
    ]
    if all(len(rows) for rows in corners):
        experts = [fixed[int(rows[0])].policy for rows in corners]
        found += [
            baselines.soups(experts, points, seen),
            baselines.mixing(experts, points, seen),
        ]
    return found


def _separate(runs: Sequence[MocRun], name: str) -> EvaluatedPolicy:
    """Policies for one weighting each, the first run of every weighting."""
    weights = np.stack([run.weight for run in runs if run.weight is not None])
    once = [row for row in range(len(weights)) if not (weights[:row] == weights[row]).all(1).any()]
    return baselines.separate([runs[row].policy for row in once], weights[once], name)


def _points(run: MocRun) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Preferences of a run, see `judged_preferences`."""
    return judged_preferences(run.policy.names, run.config.moc.preferences)


def _name(run: MocRun, taken: Sequence[str]) -> str:
    """The folder's name, or its path where another has that name."""
    known = (*taken, "MORLHF", "MODPO", "soups", "MOD")
    name = run.folder.resolve().name
    return str(run.folder.resolve()) if name in known else name


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _check(first: MocRun, other: MocRun) -> None:
    for what, own, theirs in (
        ("rewards", first.policy.names, other.policy.names),
        ("specifications of rewards", first.config.rewards, other.config.rewards),
    ):
        if own != theirs:
            raise InputError(
                f"{other.folder}: found {what} {theirs}, expected {own}, those of {first.folder}; "
                "judge it on its own."
            )


def _prompts(
    run: MocRun, data: str | None, config: MocEvaluateConfig, say: Callable[[str], None]
) -> list[Prompt]:
    """Return the prompts to judge on, no more than the limit."""
    if data is not None:
        read = prompts_for(
            run.policy.model, load_prompts(data, run.config.prompts.on_bad_row), run.config
        )
        prompts: Sequence[Prompt] = read.prompts
        for note in read.notes:
            say(note)
        if read.dropped:
            say(f"{data}: {counted(read.dropped, 'row')} left out{named_few(read.off_length)}")
    else:
        prompts = held_out_prompts(run.folder)
    if len(prompts) < 2:
        raise InputError(
            f"{data or run.folder / PROMPTS}: found {len(prompts)} prompts to judge on, expected "
            "at least 2; give some with --data."
        )
    return list(prompts[: config.limit])
