"""Training one policy for every preference."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np

from jaxalign.errors import InputError
from jaxalign.moc.config import MocConfig
from jaxalign.moc.experience import BAD_PARTS
from jaxalign.moc.likelihood import Frozen
from jaxalign.moc.monitor import KLWatch, RewardWatch, sample_lines
from jaxalign.moc.policy import ConditionedPolicy
from jaxalign.moc.preferences import Prompt
from jaxalign.moc.prompt_sampler import PromptSampler, StepPrompts
from jaxalign.moc.step import (
    Metrics,
    MocTrainState,
    Programs,
    init_train_state,
    make_programs,
    make_step,
)
from jaxalign.models import global_arrays
from jaxalign.models.chat import stop_ids
from jaxalign.models.completions import CompletionBatch
from jaxalign.models.device_defaults import training_options
from jaxalign.models.language import LanguageModel
from jaxalign.models.lora import LoraConfig
from jaxalign.progress import Progress, counted
from jaxalign.rewards.vector import TextReward, TokenReward, compute_rewards
from jaxalign.rollout import completion_texts, sample_and_score
from jaxalign.runs.log import MetricsLog
from jaxalign.runs.processes import compute_by_process
from jaxalign.runs.stop import stop_request
from jaxalign.train.announce import announce
from jaxalign.train.checkpoint import Checkpoints
from jaxalign.train.failures import describe_last_state, guarded_step
from jaxalign.train.mesh import batch_sharding, make_mesh, param_shardings, state_shardings

_REMEDY = "lower optimiser.rate or epochs, and go on from the last checkpoint"

Advance = Callable[[MocTrainState, StepPrompts], tuple[MocTrainState, Metrics]]
Place = Callable[[dict[str, np.ndarray]], dict[str, jax.Array]]
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class MocTrainResult:
    """The result of training.

    Attributes:
        policy: the trained policy.
        history: metrics of every step. Of its completions: `reward_NAME`, the mean level; `error`,
            the mean squared error between the groups' mean levels and their preferences, whatever
            the form of the similarity, noise included: a policy that meets its preferences exactly
            has the variance of a completion's levels over `rows`; `kl`, nats of a completion to the
            reference, under the dropout of the updates; `kl_coef`, which the step used;
            `completion_tokens`; `tokens`. Means over its updates:
            `weight_NAME`, the weight c of an objective; `loss`, `policy_loss`, `value_loss`,
            `entropy` and `clip_share`, of a token; `policy_kl`, nats of a completion to the policy
            that sampled it; `gradient_norm`; `rate`. And `updates`, how many were made, and
            `first_drift`, mean |ratio - 1| in the first, 0 but for rounding.
        steps: how many were taken.
    """

    policy: ConditionedPolicy
    history: list[dict[str, float]]
    steps: int


def train(
    policy: ConditionedPolicy,
    rewards: TokenReward | TextReward,
    prompts: Sequence[Prompt],
    config: MocConfig,
    folder: str | Path | None = None,
    progress: Progress | None = None,
) -> MocTrainResult:
    """Train a policy, resuming from the newest checkpoint in the folder.

    The result depends neither on interruptions nor on when checkpoints are written. At Ctrl-C and
    SIGTERM the state is written before the run is left.

    Args:
        policy: from `init_policy` or an earlier run; it is not changed.
        rewards: raw rewards of the policy's names, which `policy.scale` turns into levels. Token
            rewards make a step one compiled program; text rewards are computed on the host while
            the device scores the completions.
        prompts: texts or chats; preference tags in them are removed.
        config: of the run.
        folder: for metrics.jsonl, and checkpoints under state/; None keeps nothing.
        progress: where progress is shown; None shows nothing.

    Returns:
        The policy after the last step, and its history.

    Raises:
        InputError: rewards or a config that do not fit the policy, no usable prompt, a mesh that
            does not fit, a reward that fails (with the row; the state before is on disk), metrics
            that are not finite, or a KL that stays very far above its target (see `KLWatch`).
        KeyboardInterrupt: at Ctrl-C, when the state is written.
    """
    _check(policy, rewards, config)
    say = (progress or Progress(False)).say
    sampler = PromptSampler(policy, prompts, config)
    if sampler.left_out:
        say(f"left out {sampler.left_out} of {counted(len(prompts), 'prompt')}, too long")
    mesh, decoder = make_mesh(config.trunk.mesh), config.trunk.decoder(policy.model.config)
    check_rows(config, mesh)
    frozen = global_arrays.place(
        policy.model.params, param_shardings(policy.model.params, mesh, decoder)
    )
    # A copy: the state is donated, and the policy given stays.
    state = init_train_state(
        jax.random.key(config.seed), jax.tree.map(np.array, policy.trained), config
    )
    state = global_arrays.place(state, state_shardings(state, mesh, decoder))
    programs = make_programs(
        config, decoder, policy.names, stop_ids(policy.model), mesh, policy.scale
    )
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    place = _placing(mesh)
    if isinstance(rewards, TokenReward):
        advance = _rewards_on_device(programs, rewards, frozen, shardings, place, say)
    else:
        show = partial(_show_samples, policy, config.samples_every, say)
        advance = _rewards_on_host(
            programs, rewards, frozen, shardings, place, policy.model, say, show
        )
    folder = None if folder is None else Path(folder)
    state, history = _loop(state, advance, sampler, config, policy.names, folder, say)
    return MocTrainResult(replace(policy, trained=state.train.params), history, int(state.step))


def _loop(
    state: MocTrainState,
    advance: Advance,
    sampler: PromptSampler,
    config: MocConfig,
    names: tuple[str, ...],
    folder: Path | None,
    say: Callable[[str], None],
) -> tuple[MocTrainState, list[dict[str, float]]]:
    """Take the steps, write metrics and checkpoints."""
    with ExitStack() as stack:
        stop = stack.enter_context(stop_request())
        checkpoints = None
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            checkpoints = stack.enter_context(Checkpoints(folder / "state", keep=2))
            if checkpoints.latest_step() is not None:
                state = checkpoints.restore(state)
        first = int(state.step)
        log = MetricsLog(
            folder, first, config.steps, say, partial(_describe, names), config.trackers, _REMEDY
        )
        stack.callback(log.close)
        watches = KLWatch(config.kl, config.batch, say), RewardWatch(names, say)
        kept = partial(describe_last_state, checkpoints)
        for number in range(first, config.steps):
            drawn = sampler.draw(number)
            done = number + 1
            with guarded_step(state, number, log, checkpoints, lambda: f" ({kept()})"):
                state, metrics = advance(state, drawn)
            check = partial(_check_step, names, drawn.texts, watches, kept)
            log.add(done, metrics, check=check)
            due = stop.asked or done % config.checkpoint_every == 0 or done == config.steps
            if checkpoints is not None and due:
                log.flush()
                checkpoints.save(done, state)
            if stop.asked:
                break
        log.flush()
    return state, log.history


def _describe(names: tuple[str, ...], entry: Mapping[str, float]) -> str:
    """Return what a line on the terminal says of a step; c are the weights of the objectives."""
    rewards = ", ".join(f"{name} {entry[f'reward_{name}']:.3f}" for name in names)
    weighted = [name for name in (*names, "weighted", "closeness") if f"weight_{name}" in entry]
    weights = " ".join(f"{entry[f'weight_{name}']:.2f}" for name in weighted)
    peak = f", {entry['peak_gib']:.1f} GiB" if "peak_gib" in entry else ""
    return (
        f"{rewards}, error {entry['error']:.4f}, KL {entry['kl']:.3f}, entropy "
        f"{entry['entropy']:.3f}, c {weights}, {entry['tokens_per_second']:,.0f} tokens/s{peak}"
    )


def _check_step(
    names: tuple[str, ...],
    prompts: Sequence[str],
    watches: tuple[KLWatch, RewardWatch],
    kept: Callable[[], str],
    step: int,
    values: dict[str, float],
) -> None:
    """Refuse a step in which a row had a number that is not finite; look at KL and rewards."""
    furthest = int(values.pop("kl_row"))
    watches[0].look(
        step, values["kl"], values["kl_coef"],
        lambda: f" (most in row {furthest}, prompt {prompts[furthest]!r:.80}; {kept()})",
    )  # fmt: skip
    alike = {name: bool(values.pop(f"alike_{name}")) for name in names}
    watches[1].look(step, alike, {name: values[f"reward_{name}"] for name in names})
    row, part = int(values.pop("bad_row")), BAD_PARTS[int(values.pop("bad_part"))]
    if row < 0:
        return
    place = f"(row {row}, prompt {prompts[row]!r:.80}; {kept()})"
    if part == "reward":
        raise InputError(
            f"step {step}: one of the rewards {', '.join(names)} is not finite {place}; correct "
            "the reward, or leave the prompt out."
        )
    article = "an" if part[0] == "a" else "a"
    raise InputError(
        f"step {step}: {article} {part} of a completion is not finite {place}; expected a finite "
        f"number: {_REMEDY}."
    )


def _show_samples(
    policy: ConditionedPolicy,
    every: int | None,
    say: Callable[[str], None],
    step: int,
    drawn: StepPrompts,
    answers: Sequence[str],
    raw: np.ndarray,
) -> None:
    """Show completions of the first step, and then of one in every few."""
    if every is None or (step > 1 and step % every):
        return
    levels = raw if policy.scale is None else policy.scale.levels(raw)
    for line in sample_lines(step, drawn, answers, levels, policy.names):
        say(line)


def _rewards_on_device(
    programs: Programs,
    reward: TokenReward,
    frozen: Frozen,
    shardings: MocTrainState,
    place: Place,
    say: Callable[[str], None],
) -> Advance:
    """Return a step as one program."""
    step = announce(
        "the step",
        jax.jit(
            make_step(programs, reward),
            donate_argnums=0,
            out_shardings=(shardings, None),
            compiler_options=training_options(),
        ),
        say,
    )

    def advance(state: MocTrainState, drawn: StepPrompts) -> tuple[MocTrainState, Metrics]:
        batch = place(drawn.arrays)
        with jax.transfer_guard("disallow"):
            return step(state, frozen, batch)

    return advance


def _rewards_on_host(
    programs: Programs,
    reward: TextReward,
    frozen: Frozen,
    shardings: MocTrainState,
    place: Place,
    model: LanguageModel,
    say: Callable[[str], None],
    show: Callable[[int, StepPrompts, Sequence[str], np.ndarray], None],
) -> Advance:
    """Return a step as three programs, with the host's rewards between them."""
    sample = announce(
        "the sampling of completions",
        jax.jit(programs.sample, compiler_options=training_options()),
        say,
    )
    score = announce(
        "their log-probabilities", jax.jit(programs.score, compiler_options=training_options()), say
    )
    learn = announce(
        "the updates",
        jax.jit(
            programs.learn,
            donate_argnums=0,
            out_shardings=(shardings, None),
            compiler_options=training_options(),
        ),
        say,
    )

    def advance(state: MocTrainState, drawn: StepPrompts) -> tuple[MocTrainState, Metrics]:
        batch = place(drawn.arrays)

        def rewards(completions: CompletionBatch) -> jax.Array:
            texts = completion_texts(model, global_arrays.to_host(completions))

            def compute(part: range) -> np.ndarray:
                here = slice(part.start, part.stop)
                return compute_rewards(reward, drawn.texts[here], texts[here], part.start)

            raw = compute_by_process(compute, len(texts))
            show(int(state.step) + 1, drawn, texts, raw)
            return place({"raw": raw})["raw"]

        def guarded(program: Callable[..., Result], *arguments: object) -> Result:
            with jax.transfer_guard("disallow"):
                return program(state, frozen, batch, *arguments)

        rollout = sample_and_score(partial(guarded, sample), partial(guarded, score), rewards)
        return guarded(learn, rollout)

    return advance


def _placing(mesh: jax.sharding.Mesh) -> Place:
    """Return how host arrays are placed on the mesh: rows sharded, preferences replicated."""
    rows = batch_sharding(mesh)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def place(arrays: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        # Every process holds the whole batch, and its devices take their rows of it.
        return {
            name: jax.make_array_from_callback(
                array.shape, whole if name == "preferences" else rows, array.__getitem__
            )
            for name, array in arrays.items()
        }

    return place


def _check(policy: ConditionedPolicy, rewards: TokenReward | TextReward, config: MocConfig) -> None:
    if rewards.names != policy.names:
        raise InputError(
            f"the rewards are {', '.join(rewards.names)}, the policy's {', '.join(policy.names)}; "
            "expected the same in the same order."
        )
    for name, found, wanted in (
        ("conditioning", policy.conditioning, config.conditioning),
        ("preferences.decimals", policy.decimals, config.preferences.decimals),
        ("trunk.lora", _shape(policy.lora), _shape(config.trunk.lora)),
    ):
        if found != wanted:
            raise InputError(
                f"{name}: the policy has {found}, the config {wanted}; expected the same: make the "
                "policy with this config."
            )
    heads = 1 + (len(policy.names) if config.reward == "vector" else 1)
    heads = heads if config.advantage_baseline == "values" else 0
    found_heads = policy.trained["heads"]
    heads_found = found_heads["value"]["kernel"].shape[1] if found_heads else 0
    if heads_found != heads:
        raise InputError(
            f"reward: the policy has {heads_found} value heads, {config.reward!r} with the "
            f"advantage_baseline {config.advantage_baseline!r} needs {heads}; make the policy with "
            "this config."
        )


def _shape(lora: LoraConfig) -> LoraConfig:
    """Return what an adapter's parameters depend on: its config but for dropout and order."""
    return replace(lora, dropout=0.0, targets=tuple(sorted(lora.targets)))


def check_rows(config: MocConfig, mesh: jax.sharding.Mesh) -> None:
    """Refuse micro-batches that do not divide over the devices.

    Args:
        config: of the training.
        mesh: its devices.

    Raises:
        InputError: a micro-batch has a number of rows that does not divide.
    """
    rows = config.batch // (config.minibatches * config.micro_batches)
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % parts:
        raise InputError(
            f"a micro-batch has {rows} rows, which do not divide over the mesh's data and fsdp "
            f"axes {dict(mesh.shape)}; change groups, rows, micro_batches or the mesh."
        )
