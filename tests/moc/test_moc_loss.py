"""The loss of a group against NumPy, its gradient, and what more objectives cost."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import moc_world as world
import numpy as np
import pytest

from jaxalign.moc.combination import CombineConfig
from jaxalign.moc.experience import Experience, RolloutScores
from jaxalign.moc.loss import Group, batch_loss, group_loss
from jaxalign.moc.policy import init_policy
from jaxalign.moc.step import init_train_state, make_programs
from jaxalign.models.completions import CompletionBatch
from jaxalign.rollout import Rollout
from jaxalign.train.mesh import MeshConfig, make_mesh

ROWS, M, R = 4, 5, 3


def group(seed, dtype="float64"):
    rng = np.random.default_rng(seed)
    ends = rng.integers(1, M + 1, ROWS)
    mask = np.arange(M)[None] < ends[:, None]
    old = -rng.random((ROWS, M))
    values = rng.normal(size=(ROWS, M, R + 1))
    returns = values + rng.normal(size=values.shape)
    advantages = rng.normal(size=(ROWS, M, R))
    similarity, kl = rng.normal(size=(2, ROWS, M))
    own = Experience(old, values, returns, advantages, similarity, kl)
    made = Group(own, mask, rng.dirichlet(np.ones(R)), np.asarray(0.05))
    logp = old + rng.normal(0, 0.2, old.shape)
    now = values + rng.normal(0, 0.3, values.shape)
    numbers = (made, logp, rng.random((ROWS, M)), now)
    return jax.tree.map(lambda x: jnp.asarray(x, bool if x.dtype == bool else dtype), numbers)


def expected(made, logp, values, weights, config):
    """Sums over the tokens of policy and value loss, one token after another."""
    own, shares = made.experience, [*weights, 1 - sum(weights), 1.0]
    policy = value = 0.0
    for row, slot in np.argwhere(np.asarray(made.mask)):
        ratio = np.exp(logp[row, slot] - own.old_logprobs[row, slot])
        near = np.clip(ratio, 1 - config.clip, 1 + config.clip)
        streams = [
            *own.advantages[row, slot],
            own.similarity_advantages[row, slot],
            own.kl_advantages[row, slot],
        ]
        for share, advantage in zip(shares, streams, strict=True):
            policy += share * max(-ratio * advantage, -near * advantage)
        for head in range(R + 1):
            now, before = values[row, slot, head], own.values[row, slot, head]
            held = np.clip(now, before - config.value_clip, before + config.value_clip)
            target = own.returns[row, slot, head]
            value += max((now - target) ** 2, (held - target) ** 2) / 2
    return policy, value


@pytest.mark.parametrize("rule", ["linear", "blend", "gate"])
def test_the_loss_is_that_of_numpy(rule, x64):
    config = world.config(combine=CombineConfig(rule), value_coef=0.3)
    made, logp, entropy, values = group(0)
    sums = group_loss(made, logp, entropy, values, config, jnp.asarray(0.5))
    count = float(np.asarray(made.mask).sum())
    weights = [float(sums[f"weight_{i}"]) / count for i in range(R)]
    if rule == "linear":
        np.testing.assert_allclose(weights, made.preference)
    if rule == "gate":  # the error of .05 is above .01: the similarity alone
        assert weights == [0.0] * R
    if rule == "blend":
        np.testing.assert_allclose(sum(weights), 1 / 4)
    policy, value = expected(made, np.asarray(logp), np.asarray(values), weights, config)
    np.testing.assert_allclose(sums["policy_loss"], policy, rtol=1e-10)
    np.testing.assert_allclose(sums["value_loss"], value, rtol=1e-10)
    np.testing.assert_allclose(sums["loss"], policy + 0.3 * value, rtol=1e-10)
    assert float(sums["weight"]) == count


def test_the_gradient_is_the_weighted_direction(x64):
    """At ratio 1 and without the clip: -(sum c_i A_i + rest A_similarity + A_kl)."""
    config = world.config(combine=CombineConfig("blend"))
    made, _, entropy, values = group(1)

    def loss(logp):
        sums = group_loss(made, logp, entropy, values, config, jnp.asarray(0.0))
        return sums["loss"], sums

    (_, sums), slope = jax.value_and_grad(loss, has_aux=True)(made.experience.old_logprobs)
    own, mask = made.experience, np.asarray(made.mask)
    c = np.array([sums[f"weight_{i}"] for i in range(R)]) / mask.sum()
    total = own.advantages @ c + (1 - c.sum()) * own.similarity_advantages + own.kl_advantages
    np.testing.assert_allclose(slope, -np.asarray(total) * mask, atol=1e-12)


def test_many_groups_are_their_sum():
    config = world.config(combine=CombineConfig("blend"))
    each = [group(seed, "float32") for seed in range(3)]
    groups, logp, entropy, values = jax.tree.map(lambda *x: jnp.stack(x), *each)

    def flat(tree):
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)

    joined = groups._replace(experience=flat(groups.experience), mask=flat(groups.mask))
    of = jax.jit(partial(batch_loss, config=config, progress=jnp.float32(0.0)))
    found = of(joined, flat(logp), flat(entropy), flat(values))
    one = jax.jit(partial(group_loss, config=config, progress=jnp.float32(0.0)))
    alone = [one(*parts) for parts in each]
    for name in found:
        np.testing.assert_allclose(found[name], sum(own[name] for own in alone), rtol=1e-5)


def update_of(objectives, rule="blend"):
    """The update of one unrolled minibatch, and its arguments as shapes."""
    names = ("red", "blue", "green", "grey")[:objectives]
    config = world.config(groups=4, rows=8, epochs=1, combine=CombineConfig(rule))
    policy = init_policy(jax.random.key(0), world.language_model(), names, config)
    decoder = replace(config.trunk.decoder(policy.model.config), unroll=True)
    mesh = make_mesh(MeshConfig(data=1), jax.devices()[:1])
    programs = make_programs(config, decoder, names, (world.STOP,), mesh)
    state = jax.eval_shape(partial(init_train_state, trained=policy.trained, config=config), KEY)
    tokens = jax.ShapeDtypeStruct((config.batch, 16), jnp.int32)
    lengths = jax.ShapeDtypeStruct((config.batch,), jnp.int32)
    preferences = jax.ShapeDtypeStruct((config.groups, objectives), jnp.float32)
    batch = {"tokens": tokens, "lengths": lengths, "plain": tokens, "plain_lengths": lengths,
             "preferences": preferences}  # fmt: skip
    shape = config.batch, config.answer_tokens
    logp = jax.ShapeDtypeStruct(shape, jnp.float32)
    answers = CompletionBatch(tokens, lengths, jax.ShapeDtypeStruct(shape, jnp.int32), lengths)
    scored = RolloutScores(logp, logp, jax.ShapeDtypeStruct((*shape, objectives + 1), jnp.float32))
    raw = jax.ShapeDtypeStruct((config.batch, objectives), jnp.float32)
    rollout = Rollout(answers, scored, raw)
    return programs.learn, (state, policy.model.params, batch, rollout)


KEY = jax.random.key(0)


def test_four_objectives_cost_what_one_does():
    flops = {}
    for objectives in (1, 4):
        learn, arguments = update_of(objectives)
        compiled = jax.jit(learn).lower(*arguments).compile()
        flops[objectives] = compiled.cost_analysis()["flops"]
    print(f"FLOPs of an update: {flops[1]:.4g} with one objective, {flops[4]:.4g} with four")
    assert flops[1] < flops[4] <= 1.1 * flops[1]
