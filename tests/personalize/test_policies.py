"""Soups and mixtures against lists of all answers; a portfolio of them against dense grids."""

from dataclasses import replace

import adapted_pair as tiny
import chex
import jax
import numpy as np
import pytest

from jaxalign import palm
from jaxalign.errors import InputError
from jaxalign.models import families, lora
from jaxalign.models.completions import CompletionBatch, reference_logprobs
from jaxalign.models.generate import generate
from jaxalign.models.sampling import Sampling
from jaxalign.personalize.policies import Mixing, Soups, adapter_digest
from jaxalign.personalize.policy_oracle import AnswerOracle, standard_error
from jaxalign.rewards.vector import TextReward
from jaxalign.rollout import judging

KEY = jax.random.key(3)
BETA = 0.05


def kind_of(name):
    return {"soups": Soups, "mixing": Mixing}[name](tiny.adapters())


def oracle_of(name, **changes):
    options = {
        "model": tiny.language_model(),
        "policies": kind_of(name),
        "prompts": tiny.PROMPTS,
        "reward": tiny.REWARD,
        "beta": BETA,
        "settings": tiny.SETTINGS,
        "key": KEY,
        "samples": 32,
        "batch_size": 256,
    }
    return AnswerOracle(**(options | changes))


@pytest.fixture(scope="module", params=["soups", "mixing"])
def many_answers(request):
    return request.param, oracle_of(request.param, samples=192)


def test_a_soup_is_the_exact_weighted_sum_of_the_updates():
    weights = [(0.3, 0.7), (-0.5, 0.2), (0.0, 0.0), (1.0, 0.0)]
    stacked = kind_of("soups").stacked(weights)
    np.testing.assert_array_equal(stacked.rows[:, 0], [0, 1, -1, 3])
    tokens = np.random.default_rng(0).integers(0, 8, (43, 8)).astype(np.int32)

    @jax.jit
    def mixed(params, adapters, rows):
        hidden, _ = families.forward(tiny.CONFIG, params, tokens, adapters=adapters, rows=rows)
        return families.logits(params, hidden)

    found = mixed(
        tiny.language_model().params, stacked.adapters, stacked.rows[np.arange(43) % 4, 0]
    )
    for row, weight in enumerate(weights):
        expected = tiny.logits_of(tiny.CONFIG, tiny.summed(weight), tokens)[row::4]
        chex.assert_trees_all_close(found[row::4], expected, atol=2e-4)
    apart = tiny.logits_of(tiny.CONFIG, tiny.summed((1.0, 0.0)), tokens)[0]
    assert np.abs(found[0] - apart).max() > 0.1


@pytest.mark.parametrize(("kind", "weight"), [
    ("soups", (0.3, 0.7)), ("mixing", (0.3, 0.7)), ("mixing", (-0.4, 0.6)), ("mixing", (0.0, 0.0)),
])  # fmt: skip
def test_what_is_drawn_has_the_probability_of_the_closed_form(kind, weight):
    """Temperature, suppression and minimum length included; a sum other than 1 by the reference."""
    model, count = tiny.language_model(), 256
    places = np.arange(count) % len(tiny.PROMPTS)
    prompts = [tiny.prompt_tokens(tiny.PROMPTS[place]) for place in places]
    lengths = np.array([len(ids) for ids in prompts], np.int32)
    tokens = np.array([[*ids, 0][:2] for ids in prompts], np.int32)
    stacked = kind_of(kind).stacked([weight])
    found = generate(
        model.config, model.params, tokens, lengths, jax.random.split(KEY, count), tiny.SETTINGS,
        **stacked.arguments(np.zeros(count)),
    )  # fmt: skip
    answers, ends = np.asarray(found.tokens), np.asarray(found.lengths)
    own = np.asarray(found.logprobs).sum(axis=1)
    batch = CompletionBatch(tokens, lengths, answers, ends)
    base = reference_logprobs(model, batch, tiny.SETTINGS)
    base = np.asarray(base).sum(axis=1)
    for row, place in enumerate(places):
        ids = tuple(int(i) for i in answers[row, : ends[row]])
        prompt = tiny.PROMPTS[place]
        assert abs(own[row] - tiny.answers_of(kind, weight, prompt)[ids]) < 2e-4
        assert abs(base[row] - tiny.answers_of("soups", (0, 0), prompt)[ids]) < 2e-4


@pytest.mark.parametrize("weight", [(1.0, 0.0), (0.4, 0.6)])
def test_estimates_agree_with_all_answers_within_their_error(many_answers, weight):
    kind, oracle = many_answers
    found = oracle(weight)
    rewards, kl, variances = tiny.exact(kind, weight)
    assert kl > 0.02  # the adapters are not idle
    error = np.append(found.payload["stderr"], found.payload["kl_stderr"])
    exact_error = np.sqrt(variances.sum(axis=0) / 192) / len(tiny.PROMPTS)
    np.testing.assert_allclose(error, exact_error, rtol=0.25)
    deviation = np.append(found.rewards - rewards, found.kl - kl) / exact_error
    assert np.abs(deviation).max() < 4
    assert np.abs(deviation).min() > 1e-6


def test_the_reference(many_answers):
    _, oracle = many_answers
    rewards, _, variances = tiny.exact("soups", (0.0, 0.0))
    error = np.sqrt(variances.sum(axis=0) / 192)[:2] / len(tiny.PROMPTS)
    assert (np.abs(oracle.reference.rewards - rewards) < 4 * error).all()
    assert oracle.reference.kl == 0
    assert (oracle.spread > 0.05).all()
    assert oracle.error is None


def test_every_weight_has_common_random_numbers(many_answers):
    """Common random numbers: neighbours differ by far less than independent draws would."""
    _, oracle = many_answers
    near = oracle.outcomes(palm.stack(oracle.many([(0.5, 0.5), (0.52, 0.48)])))[0]
    one, other = (oracle._sampled(np.array([w]))[0].rewards for w in ((0.5, 0.5), (0.52, 0.48)))
    np.testing.assert_allclose(near, [one.mean(1), other.mean(1)])
    paired = standard_error(one - other)
    apart = np.sqrt(standard_error(one) ** 2 + standard_error(other) ** 2)
    assert (paired < 0.4 * apart).all()


def test_many_weights_share_a_decode_and_change_nothing(monkeypatch):
    """Two policies a decode of 256: whoever stands beside a weight, its answers are the same."""
    oracle = oracle_of("mixing", samples=16)
    calls = []

    def counted(*arguments, combine, **options):
        calls.append(len(np.unique(combine.weights, axis=0)))
        return generate(*arguments, combine=combine, **options)

    monkeypatch.setattr(judging, "generate", counted)
    _, other, third, same = oracle.many([(0.1, 0.9), (0.9, 0.1), (0.4, 0.6), (0.1, 0.9)])
    assert calls == [2, 1]
    assert same.payload["weight"].tolist() == [0.1, 0.9]
    oracle._known.clear()
    again = oracle.many([(0.9, 0.1), (0.4, 0.6)])  # in each other's place
    for first, second in zip((other, third), again, strict=True):
        chex.assert_trees_all_close(first.rewards, second.rewards, atol=1e-9)
        chex.assert_trees_all_close(first.kl, second.kl, atol=1e-5)


def test_what_was_evaluated_is_kept(tmp_path, monkeypatch):
    first = oracle_of("soups", cache=tmp_path)
    found = first((0.25, 0.75))
    assert len(list(tmp_path.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(judging, "generate", None)  # nothing may be drawn
        again = oracle_of("soups", cache=tmp_path, beta=0.5)
        chex.assert_trees_all_equal(vars(again((0.25, 0.75))), vars(found))
        for change in (
            {"reward": replace(tiny.REWARD, id="letters 2")},
            {"settings": replace(tiny.SETTINGS, temperature=0.9)},
            {"key": jax.random.key(4)},
            {"policies": Soups(tiny.adapters()[::-1])},
        ):
            with pytest.raises(TypeError, match="not callable"):
                oracle_of("soups", cache=tmp_path, **change)
    path = first._path(tmp_path, np.array([0.25, 0.75]))
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match="delete the file"):
        oracle_of("soups", cache=tmp_path)((0.25, 0.75))


@pytest.mark.parametrize("kind", ["soups", "mixing"])
def test_a_portfolio_is_certified_relative_to_the_pool(kind, tmp_path):
    oracle = oracle_of(kind)
    assert isinstance(oracle, palm.BatchOracle)
    assert isinstance(oracle, palm.SampledOracle)
    config = palm.PalmConfig(size=2, search="full", eps=0.9, delta=0.5)
    built = palm.build(oracle, config)
    certificate = built.certificate
    assert certificate.scope == "relative to the pool"
    assert certificate.optimum is None
    steps = np.linspace(0, 1, 20001)
    users = np.column_stack([steps, 1 - steps])

    def gap(values, members):
        lost = (users @ values.T).max(axis=1) - (users @ members.T).max(axis=1)
        return lost.max()

    pool = built.pool.rewards - BETA * built.pool.kl[:, None]
    seen = gap(np.concatenate([pool, built.values[:1]]), built.values)
    assert seen <= certificate.pool.additive.value + 1e-12
    assert seen >= certificate.pool.additive.value - 1e-4
    # The estimated gap is off the exact one by no more than the error that the certificate names.
    low, high = certificate.sampling
    assert low <= seen <= high

    def truth(policies):
        rows = [tiny.exact(kind, tuple(w)) for w in policies.payload["weight"]]
        return np.array([rewards - BETA * kl for rewards, kl, _ in rows])

    assert low <= gap(truth(built.pool), truth(built.members)) <= high
    assert high < 0.2
    built.save(tmp_path)
    stored = palm.load(tmp_path).certificate
    assert stored.sampling == (low, high)
    assert stored.as_dict()["sampling_95"] == [low, high]
    assert stored.scope == "relative to the pool"


def test_other_prompts_and_lazy_search():
    oracle = oracle_of("soups")
    built = palm.build(oracle, palm.PalmConfig(size=2, max_calls=6))
    other = oracle_of("soups", key=jax.random.key(9), prompts=[*tiny.PROMPTS[::-1]])
    found = built.held_out(other, draws=200)
    assert found.prompts == len(tiny.PROMPTS)
    assert found.additive_low <= found.report.additive.value <= found.additive_high


def test_the_digest_is_of_what_an_adapter_does():
    config, tree = tiny.adapters()[0]
    half = jax.tree.map(lambda pair: {"a": pair["a"], "b": pair["b"] / 2}, tree,
                        is_leaf=lora.is_pair)  # fmt: skip
    assert adapter_digest((replace(config, alpha=2 * config.alpha), half)) == adapter_digest(
        (config, tree)
    )
    assert adapter_digest((config, half)) != adapter_digest((config, tree))


def test_what_cannot_be_evaluated_is_refused():
    def refused(match, **changes):
        with pytest.raises(InputError, match=match):
            oracle_of("soups", **changes)

    refused("KL to the reference would be infinite", settings=Sampling(max_tokens=2, top_k=3))
    refused("temperature 0", settings=Sampling(max_tokens=2, temperature=0.0))
    refused("beta: found -1", beta=-1.0)
    refused("found 1 prompts", prompts=["a"])

    def computed(function):
        return replace(tiny.REWARD, function=function)

    def constant(prompts, answers):
        return np.column_stack([np.full(len(answers), 0.5), np.arange(len(answers)) % 2])

    refused("early: found the same reward", reward=computed(constant))
    refused("gave shape", reward=computed(lambda prompts, answers: np.zeros((len(answers), 3))))
    refused(
        r"early, prompt 0, completion .*: found 1.5",
        reward=computed(lambda p, a: tiny.rewards(p, a) * 0 + 1.5),
    )
    refused("gave nan", reward=computed(lambda p, a: tiny.rewards(p, a) * np.nan))
    one = oracle_of(
        "soups", reward=TextReward(("early",), lambda p, a: tiny.rewards(p, a)[:, :1], "letters 1")
    )
    with pytest.raises(InputError, match="2 adapters and 1 rewards"):
        one((1.0,))
    with pytest.raises(InputError, match="rows of 2"):
        kind_of("mixing").stacked([[0.5, 0.2, 0.3]])
    config, tree = tiny.adapters()[0]
    with pytest.raises(InputError, match="found none of them"):
        Soups(())
    with pytest.raises(InputError, match=r"adapter 0 .*NaN"):
        Mixing(((config, jax.tree.map(lambda x: x * np.nan, tree)),))
