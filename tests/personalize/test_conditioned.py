"""A policy told preferences, and tuned ones: against lists of all answers, built, served, told."""

import itertools
from dataclasses import replace
from functools import cache

import adapted_pair as tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax
from tiny_words import word_tokenizer

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.moc.config import MocConfig
from jaxalign.moc.policy import init_policy, soft_token
from jaxalign.moc.value_table import ValueTable
from jaxalign.models import families, lora
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.personalize import saved_members
from jaxalign.personalize.policies import Conditioned, Separate, answer_as, identity
from jaxalign.personalize.policy_oracle import AnswerOracle
from jaxalign.personalize.targets import answer_conditioned, target_for
from jaxalign.personalize.utility import Target, known
from jaxalign.rewards.reward_scale import RewardIds, fit_scale
from jaxalign.rewards.vector import TextReward
from jaxalign.train.trunk import TrunkConfig

LETTERS, STOP, UNKNOWN = tiny.LETTERS, 6, 7
SHARES = [f"{tenth / 10:.1f}" for tenth in range(11)]
WORDS = [*LETTERS, "</s>", "<unk>", "<pref_early>", "<pref_brief>", *SHARES]
CONFIG = DecoderConfig("llama", len(WORDS), 8, 1, 2, 1, 4, 12, 32)
READ_ONLY = tuple(range(UNKNOWN, len(WORDS)))
SETTINGS = Sampling(
    max_tokens=2, min_tokens=1, temperature=0.8, stop_ids=(STOP,), suppressed_ids=READ_ONLY
)
GREEDY = replace(SETTINGS, temperature=0.0, max_tokens=5)
OPTIONS = np.array([(1.0, 0.0), (0.7, 0.3), (0.3, 0.7), (0.0, 1.0)])
BETA, KEY = 0.02, jax.random.key(4)


@cache
def language_model():
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), CONFIG)
    params = jax.tree.map(lambda leaf: leaf * 12 if leaf.ndim > 1 else leaf, params)
    tokenizer = word_tokenizer(WORDS)
    return LanguageModel(CONFIG, params, tokenizer, {"eos_token_id": STOP}, "tiny", "0" * 64)


def moved(tree, seed):
    """An adapter away from the start, as if it had been trained."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.normal(0, 0.7, x.shape).astype("f"), tree)


@cache
def policy(conditioning):
    """Not trained, but far from the reference, and different under each preference."""
    config = MocConfig(
        conditioning=conditioning,
        trunk=TrunkConfig(lora=lora.LoraConfig(3, 5.0, targets=("query", "out", "up"))),
    )
    scale = fit_scale(np.random.default_rng(0).normal(size=(50, 2)), tiny.NAMES)
    made = init_policy(jax.random.key(1), language_model(), tiny.NAMES, config, scale)
    adapter = moved(made.trained["adapter"], 2)
    return replace(made, trained={**made.trained, "adapter": adapter})


@cache
def tuned():
    found = []
    for seed in range(3):
        config = lora.LoraConfig(2, 3.0, targets=("query", "out", "up"))
        tree = lora.init(jax.random.key(seed), config, language_model().params)
        found.append((config, moved(tree, seed)))
    return Separate(tuple(found))


def kind_of(name):
    return tuned() if name == "tuned" else Conditioned(policy(name), OPTIONS)


def ids_of(text):
    return [WORDS.index(word) for word in text.split()]


def as_tag(preference):
    return " ".join(
        f"<pref_{name}> {share:.1f}" for name, share in zip(tiny.NAMES, preference, strict=True)
    )


@cache
def params_of(name, place):
    """Parameters with an adapter in them; place is that of a tuned policy, None the reference."""
    if place is None:
        return language_model().params
    told = tuned().adapters[place] if name == "tuned" else kind_of(name).adapters[0]
    return jax.jit(lora.merge)(language_model().params, lora.scaled(told[1], told[0]))


@jax.jit
def logits_at(params, embeddings, ends):
    hidden, _ = families.forward(CONFIG, params, embeddings=embeddings)
    last = jnp.take_along_axis(hidden, ends[:, None, None], axis=1)[:, 0]
    return families.logits(params, last)


def next_logits(name, weight, prompt, begun):
    """Logits [N, V] after a prompt and each of up to 8 beginnings, by plain passes."""
    place = (int(np.argmax(weight)) if name == "tuned" else 0) if any(weight) else None
    table = np.asarray(language_model().params["embed"]["table"])
    before = [table[i] for i in ids_of(prompt)]
    if place is not None and name == "tags":
        before = [*(table[i] for i in ids_of(as_tag(weight))), *before]
    if place is not None and name == "token":
        told = np.asarray([weight], np.float32)
        before = [np.asarray(soft_token(policy(name).trained["token"], table, told))[0, 0], *before]
    lines = np.zeros((8, 16, CONFIG.width), np.float32)
    ends = np.zeros(8, np.int32)
    for row, beginning in enumerate(begun):
        line = [*before, *(table[i] for i in beginning)]
        lines[row, : len(line)], ends[row] = line, len(line) - 1
    found = logits_at(params_of(name, place), lines, ends)
    return np.asarray(found, np.float64)[: len(begun)]


def alone(name, weight, prompt):
    """The likeliest answer of one policy, by full passes, without cache, stacks or batches."""
    said = []
    while len(said) < GREEDY.max_tokens and STOP not in said:
        logits = next_logits(name, tuple(weight), prompt, [said])[0]
        logits[[*READ_ONLY, *([] if said else [STOP])]] = -np.inf
        said.append(int(logits.argmax()))
    return said


@cache
def answers_of(name, weight, prompt):
    """{answer's ids: log-probability} over all answers of up to two letters."""
    begun = [(), *itertools.product(range(6), repeat=1)]
    logits = next_logits(name, weight, prompt, begun)
    logits[:, list(READ_ONLY)] = -np.inf
    logits[0, STOP] = -np.inf
    after = dict(zip(begun, log_softmax(logits / SETTINGS.temperature, axis=1), strict=True))
    ended = [*itertools.product(range(6), [STOP]), *itertools.product(range(6), repeat=2)]
    return {ids: after[()][ids[0]] + after[ids[:1]][ids[1]] for ids in ended}


def exact(name, weight):
    """Expected rewards and KL to the reference, [R + 1], and variances per prompt [X, R + 1]."""
    means, variances = [], []
    for prompt in tiny.PROMPTS:
        own = answers_of(name, tuple(weight), prompt)
        base = answers_of(name, (0,) * len(weight), prompt)
        texts = [" ".join(LETTERS[i] for i in ids if i != STOP) for ids in own]
        ratio = np.array([own[ids] - base[ids] for ids in own])
        values = np.column_stack([tiny.rewards([prompt] * len(texts), texts), ratio])
        share = np.exp(list(own.values()))
        assert abs(share.sum() - 1) < 1e-6
        means.append(share @ values)
        variances.append(share @ (values - means[-1][None]) ** 2)
    return np.mean(means, axis=0), np.array(variances)


@pytest.fixture(scope="module", params=["tags", "token", "tuned"])
def oracle(request):
    return request.param, AnswerOracle(
        language_model(), kind_of(request.param), tiny.PROMPTS, tiny.REWARD, BETA, SETTINGS, KEY,
        samples=48, batch_size=384,
    )  # fmt: skip


def test_every_option_is_worth_what_all_its_answers_say(oracle):
    name, made = oracle
    found = made._sampled(made.policies.options)
    reached = []
    for option, sampled in zip(made.policies.options, found, strict=True):
        truth, variances = exact(name, option)
        error = np.sqrt(variances.sum(axis=0) / 48) / len(tiny.PROMPTS)
        seen = np.append(sampled.rewards.mean((0, 1)), sampled.log_ratio.mean())
        assert np.abs((seen - truth) / error).max() < 4
        assert truth[-1] > 0.02  # the reference is another policy
        reached.append(truth)
    assert np.ptp(np.array(reached), axis=0).max() > 0.02  # what is told makes a difference
    truth, _ = exact(name, np.zeros(made.policies.size))
    np.testing.assert_allclose(made.reference.rewards, truth[:-1], atol=0.05)
    assert made.reference.kl == 0


def test_weights_get_the_best_option_and_are_not_told(oracle):
    _, made = oracle
    options = [made._policy(*pair) for pair in zip(
        made.policies.options, made._sampled(made.policies.options), strict=True)]  # fmt: skip
    for weight in ([1.0, 0.0], [0.5, 0.5], [-1.0, 0.3], [0.0, -1.0]):
        worth = [np.dot(weight, one.rewards) - BETA * one.kl for one in options]
        best = made.many([weight])[0]
        assert best.payload["weight"].tolist() == options[np.argmax(worth)].payload[
            "weight"].tolist()  # fmt: skip


def said_by(served, members, prompts):
    weights = served.portfolio.members.payload["weight"]
    return answer_as(
        served.model, served.policies, weights, members, prompts, GREEDY, KEY, progress=False
    )


def test_a_portfolio_is_built_certified_and_served(oracle, tmp_path):
    name, made = oracle
    config = palm.PalmConfig(eps=0.9, delta=0.5, prune_eps=0.0, prune_delta=1e-4, search="full")
    built = palm.build(made, config)
    assert built.certificate.scope == "relative to the pool"
    # All options were tried: no member of the family serves any user better.
    users = np.column_stack([np.linspace(0, 1, 101), np.linspace(1, 0, 101)])
    family = made.many(np.eye(2)) + [
        made._policy(*pair) for pair in zip(
            made.policies.options, made._sampled(made.policies.options), strict=True)
    ]  # fmt: skip
    values = np.array([one.rewards - BETA * one.kl for one in family])
    lost = (users @ values.T).max(1) - (users @ built.values.T).max(1)
    assert lost.max() <= built.certificate.pool.additive.value + 1e-9
    served = saved_members.Serving(built, made.policies, language_model())
    if isinstance(made.policies, Conditioned):  # others have no scale of their own
        own = made.policies.policy.scale
        elsewhere = replace(built, scale=replace(own, std=2 * own.std))
        with pytest.raises(InputError, match="portfolio: found the scale"):
            saved_members.Serving(elsewhere, made.policies, language_model())
    members = np.arange(16) % len(built.members)
    prompts = [tiny.PROMPTS[i % 8] for i in range(16)]
    found = said_by(served, members, prompts)
    for row, (member, prompt) in enumerate(zip(members, prompts, strict=True)):
        weight = built.members.payload["weight"][member]
        assert found[row].tokens.tolist() == alone(name, weight, prompt)
    served.save(tmp_path / "served")
    again = saved_members.load(tmp_path / "served", language_model())
    assert identity(again.policies) == identity(made.policies)
    same = said_by(again, members, prompts)
    assert [one.text for one in same] == [one.text for one in found]


def table():
    scale = policy("tags").scale
    reached = np.array([(1.0, -0.5), (0.8, 0.1), (0.2, 0.4), (-0.6, 0.9)])
    return ValueTable(OPTIONS, reached, np.array([0.5, 0.3, 0.1, 2.0]), scale.names, scale.digest)


def test_a_utility_becomes_the_target_that_serves_it_best():
    ids = RewardIds(tiny.NAMES, table().digest)
    weights = np.array([[1.0, 0.0], [0.6, 0.4], [0.2, 0.8], [-3.0, 1.0]])
    found = target_for(known(weights, ids), table())
    expected = OPTIONS[np.argmax(weights @ table().achieved_rewards.T, axis=1)]
    np.testing.assert_allclose(found.values, expected)
    assert found.reward_ids == ids
    priced = target_for(known(weights, ids), table(), beta=0.5)
    dear = OPTIONS[np.argmax(weights @ table().achieved_rewards.T - 0.5 * table().kl[None], axis=1)]
    np.testing.assert_allclose(priced.values, dear)
    assert not np.allclose(dear, expected)
    with pytest.raises(InputError, match="found a Target"):
        target_for(found, table())
    with pytest.raises(InputError, match="the scale"):
        target_for(known(weights, RewardIds(tiny.NAMES, "other")), table())


@pytest.mark.parametrize("name", ["tags", "token"])
def test_each_row_is_told_its_own(name):
    told, prompts = policy(name), tiny.PROMPTS[:4]

    def said(wanted, **more):
        found = answer_conditioned(told, wanted, prompts, GREEDY, KEY, progress=False, **more)
        return [one.tokens.tolist() for one in found]

    each = [alone(name, *pair) for pair in zip(OPTIONS, prompts, strict=True)]
    assert said(OPTIONS) == each
    ids = RewardIds(tiny.NAMES, told.scale.digest)
    assert said(Target(OPTIONS, ids)) == each
    # Of these four users the first three want what the table's rows reach; the last one wants what
    # no row reaches, and is answered by the reference.
    users = known(np.array([[1.0, 0.0], [1.0, 0.5], [0.5, 0.9], [-1.0, -2.0]]), ids)
    best = OPTIONS[np.argmax(users.mean @ table().achieved_rewards.T, axis=1)]
    mixed = said(users, table=table())
    assert mixed[:3] == [alone(name, *pair) for pair in zip(best[:3], prompts[:3], strict=True)]
    assert mixed[3] == alone(name, (0.0, 0.0), prompts[3])


def test_what_cannot_be_told_is_refused():
    told = policy("tags")
    ids = RewardIds(tiny.NAMES, told.scale.digest)

    def refused(match, wanted, **more):
        with pytest.raises(InputError, match=match):
            answer_conditioned(told, wanted, ["a"], GREEDY, KEY, **more)

    refused("sums to 1.3", [[0.6, 0.7]])
    refused("expected numbers of at least 0", [[1.5, -0.5]])
    refused("a row for each prompt", [[0.5, 0.5]] * 2)
    refused("the scale", Target([[0.5, 0.5]], RewardIds(tiny.NAMES, "other")))
    refused("weights are no preference", known([[0.5, 0.5]], ids))
    refused(
        "found rewards early, late", Target([[0.5, 0.5]], RewardIds(("early", "late"), ids.digest))
    )
    with pytest.raises(InputError, match="conditioned on nothing"):
        Conditioned(replace(told, conditioning="none"), OPTIONS)
    with pytest.raises(InputError, match="rows of 2"):
        Conditioned(told, OPTIONS).stacked([[0.5, 0.2, 0.3]])
    with pytest.raises(InputError, match="row 1: found"):
        tuned().stacked([[1, 0, 0], [0.5, 0.5, 0]])
    with pytest.raises(InputError, match="no scale"):
        answer_conditioned(replace(told, scale=None), Target([[0.5, 0.5]], ids), ["a"], GREEDY, KEY)
    with pytest.raises(InputError, match="conditioned on early, brief"):
        AnswerOracle(
            language_model(), Conditioned(told, OPTIONS), tiny.PROMPTS,
            TextReward(("brief", "early"), tiny.rewards, "letters 1"), BETA, SETTINGS, KEY,
        )  # fmt: skip
