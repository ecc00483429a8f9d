"""One training step as pure functions: sample, score, compute rewards, learn.

1. `sample` completions; `score` them under policy and reference; the rewards come from outside.
2. `learn` turns rewards into levels, and these into streams of advantages (`experience`): one for
   each objective, one for the similarity of a group's mean levels to its preference, one for the
   KL.
3. In each update, `loss` gives each stream the clipped loss of `ppo`, and adds these up with one
   backward pass: the objectives with weights c from `combination`, the similarity with 1 - sum c,
   the KL with 1.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.moc.config import MocConfig
from jaxalign.moc.experience import (
    Experience,
    RolloutScores,
    closeness_reward,
    compute_experience,
    compute_group_experience,
    find_bad_row,
    group_errors,
    similarity_coefficients,
    weighted_reward,
)
from jaxalign.moc.likelihood import Frozen, Likelihood
from jaxalign.moc.loss import Group, batch_loss
from jaxalign.moc.policy import ConditionedInputs, TrainedParams, conditioned_inputs, value_head
from jaxalign.moc.ppo import adapt_kl_coef
from jaxalign.models import families
from jaxalign.models.completions import (
    CompletionBatch,
    state_logprobs,
)
from jaxalign.models.decoder import unembedding
from jaxalign.models.generate import DecodeInputs, DecodeSpec, Prompt, decode
from jaxalign.models.sampling import split_sampling
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.vector import TokenReward
from jaxalign.rollout import Rollout, sample_and_score, token_rewards
from jaxalign.train import optimiser
from jaxalign.train.mesh import batch_sharding, gathered
from jaxalign.train.optimiser import TrainState
from jaxalign.train.step import Batch, Sums, gradient

Metrics = dict[str, jax.Array]
MocRollout = Rollout[CompletionBatch, RolloutScores, jax.Array]
"""Completions, scores and raw rewards [B, R] of a step."""

Tree = TypeVar("Tree")


class _ScoreBatch(NamedTuple):
    """A part of a step's rows to be scored: as the policy reads them, and as the reference does."""

    completions: CompletionBatch
    plain: CompletionBatch
    preferences: jax.Array


class _UpdateBatch(NamedTuple):
    """What an update reads: of rows [B, ...] and of groups [G, ...].

    Attributes:
        completions: of B rows.
        experience: of B rows.
        mask: [B, M] bool, set on the tokens of the completions.
        preferences: [G, R], for the policy to read.
        objective_preferences: [G, K], the same over the objectives, for the rules that use it.
        similarity_error: [G].
    """

    completions: CompletionBatch
    experience: Experience
    mask: jax.Array
    preferences: jax.Array
    objective_preferences: jax.Array
    similarity_error: jax.Array


class MocTrainState(NamedTuple):
    """All that a step changes.

    Attributes:
        train: parameters {"adapter", "heads", perhaps "token"} and the optimiser's moments; its own
            `step` counts updates, also those that were skipped, and its own `key` is the
            optimiser's.
        step: [] int32, how many steps were taken, each a rollout and its updates.
        key: random key of the run; each step uses its own fold.
        kl_coef: [] KL coefficient.
    """

    train: TrainState
    step: jax.Array
    key: jax.Array
    kl_coef: jax.Array


@dataclass(frozen=True)
class Programs:
    """The parts of a step, all pure; `make_step` joins them where the rewards are traced.

    Batches hold `tokens` [B, T] and `lengths` [B] of the prompts as the policy reads them, `plain`
    and `plain_lengths` of the same prompts without tags, as the reference and the rewards read
    them, and `preferences` [G, R]; the rows of a group are adjacent.

    Attributes:
        sample: (state, frozen, batch) -> completions.
        score: (state, frozen, batch, completions) -> RolloutScores.
        learn: (state, frozen, batch, rollout) -> state, metrics.
    """

    sample: Callable[[MocTrainState, Frozen, Batch], CompletionBatch]
    score: Callable[[MocTrainState, Frozen, Batch, CompletionBatch], RolloutScores]
    learn: Callable[[MocTrainState, Frozen, Batch, MocRollout], tuple[MocTrainState, Metrics]]


def init_train_state(key: jax.Array, trained: TrainedParams, config: MocConfig) -> MocTrainState:
    """Return the state before the first step.

    Args:
        key: random key of the run.
        trained: trained parameters, as in `ConditionedPolicy`.
        config: of the run.
    """
    init, rest = jax.random.split(key)
    return MocTrainState(
        train=optimiser.start(init, trained, config.optimiser),
        step=jnp.zeros((), jnp.int32),
        key=rest,
        kl_coef=jnp.asarray(config.kl.coef, jnp.float32),
    )


def make_programs(
    config: MocConfig,
    decoder: families.Config,
    names: Sequence[str],
    stop_ids: tuple[int, ...],
    mesh: Mesh,
    scale: RewardScale | None = None,
) -> Programs:
    """Return the parts of a step of a run.

    Args:
        config: of the run.
        decoder: of the model, as `config.trunk.decoder` makes it.
        names: [R] names of the rewards.
        stop_ids: token ids that end a completion.
        mesh: where parameters and rows are placed.
        scale: scale of the rewards, None where they lie between 0 and 1 as they are.

    Returns:
        The parts, which hold no parameters; `make_step` joins them.
    """
    run = _Run(config, decoder, tuple(names), stop_ids, mesh, scale)
    return Programs(run.sample, run.score, run.learn)


def make_step(
    programs: Programs, reward: TokenReward
) -> Callable[[MocTrainState, Frozen, Batch], tuple[MocTrainState, Metrics]]:
    """Return a whole step as one pure function of (state, frozen, batch).

    It jits, scans, and vmaps over states (seeds) and batches (preferences).

    Args:
        programs: from `make_programs`.
        reward: rewards computed from tokens, in the program.

    Returns:
        The step, which returns the new state and metrics.
    """

    def step(state: MocTrainState, frozen: Frozen, batch: Batch) -> tuple[MocTrainState, Metrics]:
        def rewards(completions: CompletionBatch) -> jax.Array:
            return token_rewards(reward, _after_plain_prompts(completions, batch))

        rollout = sample_and_score(
            lambda: programs.sample(state, frozen, batch),
            lambda completions: programs.score(state, frozen, batch, completions),
            rewards,
        )
        return programs.learn(state, frozen, batch, rollout)

    return step


@dataclass(frozen=True)
class _Run:
    """What the programs of a run share; nothing in it changes."""

    config: MocConfig
    decoder: families.Config
    names: tuple[str, ...]
    stop_ids: tuple[int, ...]
    mesh: Mesh
    scale: RewardScale | None

    @property
    def objectives(self) -> tuple[str, ...]:
        """[K] names of the objectives."""
        return self.names if self.config.reward == "vector" else (self.config.reward,)

    def sample(self, state: MocTrainState, frozen: Frozen, batch: Batch) -> CompletionBatch:
        """Sample one completion of each prompt."""
        config, sharding = self.config, batch_sharding(self.mesh)
        tokens = jax.lax.with_sharding_constraint(batch["tokens"], sharding)
        lengths = jax.lax.with_sharding_constraint(batch["lengths"], sharding)
        params = self._pinned(frozen)
        conditioned = self._conditioned(state.train.params, params, batch["preferences"])
        settings = config.sampling(self.stop_ids)
        static, traced = split_sampling(
            settings, rows=config.batch, padded=config.batch, vocab_size=self.decoder.vocab_size
        )
        spec = DecodeSpec(
            configs=(replace(self.decoder, remat=None),),
            adapters_per_row=1,
            slots=config.answer_tokens,
            sampling=static,
        )
        inputs = DecodeInputs(
            params=(params,),
            adapters=conditioned["adapters"],
            rows=conditioned["rows"],
            weights=None,
            keys=_fold(state, 0),
            sampling=jax.tree.map(jnp.asarray, traced),
        )
        soft = conditioned["prefix"]
        soft_lengths = None if soft is None else jnp.full(len(tokens), soft.shape[1], jnp.int32)
        found = decode(spec, inputs, Prompt(tokens, lengths, soft, soft_lengths))
        return CompletionBatch(tokens, lengths, found.tokens, found.lengths)

    def score(
        self, state: MocTrainState, frozen: Frozen, batch: Batch, completions: CompletionBatch
    ) -> RolloutScores:
        """Score completions under the policy and the reference, part by part as the update does.

        The policy is scored with the dropout masks that every epoch of the updates uses as well, so
        that the ratio of the first update is 1.
        """
        parts = self.config.minibatches * self.config.micro_batches
        params = self._pinned(frozen)

        def score_part(numbered: tuple[jax.Array, _ScoreBatch]) -> RolloutScores:
            number, part = numbered
            key = self._dropout_key(state, *jnp.divmod(number, self.config.micro_batches))
            logprobs, _, values = self._forward(
                state.train.params, params, part.completions, part.preferences, key
            )
            reference = self._likelihood.reference_logprobs(params, part.plain)
            return RolloutScores(logprobs, reference, values)

        plain = _after_plain_prompts(completions, batch)
        cut = self._cut(_ScoreBatch(completions, plain, batch["preferences"]), parts)
        found: RolloutScores = jax.lax.map(score_part, (jnp.arange(parts, dtype=jnp.int32), cut))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    def learn(
        self, state: MocTrainState, frozen: Frozen, batch: Batch, rollout: MocRollout
    ) -> tuple[MocTrainState, Metrics]:
        """Compute the experience of a step, make its updates, and adapt the KL coefficient."""
        config, preferences = self.config, batch["preferences"]
        completions, scores, raw = rollout
        mask = completions.mask
        raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
        levels = raw if self.scale is None else self.scale.levels(raw)
        errors = group_errors(levels, preferences, config.combine.form)
        rewards, objective_preferences, coefficients = self._objectives(levels, preferences)
        if config.advantage_baseline == "group":
            experience = compute_group_experience(
                rewards, coefficients, scores, mask, state.kl_coef, config.groups
            )
        else:
            experience = compute_experience(
                rewards, coefficients, scores, mask, state.kl_coef, config.gamma, config.lam
            )
        inputs = _UpdateBatch(
            completions=completions,
            experience=experience,
            mask=mask,
            preferences=preferences,
            objective_preferences=objective_preferences,
            similarity_error=errors.similarity_error,
        )
        bad = find_bad_row(levels, scores, experience, mask)
        train, metrics = self._updates(state, frozen, inputs, bad.row < 0)
        log_ratio = jnp.where(mask, scores.old_logprobs - scores.ref_logprobs, 0)
        row_kl = jnp.sum(log_ratio, axis=1)
        kl = jnp.mean(row_kl)
        kl_coef = state.kl_coef
        if config.kl.adaptive:
            kl_coef = adapt_kl_coef(kl_coef, kl, config.kl.target, config.kl.horizon, config.batch)
        lengths = completions.completion_lengths
        alike = jnp.all(levels == levels[:1], axis=0)
        metrics = metrics | {
            **dict(
                zip((f"reward_{name}" for name in self.names), levels.mean(axis=0), strict=True)
            ),
            "error": jnp.mean(errors.squared_error),
            "kl": kl,
            "kl_row": jnp.argmax(row_kl),
            "kl_coef": state.kl_coef,
            "completion_tokens": jnp.mean(lengths.astype(jnp.float32)),
            "tokens": jnp.sum(completions.prompt_lengths + lengths),
            **{f"alike_{name}": same for name, same in zip(self.names, alike, strict=True)},
            "bad_row": bad.row,
            "bad_part": bad.part,
        }
        return MocTrainState(train, state.step + 1, state.key, kl_coef), metrics

    def _objectives(
        self, levels: jax.Array, preferences: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Return rewards [B, K], preferences over them [G, K], similarity coefficients [B, K]."""
        config = self.config
        if config.reward == "vector":
            if config.combine.rule == "linear":
                return levels, preferences, jnp.zeros_like(levels)
            form = config.combine.form
            return levels, preferences, similarity_coefficients(levels, preferences, form)
        single = {"weighted": weighted_reward, "closeness": closeness_reward}[config.reward]
        rewards = single(levels, preferences)
        ones = jnp.ones((len(preferences), 1), levels.dtype)
        return rewards, ones, jnp.zeros_like(rewards)

    def _updates(
        self, state: MocTrainState, frozen: Frozen, inputs: _UpdateBatch, finite: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Make epochs of updates, up to the one that finds the policy too far from its start."""
        config = self.config
        micros = self._cut(inputs, config.minibatches, config.micro_batches)
        total_updates = config.steps * config.epochs * config.minibatches
        progress = state.step.astype(jnp.float32) / config.steps

        def loss(
            params: TrainedParams, frozen: Frozen, micro: Mapping[str, Any], key: jax.Array | None
        ) -> Sums:
            part: _UpdateBatch = micro["parts"]
            logprobs, entropy, values = self._forward(
                params, frozen, part.completions, part.preferences, key
            )
            groups = Group(
                part.experience, part.mask, part.objective_preferences, part.similarity_error
            )
            return batch_loss(groups, logprobs, entropy, values, config, progress)

        @jax.jit  # so that `eval_shape` and `cond` below share one trace
        def updated(train: TrainState, number: jax.Array, micro: Any) -> tuple[TrainState, Metrics]:
            key = jax.random.fold_in(_fold(state, 1), number)
            pinned = self._pinned(frozen)
            grads, means = gradient(loss, train.params, pinned, {"parts": micro}, key)
            train, more = optimiser.apply(train, grads, config.optimiser, total_updates)
            return train, means | more | {"updates": jnp.ones((), jnp.float32)}

        def update(
            carry: tuple[TrainState, jax.Array], numbered: tuple[jax.Array, _UpdateBatch]
        ) -> tuple[tuple[TrainState, jax.Array], Metrics]:
            train, stopped = carry
            shapes = jax.eval_shape(updated, train, *numbered)[1]

            def skipped(train: TrainState, *_: object) -> tuple[TrainState, Metrics]:
                # Counted, or a schedule that spans all updates would not reach its end.
                train = train._replace(step=train.step + 1)
                return train, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            train, metrics = jax.lax.cond(stopped, skipped, updated, train, *numbered)
            rows = config.batch // config.minibatches
            # From a mean over tokens to one over completions, in which the target is given.
            policy_kl = metrics["policy_kl"] * metrics["weight"] / rows
            stopped |= policy_kl > config.kl.stop * config.kl.target
            return (train, stopped), metrics | {"policy_kl": policy_kl}

        def epoch(
            carry: tuple[TrainState, jax.Array], _: None
        ) -> tuple[tuple[TrainState, jax.Array], Metrics]:
            numbers = jnp.arange(config.minibatches, dtype=jnp.int32)
            return jax.lax.scan(update, carry, (numbers, micros))

        (train, _), found = jax.lax.scan(epoch, (state.train, ~finite), None, length=config.epochs)
        return train, self._reported(found)

    def _reported(self, found: Metrics) -> Metrics:
        """Means over the updates that were made, of metrics [epochs, minibatches].

        `first_drift`, mean |ratio - 1| in the first update, is 0 but for rounding as long as
        scoring and updates compute the same.
        """
        made = jnp.sum(found["updates"])
        means = {name: jnp.sum(value) / jnp.maximum(made, 1) for name, value in found.items()}
        weights = [means.pop(f"weight_{number}") for number in range(len(self.objectives))]
        named = {f"weight_{name}": c for name, c in zip(self.objectives, weights, strict=True)}
        del means["weight"], means["drift"]
        return means | named | {"updates": made, "first_drift": found["drift"][0, 0]}

    @property
    def _likelihood(self) -> Likelihood:
        return Likelihood(self.config, self.decoder, self.stop_ids, self.mesh)

    def _forward(
        self,
        trained: TrainedParams,
        params: Frozen,
        completions: CompletionBatch,
        preferences: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Log-probabilities and entropies [B, M] and values [B, M, K + 1] of the policy."""
        config = self.config
        adapter_key, values_key = (None, None) if key is None else jax.random.split(key)
        rows = jnp.repeat(preferences, config.rows, axis=0)
        likelihood = self._likelihood
        states = likelihood.states(trained, params, completions, rows, adapter_key)
        logprobs, entropy = state_logprobs(
            states, unembedding(params), completions, likelihood.distribution
        )
        if config.advantage_baseline == "group":  # without heads
            shape = (*logprobs.shape, len(self.objectives) + 1)
            return logprobs, entropy, jnp.zeros(shape, logprobs.dtype)
        inputs = states.astype(jnp.promote_types(states.dtype, jnp.float32))
        if values_key is not None and config.value_dropout:
            keep_rate = 1 - config.value_dropout
            keep = jax.random.bernoulli(values_key, keep_rate, inputs.shape)
            inputs = jnp.where(keep, inputs / keep_rate, 0)
        head = value_head(len(self.objectives))
        values: Any = head.apply({"params": trained["heads"]["value"]}, inputs)
        return logprobs, entropy, values

    def _conditioned(
        self, trained: TrainedParams, params: Frozen, preferences: jax.Array
    ) -> ConditionedInputs:
        rows = jnp.repeat(preferences, self.config.rows, axis=0)
        return conditioned_inputs(trained, params["embed"]["table"], self.config.trunk.lora, rows)

    def _pinned(self, params: Frozen) -> dict[str, Any]:
        """The parameters, with whole rows of their tables: see `jaxalign.train.mesh.gathered`."""
        tables = {
            name: {**params[name], "table": gathered(params[name]["table"], self.mesh)}
            for name in ("embed", "unembed")
            if name in params
        }
        return {**params, **tables}

    def _dropout_key(
        self, state: MocTrainState, minibatch: jax.Array, micro: jax.Array
    ) -> jax.Array:
        """The key that `train.step.gradient` gives a micro-batch, the same in every epoch."""
        return jax.random.fold_in(jax.random.fold_in(_fold(state, 1), minibatch), micro)

    def _cut(self, tree: Tree, *parts: int) -> Tree:
        """Cut leaves [B, ...] and [G, ...] into [*parts, b, ...], each part's rows on the mesh."""
        whole = (None,) * len(parts)
        rows = NamedSharding(self.mesh, PartitionSpec(*whole, *batch_sharding(self.mesh).spec))

        def cut_leaf(leaf: jax.Array) -> jax.Array:
            count = len(leaf) // int(np.prod(parts))
            cut = leaf.reshape(*parts, count, *leaf.shape[1:])
            if len(leaf) != self.config.batch:  # groups, which are few and small
                return cut
            return jax.lax.with_sharding_constraint(cut, rows)

        return jax.tree.map(cut_leaf, tree)


def _fold(state: MocTrainState, number: int) -> jax.Array:
    """Return the step's key for one purpose, its number: 0 for sampling, 1 for dropout."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), number)


def _after_plain_prompts(completions: CompletionBatch, batch: Batch) -> CompletionBatch:
    """The completions after the prompts that the reference and the rewards read."""
    return completions._replace(prompts=batch["plain"], prompt_lengths=batch["plain_lengths"])
