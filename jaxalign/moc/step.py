"""One step of training, from preferences and prompts to a better policy, as pure functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.errors import InputError
from jaxalign.moc.config import MocConfig
from jaxalign.moc.experience import Scored, closeness, experience, reached, slopes, weighted
from jaxalign.moc.policy import conditioned_inputs, value_head
from jaxalign.moc.ppo import adapt_kl_coef
from jaxalign.moc.update import Group, batch_loss
from jaxalign.models import families
from jaxalign.models.completions import (
    CompletionBatch,
    completion_logprobs,
    completion_states,
    sampling_distribution,
    state_logprobs,
)
from jaxalign.models.decoder import unembedding
from jaxalign.models.generate import DecodeInputs, DecodeSpec, Prompt, decode
from jaxalign.models.sampling import split_sampling
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.vector import TokenReward
from jaxalign.train import optimiser
from jaxalign.train.mesh import batch_sharding, gathered
from jaxalign.train.optimiser import TrainState
from jaxalign.train.step import Sums, gradient

Batch = Mapping[str, jax.Array]
Metrics = dict[str, jax.Array]


class MocTrainState(NamedTuple):
    """All that a step changes.

    Attributes:
        train: parameters {"adapter", "heads", perhaps "token"} and the optimiser's moments.
        step: [] int32 steps taken.
        key: of the run; a step draws from its own fold.
        coefficient: [] of the KL.
    """

    train: TrainState
    step: jax.Array
    key: jax.Array
    coefficient: jax.Array


@dataclass(frozen=True)
class Programs:
    """The parts of a step, all pure, and the step.

    Batches hold `tokens` [B, T] and `lengths` [B] as the policy reads the prompts, `plain` and
    `plain_lengths` as the reference and the rewards do, and `preferences` [G, R]; the rows of a
    group lie beside each other.

    Attributes:
        rollout: (state, frozen, batch) -> CompletionBatch.
        score: (state, frozen, batch, answers) -> Scored.
        learn: (state, frozen, batch, answers, scored, raw rewards [B, R]) -> state, metrics.
        step: (state, frozen, batch) -> state, metrics, where the rewards are traced; else None.
            It jits, scans and vmaps over states (seeds) and batches (preferences).
    """

    rollout: Callable[[MocTrainState, Any, Batch], CompletionBatch]
    score: Callable[[MocTrainState, Any, Batch, CompletionBatch], Scored]
    learn: Callable[
        [MocTrainState, Any, Batch, CompletionBatch, Scored, jax.Array],
        tuple[MocTrainState, Metrics],
    ]
    step: Callable[[MocTrainState, Any, Batch], tuple[MocTrainState, Metrics]] | None


def init_train_state(
    key: jax.Array, trained: Mapping[str, Any], config: MocConfig
) -> MocTrainState:
    """The state before the first step."""
    own, rest = jax.random.split(key)
    return MocTrainState(
        optimiser.start(own, trained, config.optimiser),
        jnp.zeros((), jnp.int32),
        rest,
        jnp.asarray(config.kl.coef, jnp.float32),
    )


def make_train(
    config: MocConfig,
    decoder: families.Config,
    names: Sequence[str],
    stop_ids: tuple[int, ...],
    mesh: Mesh,
    reward: TokenReward | None = None,
    scale: RewardScale | None = None,
) -> Programs:
    """The programs of a run.

    Args:
        config: of the run.
        decoder: of the model, as `config.trunk.decoder` makes it.
        names: [R] of the rewards.
        stop_ids: that end an answer.
        mesh: where parameters and rows lie.
        reward: traced rewards, None where the host computes them.
        scale: of the rewards, None where they lie between 0 and 1 as they are.
    """
    run = _Run(config, decoder, tuple(names), stop_ids, mesh, scale)

    def step(state: MocTrainState, frozen: Any, batch: Batch) -> tuple[MocTrainState, Metrics]:
        assert reward is not None
        answers = run.rollout(state, frozen, batch)
        scored = run.score(state, frozen, batch, answers)
        raw = reward.function(
            batch["plain"], batch["plain_lengths"], answers.completions, answers.completion_lengths
        )
        wanted = (len(answers.completion_lengths), len(names))
        if raw.shape != wanted:
            raise InputError(
                f"the reward {', '.join(names)} gives shape {raw.shape}; expected {wanted}, a row "
                "for each answer and a column for each name."
            )
        return run.learn(state, frozen, batch, answers, scored, raw)

    return Programs(run.rollout, run.score, run.learn, step if reward is not None else None)


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
        return self.names if self.config.reward == "vector" else (self.config.reward,)

    def rollout(self, state: MocTrainState, frozen: Any, batch: Batch) -> CompletionBatch:
        """Answers to the prompts of a batch."""
        config, rows = self.config, batch_sharding(self.mesh)
        tokens, lengths = (
            jax.lax.with_sharding_constraint(batch[name], rows) for name in ("tokens", "lengths")
        )
        params = self._pinned(frozen)
        told = self._told(state.train.params, params, batch["preferences"])
        settings = config.sampling(self.stop_ids)
        static, sampled = split_sampling(
            settings, config.batch, config.batch, self.decoder.vocab_size
        )
        plain = replace(self.decoder, remat=None)
        spec = DecodeSpec((plain,), 1, config.answer_tokens, static, config.unstack_layers)
        sampled = jax.tree.map(jnp.asarray, sampled)
        inputs = DecodeInputs((params,), told["adapters"], None, None, _fold(state, 0), sampled)
        soft = told["prefix"]
        firsts = None if soft is None else jnp.full(len(tokens), soft.shape[1], jnp.int32)
        found = decode(spec, inputs, Prompt(tokens, lengths, soft, firsts))
        return CompletionBatch(tokens, lengths, found.tokens, found.lengths)

    def score(
        self, state: MocTrainState, frozen: Any, batch: Batch, answers: CompletionBatch
    ) -> Scored:
        """The answers under the policy and the reference, by the parts that the update has."""
        parts = self.config.minibatches * self.config.micro_batches
        params = self._pinned(frozen)
        drawn = sampling_distribution(self.config.sampling(self.stop_ids), self.decoder.vocab_size)

        def one(place: tuple[jax.Array, Any]) -> Scored:
            number, (part, plain, preferences) = place
            # The update's own key: what it drops has been dropped here, and its first ratio is 1.
            key = self._dropout(state, *jnp.divmod(number, self.config.micro_batches))
            logp, _, values = self._read(state.train.params, params, part, preferences, key)
            reference, _ = completion_logprobs(
                self.decoder, params, plain, drawn, sharding=batch_sharding(self.mesh)
            )
            return Scored(logp, reference, values)

        plain = answers._replace(prompts=batch["plain"], prompt_lengths=batch["plain_lengths"])
        cut = self._cut((answers, plain, batch["preferences"]), parts)
        found: Scored = jax.lax.map(one, (jnp.arange(parts, dtype=jnp.int32), cut))
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), found)

    def learn(
        self,
        state: MocTrainState,
        frozen: Any,
        batch: Batch,
        answers: CompletionBatch,
        scored: Scored,
        raw: jax.Array,
    ) -> tuple[MocTrainState, Metrics]:
        """The updates of a step."""
        config, preferences, mask = self.config, batch["preferences"], answers.mask
        raw = raw.astype(jnp.promote_types(raw.dtype, jnp.float32))
        levels = raw if self.scale is None else self.scale.levels(raw)
        got = reached(levels, preferences, config.combine.form)
        objectives, slope, asked = levels, jnp.zeros_like(levels), preferences
        if config.reward != "vector":
            one = {"weighted": weighted, "closeness": closeness}[config.reward]
            objectives = one(levels, preferences)
            slope = jnp.zeros_like(objectives)
            asked = jnp.ones((len(preferences), 1), levels.dtype)
        elif config.combine.rule != "linear":
            slope = slopes(levels, preferences, config.combine.form)
        own = experience(
            objectives, slope, scored, mask, state.coefficient, config.gamma, config.lam
        )
        rows = (answers, own, mask)
        groups = (preferences, asked, got.error)
        finite = jnp.all(jnp.isfinite(levels))
        train, metrics = self._updates(state, frozen, rows, groups, finite)
        kl = jnp.mean(jnp.sum(jnp.where(mask, scored.logp - scored.reference, 0), axis=1))
        coefficient = state.coefficient
        if config.kl.adaptive:
            coefficient = adapt_kl_coef(
                coefficient, kl, config.kl.target, config.kl.horizon, config.batch
            )
        bad = jnp.any(~jnp.isfinite(levels), axis=1)
        metrics = metrics | {
            **dict(
                zip((f"reward_{name}" for name in self.names), levels.mean(axis=0), strict=True)
            ),
            "error": jnp.mean(got.distance),
            "kl": kl,
            "coefficient": state.coefficient,
            "answer_tokens": jnp.mean(answers.completion_lengths.astype(jnp.float32)),
            "tokens": jnp.sum(answers.prompt_lengths + answers.completion_lengths),
            "bad_row": jnp.where(jnp.any(bad), jnp.argmax(bad), -1).astype(jnp.int32),
        }
        return MocTrainState(train, state.step + 1, state.key, coefficient), metrics

    def _updates(
        self, state: MocTrainState, frozen: Any, rows: Any, groups: Any, finite: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Epochs of minibatches, until the policy is too far from the one that drew."""
        config = self.config
        micros = self._cut((rows, groups), config.minibatches, config.micro_batches)
        total = config.steps * config.epochs * config.minibatches
        progress = state.step.astype(jnp.float32) / config.steps

        def loss(params: Any, frozen: Any, micro: Batch, key: jax.Array | None) -> Sums:
            (answers, own, mask), (preferences, asked, error) = micro["parts"]
            logp, entropy, values = self._read(params, frozen, answers, preferences, key)
            groups = Group(own, mask, asked, error)
            return batch_loss(groups, logp, entropy, values, config, progress)

        @jax.jit  # traced once for its shapes and its use
        def learned(train: TrainState, number: jax.Array, own: Any) -> tuple[TrainState, Metrics]:
            key = jax.random.fold_in(_fold(state, 1), number)
            slope, means = gradient(loss, train.params, self._pinned(frozen), {"parts": own}, key)
            train, more = optimiser.apply(train, slope, config.optimiser, total)
            return train, means | more | {"updates": jnp.ones((), jnp.float32)}

        def update(
            carry: tuple[TrainState, jax.Array], place: tuple[jax.Array, Any]
        ) -> tuple[tuple[TrainState, jax.Array], Metrics]:
            train, stopped = carry
            shapes = jax.eval_shape(learned, train, *place)[1]

            def kept(train: TrainState, *_: Any) -> tuple[TrainState, Metrics]:
                return train, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            train, metrics = jax.lax.cond(stopped, kept, learned, train, *place)
            answers = config.batch // config.minibatches
            change = metrics["policy_kl"] * metrics["weight"] / answers
            stopped |= change > config.kl.stop * config.kl.target
            return (train, stopped), metrics | {"policy_kl": change}

        def epoch(carry: Any, _: None) -> tuple[Any, Metrics]:
            numbers = jnp.arange(config.minibatches, dtype=jnp.int32)
            return jax.lax.scan(update, carry, (numbers, micros))

        (train, _), found = jax.lax.scan(epoch, (state.train, ~finite), None, length=config.epochs)
        return train, self._reported(found)

    def _reported(self, found: Metrics) -> Metrics:
        """Means over the updates that were made, of metrics [epochs, minibatches]."""
        made = jnp.sum(found["updates"])
        means = {name: jnp.sum(value) / jnp.maximum(made, 1) for name, value in found.items()}
        weights = [means.pop(f"weight_{number}") for number in range(len(self.objectives))]
        named = {f"weight_{name}": c for name, c in zip(self.objectives, weights, strict=True)}
        del means["weight"], means["drift"]
        return means | named | {"updates": made, "first_drift": found["drift"][0, 0]}

    def _read(
        self,
        trained: Mapping[str, Any],
        params: Mapping[str, Any],
        answers: CompletionBatch,
        preferences: jax.Array,
        key: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Log-probabilities and entropies [B, M] and values [B, M, K + 1] of the policy."""
        config = self.config
        drop, hide = (None, None) if key is None else jax.random.split(key)
        states = completion_states(
            self.decoder,
            params,
            answers,
            **self._told(trained, params, preferences),
            adapter_dropout=config.trunk.lora.dropout,
            dropout_key=drop,
            sharding=batch_sharding(self.mesh),
        )
        drawn = sampling_distribution(config.sampling(self.stop_ids), self.decoder.vocab_size)
        logp, entropy = state_logprobs(states, unembedding(params), answers, drawn)
        seen = states.astype(jnp.promote_types(states.dtype, jnp.float32))
        if hide is not None and config.value_dropout:
            kept = 1 - config.value_dropout
            mask = jax.random.bernoulli(hide, kept, seen.shape)
            seen = jnp.where(mask, seen / kept, 0)
        head = value_head(len(self.objectives))
        values: Any = head.apply({"params": trained["heads"]["value"]}, seen)
        return logp, entropy, values

    def _told(self, trained: Any, params: Any, preferences: jax.Array) -> dict[str, Any]:
        rows = jnp.repeat(preferences, self.config.rows, axis=0)
        return conditioned_inputs(trained, params["embed"]["table"], self.config.trunk.lora, rows)

    def _pinned(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Whole rows of the tables: see `jaxalign.train.mesh.gathered`."""
        tables = {
            name: {**params[name], "table": gathered(params[name]["table"], self.mesh)}
            for name in ("embed", "unembed")
            if name in params
        }
        return {**params, **tables}

    def _dropout(self, state: MocTrainState, minibatch: jax.Array, micro: jax.Array) -> jax.Array:
        """The key that `train.step.gradient` gives a micro-batch."""
        return jax.random.fold_in(jax.random.fold_in(_fold(state, 1), minibatch), micro)

    def _cut(self, tree: Any, *parts: int) -> Any:
        """Leaves [B, ...] and [G, ...] as [*parts, b, ...]; every part has its rows on the mesh."""
        whole = (None,) * len(parts)
        rows = NamedSharding(self.mesh, PartitionSpec(*whole, *batch_sharding(self.mesh).spec))

        def at(leaf: jax.Array) -> jax.Array:
            count = len(leaf) // int(np.prod(parts))
            cut = leaf.reshape(*parts, count, *leaf.shape[1:])
            if len(leaf) != self.config.batch:  # groups, which are few and small
                return cut
            return jax.lax.with_sharding_constraint(cut, rows)

        return jax.tree.map(at, tree)


def _fold(state: MocTrainState, number: int) -> jax.Array:
    """The step's key of one purpose: 0 draws answers, 1 drops."""
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), number)
