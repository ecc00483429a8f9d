"""From a model, rewards and prompts to a trained policy in a folder."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict

import jax
import numpy as np

from jaxalign.config import to_yaml
from jaxalign.data.chat_template import choose_template, chosen_template
from jaxalign.data.prompts import (
    Prompt,
    Prompts,
    as_chats,
    filter_prompts,
    load_prompts,
    split_prompts,
)
from jaxalign.errors import InputError
from jaxalign.experiments.moc.config import CONFIG, MocRunConfig
from jaxalign.experiments.moc.conflict import (
    ConflictReport,
    conflict_lines,
    conflict_report,
    sample_rewards,
)
from jaxalign.experiments.moc.scored import (
    PromptCompletion,
    completions_of,
    conditioned_completions,
    modpo_pairs,
    read_completions,
    score_completions,
)
from jaxalign.experiments.training_run import start_training
from jaxalign.files import read_json, write_json, write_text
from jaxalign.moc import modpo, warm_start
from jaxalign.moc._train import MocTrainResult, check_rows, train
from jaxalign.moc.config import MocConfig
from jaxalign.moc.files import POLICY, save
from jaxalign.moc.fine_tuning import fit_policy
from jaxalign.moc.monitor import KL_FACTOR
from jaxalign.moc.policy import ConditionedPolicy, init_policy
from jaxalign.moc.preferences import (
    check_simplex,
    insert_preference_tag,
    sample_preferences,
    without_tags,
)
from jaxalign.moc.prompt_sampler import longest_tag
from jaxalign.models.chat import room_for_prompts, tokenize_prompt
from jaxalign.models.global_arrays import to_host
from jaxalign.models.language import LanguageModel
from jaxalign.progress import Progress, counted
from jaxalign.rewards.reward_scale import (
    SCALE_ARRAYS,
    SCALE_FILE,
    RewardScale,
    fit_scale,
)
from jaxalign.rewards.spec import build_rewards, known_levels
from jaxalign.rewards.vector import TextReward
from jaxalign.rollout import ReferencePolicy, rollout_policies
from jaxalign.runs.artifact import Tree
from jaxalign.runs.processes import on_first_process
from jaxalign.runs.run_dir import Identity, RunDir
from jaxalign.train.loop import check_batch
from jaxalign.train.mesh import DeviceReport, batch_sharding, inference_shardings
from jaxalign.train.trunk import check_trunk

PROMPTS, WARM_START = "prompts.json", "warm_start"
_SCALE_STREAM = 0x7363616C  # other draws of a run are not these
_SCALE_BATCH = 32
_WITHOUT_PPO = ("ric", "modpo")


class TrainReport(TypedDict):
    """The content of report.json.

    `first` and `last` are means over a tenth of the steps of PPO, and `kl_above` counts the steps
    whose KL was more than twice its target. `conflict` is None where it was not measured.
    """

    format: int
    rewards: list[str]
    baseline: str
    weight: str | None
    prompts: int
    held_out_prompts: int
    steps: int
    first: dict[str, float]
    last: dict[str, float]
    kl_above: int
    conflict: ConflictReport | None
    devices: DeviceReport


def run(
    config: MocRunConfig,
    name: str,
    source: str,
    out: str | Path,
    resume: bool = False,
    show: bool = True,
) -> TrainReport:
    """Train a policy on prompts and save it.

    Args:
        config: the run.
        name: name of the model, as `load_language_model` takes it.
        source: source of the prompts, as `load_prompts` takes it.
        out: folder: model/ (the policy, as `jaxalign.moc.save` writes it), config.yaml,
            prompts.json (those held out), scale.json, metrics.jsonl, state/, report.json.
        resume: continue an unfinished run in `out`, or make a run longer.
        show: progress on standard error.

    Returns:
        The report, as in report.json.

    Raises:
        InputError: a bad model, reward, prompt, setting or folder.
    """
    started = start_training(
        out, "moc train", config, config.moc.trunk.mesh, config.moc.trackers, resume, show
    )
    out, progress = started.out, started.progress
    parts = started.mesh.shape["fsdp"] * started.mesh.shape["tensor"]
    rewards = build_rewards(config.rewards, inference_shardings(parts), progress.say)
    settings = config.training(rewards.names)
    _check_preferences(settings, rewards.names)
    # A mistake in what is read need not wait for the model.
    read = load_prompts(source, config.prompts.on_bad_row)
    scored = () if config.warm_start.data is None else read_completions(config.warm_start.data)
    model = started.load_model(name, settings.trunk.weights, settings.trunk.unstacks)
    check_trunk(settings.trunk, model.params)
    if config.baseline not in _WITHOUT_PPO:
        check_rows(settings, started.mesh)
    if scored:
        check_batch(config.warm_start.loop, batch_sharding(started.mesh))
    found = prompts_for(model, read, config)
    train_on, held = split_prompts(found, config.prompts.hold_out_share)
    for note in found.notes:
        progress.say(note)
    progress.say(
        f"{counted(len(train_on), 'prompt')}, {len(held):,} more held out, "
        f"{found.repeated:,} repeated, {found.dropped:,} left out{named_few(found.off_length)}"
    )
    identity: dict[str, Identity] = {
        "model": model.sha256,
        "rewards": rewards.id,
        "prompts": json.dumps([train_on.prompts, held.prompts]),
        "chat template": chosen_template(model.tokenizer, config.prompts.template),
    }
    if scored:
        scored = completions_of(scored, train_on.prompts, rewards.names, progress.say)
        identity["warm_start"] = json.dumps(scored)
    run_dir = started.open(identity, settings.optimiser)
    kept = {
        "source": found.source,
        "held_out": held.prompts,
        "left_out": [*found.notes, *found.off_length],
    }
    on_first_process(lambda: write_text(out / CONFIG, to_yaml(config)))
    on_first_process(lambda: write_json(out / PROMPTS, kept))
    scale = _scale(run_dir, model, rewards, train_on, config, progress)
    conflicting = _conflict(run_dir, model, rewards, scale, train_on, config, progress)
    fresh = jax.random.fold_in(jax.random.key(settings.seed), 1)
    policy = init_policy(fresh, model, rewards.names, settings, scale)
    if scored:
        policy = _warm_started(policy, scored, rewards, train_on, settings, config, out, progress)
    if config.baseline in _WITHOUT_PPO:
        trained = MocTrainResult(policy, [], 0)
    else:
        trained = train(policy, rewards, train_on.prompts, settings, out, progress)
    whole = replace(trained.policy, trained=to_host(trained.policy.trained))
    on_first_process(lambda: save(out / POLICY, whole))
    report: TrainReport = {
        "format": 2,
        "rewards": list(rewards.names),
        "baseline": config.baseline,
        "weight": config.weight,
        "prompts": len(train_on),
        "held_out_prompts": len(held),
        "steps": trained.steps,
        "first": _means(trained.history[: _part(trained.steps)]),
        "last": _means(trained.history[-_part(trained.steps) :]),
        "kl_above": sum(step["kl"] > KL_FACTOR * settings.kl.target for step in trained.history),
        "conflict": conflicting,
        "devices": started.devices,
    }
    run_dir.finish(report)
    return report


def _warm_started(
    policy: ConditionedPolicy,
    scored: Sequence[PromptCompletion],
    rewards: TextReward,
    prompts: Prompts,
    settings: MocConfig,
    config: MocRunConfig,
    out: Path,
    progress: Progress,
) -> ConditionedPolicy:
    """Return the policy after its warm start or MODPO, or as an earlier part of the run left it."""
    warm = config.warm_start
    fit = partial(
        fit_policy, config=settings, loop=warm.loop, optimiser=warm.optimiser,
        folder=out / WARM_START, progress=progress,
    )  # fmt: skip
    known = score_completions(scored, policy, rewards, prompts.prompts, settings)
    if config.baseline == "modpo":
        completions, pairs = modpo_pairs(known, policy, settings, config.modpo.pairs, progress.say)
        rows = modpo.pair_rows(completions, pairs, settings.answer_tokens)
        scaled = partial(modpo.loss, modpo.loss_scale(config.modpo, pairs))
        return fit(policy, scaled, rows)
    learned = conditioned_completions(known, policy, settings, warm.keep, progress.say)
    rows = warm_start.completion_rows(learned, settings.answer_tokens)
    return fit(policy, warm_start.loss, rows)


def held_out_prompts(folder: Path) -> list[Prompt]:
    """Return the prompts that a run held out.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = folder / PROMPTS
    held = read_json(path, "the prompts of a run", "run `jaxalign moc train`").get("held_out")
    if not isinstance(held, list):
        raise InputError(f"{path}: holds no held-out prompts: run `jaxalign moc train` again.")
    return held


def prompts_for(model: LanguageModel, read: Prompts, config: MocRunConfig) -> Prompts:
    """Return prompts as the model takes them, short enough with the longest tag in them.

    Preference tags in them are removed, so that neither the model nor the rewards read a
    preference that the writer of a prompt made up.

    Raises:
        InputError: as `room_for_prompts` and `filter_prompts`.
    """
    moc = config.moc
    chat = choose_template(model.tokenizer, config.prompts.template)
    names = [reward.name for reward in config.rewards]
    # Tags and a soft token count whatever the conditioning is, so that policies of all kinds have
    # the same prompts; `room_for_prompts` leaves room for one soft token.
    longest = longest_tag(model, names, moc.preferences)

    def count(prompt: Prompt) -> int:
        tagged = insert_preference_tag(names, longest, prompt, moc.preferences.decimals)
        return len(tokenize_prompt(model, tagged))

    least = config.prompts.min_tokens
    room = room_for_prompts(model, moc.answer_tokens, least, "moc.answer_tokens")
    bare = replace(read, prompts=tuple(without_tags(names, prompt) for prompt in read.prompts))
    prompts = as_chats(bare) if chat else bare
    remedy = (
        "raise moc.prompt_tokens, which counts the preference in the prompt too"
        if moc.prompt_tokens <= room
        else "lower moc.answer_tokens or give a model with a longer context, for the preference in "
        "the prompt counts too"
    )
    most = min(moc.prompt_tokens, room)
    return filter_prompts(prompts, count, most, config.prompts, remedy=remedy)


def named_few(off_length: Sequence[str]) -> str:
    """Return the first prompts that were left out by length, for a line of progress."""
    more = f"; and {len(off_length) - 3:,} more" if len(off_length) > 3 else ""
    return f" ({'; '.join(off_length[:3])}{more})" if off_length else ""


def estimate_scale(
    model: LanguageModel,
    rewards: TextReward,
    prompts: Sequence[Prompt],
    config: MocRunConfig,
    show: bool = True,
) -> RewardScale:
    """Estimate the scale of rewards from completions of plain prompts by the model alone.

    The scale depends on model, prompts, rewards and sampling, and not on the seed of a run, so that
    runs that are compared have the same scale.

    Args:
        model: the reference.
        rewards: R of them.
        prompts: X of them, used in turn.
        config: how many completions, and how they are sampled.
        show: a bar on standard error.

    Raises:
        InputError: a reward that fails, or is the same for all completions.
    """
    order = np.random.Generator(np.random.PCG64([0, _SCALE_STREAM])).permutation(len(prompts))
    chosen = [prompts[order[row % len(prompts)]] for row in range(config.reference_answers)]
    found = rollout_policies(
        model,
        ReferencePolicy(),
        np.zeros((1, 0)),
        chosen,
        rewards,
        config.moc.sampling(()),
        jax.random.key(_SCALE_STREAM),
        batch_size=max(config.moc.batch, _SCALE_BATCH),
        title="estimating the scale of the rewards",
        progress=show,
    )
    raw = found.rewards.reshape(-1, len(rewards.names))
    return fit_scale(raw, rewards.names, config.quantiles, known_levels(config.rewards))


def _scale(
    run: RunDir,
    model: LanguageModel,
    rewards: TextReward,
    prompts: Prompts,
    config: MocRunConfig,
    progress: Progress,
) -> RewardScale:
    """Return the scale of a run: the one estimated before an interruption, or a new one.

    Raises:
        InputError: scale.json is not the scale that the run estimated.
    """
    path = run.path / SCALE_FILE

    def estimate() -> Tree:
        scale = estimate_scale(model, rewards, prompts.prompts, config, progress.show)
        return {name: getattr(scale, name) for name in SCALE_ARRAYS}

    kept = on_first_process((run.state / "scale.safetensors").exists)
    if not kept:
        count = config.reference_answers
        progress.say(f"estimating the scale of the rewards on {counted(count, 'completion')}")
    arrays = run.stage("scale", estimate)
    scale = RewardScale(rewards.names, *(np.asarray(arrays[name]) for name in SCALE_ARRAYS))

    def write() -> None:
        if path.exists() and kept and RewardScale.from_json(read_json(path), str(path)) != scale:
            raise InputError(
                f"{path}: holds another scale than the run estimated, so it has been changed; "
                "expected the run's own: remove the file, and it is written again."
            )
        write_json(path, scale.to_json())

    on_first_process(write)
    if kept:
        return scale
    for place, reward in enumerate(scale.names):
        ends = scale.low[place], scale.high[place]
        progress.say(f"{reward}: level 0 at {ends[0]:.3g}, level 1 at {ends[1]:.3g}")
    return scale


def _conflict(
    run: RunDir,
    model: LanguageModel,
    rewards: TextReward,
    scale: RewardScale,
    prompts: Prompts,
    config: MocRunConfig,
    progress: Progress,
) -> ConflictReport | None:
    """Measure once in a run how far its rewards conflict, and show it."""
    if not config.conflict_prompts:
        return None
    kept = on_first_process((run.state / "conflict.safetensors").exists)

    def sample() -> Tree:
        raw = sample_rewards(
            model,
            rewards,
            prompts.prompts,
            config.moc.sampling(()),
            config.conflict_prompts,
            config.conflict_samples,
            max(config.moc.batch, _SCALE_BATCH),
            progress.show,
        )
        return {"rewards": raw}

    arrays = run.stage("conflict", sample)
    found = conflict_report(rewards.names, scale.levels(np.asarray(arrays["rewards"], np.float64)))
    if not kept:
        for line in conflict_lines(found):
            progress.say(line)
    return found


def _check_preferences(settings: MocConfig, names: Sequence[str]) -> None:
    """Refuse too few rewards, and preferences that are not over them, before any work is done."""
    if len(names) < 2:
        raise InputError(
            f"rewards: found {', '.join(names)} alone; expected two or more to have a preference "
            "between: add another."
        )
    for row in settings.preferences.held_out:
        check_simplex(row, names, "`moc.preferences.held_out`")
    sample_preferences(settings.seed, 0, settings.groups, names, settings.preferences)


def _part(steps: int) -> int:
    return max(1, steps // 10)


def _means(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return means of the metrics that every step has; none without a step."""
    if not history:
        return {}
    names = set.intersection(*(set(step) for step in history)) - {"step"}
    ordered = [name for name in history[0] if name in names]
    return {name: float(np.mean([step[name] for step in history])) for name in ordered}
