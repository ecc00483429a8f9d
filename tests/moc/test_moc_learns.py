"""A tiny language model learns to follow preferences along fronts that are known."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxalign.metrics.agreement import corner_movement, tau_b
from jaxalign.metrics.pareto import hypervolume
from jaxalign.moc.combination import CombineConfig
from jaxalign.moc.config import KLConfig, MocConfig
from jaxalign.moc.policy import init_policy
from jaxalign.moc.preferences import (
    PreferenceConfig,
    evaluation_points,
    lattice,
    sample_preferences,
)
from jaxalign.moc.step import init_train_state, make_programs, make_step
from jaxalign.models import families
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.models.lora import LoraConfig
from jaxalign.rewards.vector import TokenReward
from jaxalign.train.mesh import make_mesh
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import TrunkConfig

pytestmark = pytest.mark.slow

NAMES = ("red", "blue", "green")
SEEDS = 3
PROMPT, ANSWER = 2, 2
JUDGED = 1024  # answers to each preference: the error of a mean is about .01
# Hundreds of steps in one program: it pays to undo the tests' setting, see conftest.
OPTIMISED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
IDLE = 2  # letters without any reward
# No value twice in a column: ties would lower tau.
BETWEEN = {
    2: [(n / 20, 1 - n / 20) for n in range(1, 20, 2)],
    3: [
        tuple(np.roll(row, turn).tolist())
        for row in ((0.04, 0.2, 0.76), (0.1, 0.32, 0.58), (0.14, 0.4, 0.46))
        for turn in range(3)
    ],
}


def letters(front, objectives):
    """Rewards [V, R] of each letter: an answer's are the mean over its letters.

    On the linear front a letter is of one colour, so that r_1 + r_2 = 1 at best. On the concave one
    letters lie between the colours too, at distance 1 from the origin.
    """
    points = lattice(objectives, 3)
    if front == "linear":
        points = np.eye(objectives)[np.arange(len(points)) % objectives]
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    return np.pad(points, ((0, IDLE), (0, 0))).astype(np.float32)


def targets(front, preferences):
    """Where the ray of each preference leaves what mixtures of letters attain."""
    points = letters(front, preferences.shape[1])
    found = []
    for told in np.asarray(preferences, np.float64):
        # Most t such that a mixture of the letters is t times the preference.
        equal = np.vstack([np.c_[points.T, -told], [*np.ones(len(points)), 0.0]])
        right = [*np.zeros(len(told)), 1.0]
        best = linprog([*np.zeros(len(points)), -1.0], A_eq=equal, b_eq=right)
        found.append(-best.fun * told)
    return np.array(found)


def judged(objectives):
    """Preferences told in training, and others that never were."""
    return evaluation_points(objectives), np.array(BETWEEN[objectives], np.float32)


def config(objectives, rule):
    told, between = (tuple(map(tuple, rows.tolist())) for rows in judged(objectives))
    drawn = PreferenceConfig("list", listed=told + between, decimals=2, held_out=between)
    if objectives == 3:  # 13 are too few to tell what lies between them
        drawn = PreferenceConfig("grid", points=11, decimals=2, held_out=between)
    return MocConfig(
        steps=150 if objectives == 2 else 400,
        groups=8 if objectives == 2 else 12,
        rows=8,
        prompt_tokens=PROMPT,
        answer_tokens=ANSWER,
        temperature=1.0,
        epochs=2,
        micro_batches=1,
        lam=1.0,
        value_dropout=0.0,
        kl=KLConfig(coef=0.0, adaptive=False, target=1e4),
        combine=CombineConfig(rule),
        preferences=drawn,
        conditioning="token",
        trunk=TrunkConfig(lora=LoraConfig(rank=8, alpha=16.0)),
        optimiser=OptimiserConfig(
            rate=5e-3 if objectives == 2 else 8e-3, schedule="cosine", warmup=0.05, clip_norm=0.5
        ),
    )


def language_model(vocabulary):
    decoder = DecoderConfig(
        "llama", vocabulary, width=32, layers=2, heads=2, kv_heads=1, head_width=16, hidden=64,
        positions=1 + PROMPT + ANSWER,
    )  # fmt: skip
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), decoder)

    def scaled(leaf):
        # A trained model's sizes, not those of a first step: else neither the prompt nor the
        # adapter, which leaves the unembedding alone, moves a letter's odds by much.
        size = float(jnp.std(leaf))
        inputs = leaf.shape[-1]
        return leaf / size * inputs**-0.5 if leaf.ndim > 1 and size > 0 else leaf

    params = jax.tree.map(scaled, params)
    params["embed"]["table"] = params["embed"]["table"] / jnp.std(params["embed"]["table"])
    params["unembed"]["table"] = (
        params["unembed"]["table"] / jnp.std(params["unembed"]["table"]) * decoder.width**-0.5
    )
    return LanguageModel(decoder, params, None, {}, "tiny", "0" * 64)


@cache
def learned(objectives, rule, fronts, conditioning="token", steps=None, baseline="values"):
    """Rewards [fronts, seeds, W, R] reached under every preference; all runs are one program."""
    own, names = config(objectives, rule), NAMES[:objectives]
    own = replace(own, conditioning=conditioning, advantage_baseline=baseline)
    own = replace(own, steps=steps or own.steps)
    asked = np.concatenate(judged(objectives))
    judge = replace(own, groups=len(asked), rows=JUDGED)
    tables = jnp.stack([letters(front, objectives) for front in fronts])
    vocabulary = tables.shape[1]
    model, mesh = language_model(vocabulary), make_mesh(own.trunk.mesh)

    def programs(config):
        return make_programs(config, model.config, names, (), mesh)

    def reward(table):
        def function(prompts, lengths, answers, ends):
            return jnp.mean(table[answers], axis=1)  # none ends early: there is no stop token

        return TokenReward(names, function, "letters")

    def batch(config, rng, preferences):
        tokens = rng.integers(0, vocabulary, (config.batch, PROMPT), np.int32)
        lengths = np.full(config.batch, PROMPT, np.int32)
        return {
            "tokens": tokens, "lengths": lengths, "plain": tokens, "plain_lengths": lengths,
            "preferences": preferences,
        }  # fmt: skip

    def batches(seed):
        rng = np.random.default_rng(seed)
        each = [
            batch(own, rng, sample_preferences(seed, step, own.groups, names, own.preferences))
            for step in range(own.steps)
        ]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *each)

    last = batch(judge, np.random.default_rng(SEEDS), asked)

    def run(table, key, batches):
        first, second = jax.random.split(key)
        state = init_train_state(second, init_policy(first, model, names, own).trained, own)
        step = make_step(programs(own), reward(table))
        state, _ = jax.lax.scan(
            lambda state, batch: step(state, model.params, batch), state, batches
        )
        found = programs(judge).sample(state, model.params, last)
        return (
            jnp.mean(table[found.completions], axis=1)
            .reshape(len(asked), -1, objectives)
            .mean(axis=1)
        )

    seeds = jax.vmap(run, (None, 0, 0))
    program = jax.jit(jax.vmap(seeds, (0, None, None)), compiler_options=OPTIMISED)
    keys = jax.random.split(jax.random.key(1), SEEDS)
    own_batches = jax.tree.map(lambda *leaves: np.stack(leaves), *map(batches, range(SEEDS)))
    found = np.asarray(program(tables, keys, own_batches), np.float64)
    return dict(zip(fronts, found, strict=True))


@pytest.mark.parametrize("objectives", [2, 3])
def test_one_policy_serves_every_preference_on_both_fronts(objectives):
    told, between = judged(objectives)
    for front, runs in learned(objectives, "blend", ("linear", "concave")).items():
        best = hypervolume(targets(front, told), np.zeros(objectives))
        share = [hypervolume(run[: len(told)], np.zeros(objectives)) / best for run in runs]
        seen = np.mean([tau_b(told, run[: len(told)]) for run in runs], axis=0)
        unseen = np.mean([tau_b(between, run[len(told) :]) for run in runs], axis=0)
        assert np.mean(share) >= 0.95
        assert seen.min() >= 0.9
        assert (unseen >= seen - 0.05).all()


def test_adapters_follow_the_preference_in_a_third_of_the_answers():
    """The fronts are covered at 50 steps, a third of what the soft token is given above.

    Share of the hypervolume, 8 seeds, linear and concave front, tau-b 1 throughout: adapters at 50
    steps 0.983 and 0.969 (with value heads 0.980 and 0.981); the soft token 0.988 and 0.982 at 150
    steps, and 0.983 and 0.975 at 50. So these tiny worlds do not tell the two apart.
    """
    told, between = judged(2)
    fronts = ("linear", "concave")
    runs_by_front = learned(2, "blend", fronts, "adapters", 50, "group")
    for front, runs in runs_by_front.items():
        best = hypervolume(targets(front, told), np.zeros(2))
        share = [hypervolume(run[: len(told)], np.zeros(2)) / best for run in runs]
        assert np.mean(share) >= 0.95
        for run in runs:
            assert min(tau_b(told, run[: len(told)])) >= 0.95
            assert min(tau_b(between, run[len(told) :])) >= 0.95
            assert min(corner_movement(told, run[: len(told)])) >= 0.8


def test_weighing_by_the_preference_is_all_or_nothing():
    told, _ = judged(2)
    volumes = {
        rule: [
            hypervolume(run[: len(told)], np.zeros(2)) for run in learned(2, rule, fronts)["linear"]
        ]
        for rule, fronts in (("blend", ("linear", "concave")), ("linear", ("linear",)))
    }
    assert min(volumes["blend"]) > max(volumes["linear"])
