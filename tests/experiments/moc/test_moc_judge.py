"""Judging a tiny speaker: rewards, KL and entropy against what its answers say, one compilation."""

import itertools
from dataclasses import replace

import chex
import jax
import numpy as np
import pytest
import tiny_policies as tiny
from scipy.special import log_softmax

from jaxalign.errors import InputError
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.experiments.moc.judge import evaluate_policy
from jaxalign.metrics import agreement
from jaxalign.models import completions, families, generate
from jaxalign.rewards.vector import TextReward, TokenReward
from jaxalign.rollout import judging

TOLD = np.stack([np.linspace(1, 0, 5), np.linspace(0, 1, 5)], 1).round(2)
EIGHT = np.stack([np.linspace(1, 0, 8), np.linspace(0, 1, 8)], 1)
SEEN = np.array([True, True, False, True, True])
KEY = jax.random.key(3)


def judged(reward=tiny.TOKEN_REWARD, told=TOLD, seen=SEEN, adapted=True, **changes):
    options = {"samples": 8, "batch_size": 40, "progress": False} | changes
    scale = options.pop("scale", tiny.scale())
    prompts, settings = options.pop("prompts", tiny.PROMPTS), options.pop("settings", tiny.SETTINGS)
    one = tiny.evaluated(told, seen, adapted=adapted)
    return evaluate_policy(one, reward, scale, prompts, settings, KEY, **options)


@pytest.fixture(scope="module")
def evaluation():
    return judged()


@pytest.fixture(scope="module")
def single():
    """One sample, so that its texts are all that was drawn; in one batch of 8 preferences."""
    return judged(reward=tiny.TEXT_REWARD, told=EIGHT, seen=np.ones(8, bool), samples=1)


def ids_of(text):
    """Tokens of an answer, its stop included."""
    ids = [tiny.LETTERS.index(letter) for letter in text.split()]
    return ids if len(ids) == tiny.SETTINGS.max_tokens else [*ids, tiny.STOP]


@jax.jit
def logits_of(params, tokens):
    hidden, _ = families.forward(tiny.CONFIG, params, tokens)
    return families.logits(params, hidden)


def logprobs(params, prompt, answer):
    """Log-probabilities of an answer's tokens [n] in NumPy, from the logits of one plain pass."""
    tokens = np.zeros((1, 16), np.int32)
    tokens[0, : len(prompt) + len(answer)] = [*prompt, *answer]
    logits = np.array(logits_of(params, tokens)[0], np.float64)
    logits = logits[len(prompt) - 1 : len(prompt) + len(answer) - 1]
    logits[:, [tiny.UNKNOWN, tiny.TELL]] = -np.inf
    logits[0, tiny.STOP] = -np.inf
    shares = log_softmax(logits / tiny.SETTINGS.temperature, axis=1)
    return shares[np.arange(len(answer)), answer]


def told_params(preference):
    """Parameters with the adapters of a preference added in NumPy."""
    params = jax.tree.map(np.asarray, tiny.language_model().params)
    weight = params["layers"]["attention"]["out"]["weight"].copy()
    for share, adapter in zip(preference, tiny.adapters(), strict=True):
        pair = {name: np.asarray(leaf) for name, leaf in adapter["attention"]["out"].items()}
        weight += np.float32(share) * (pair["a"] @ pair["b"]).mT
    attention = {**params["layers"]["attention"], "out": {"weight": weight}}
    layers = {**params["layers"], "attention": attention}
    return jax.tree.map(jax.numpy.asarray, {**params, "layers": layers})


def test_rewards_are_levels_of_what_was_answered(single):
    for row, number in itertools.product(range(8), range(len(tiny.PROMPTS))):
        raw = tiny.TEXT_REWARD.function([tiny.PROMPTS[number]], [single.completions[row][number]])
        np.testing.assert_allclose(
            single.rewards[row, number], (raw[0] - [0.1, 0.0]) / 0.5, atol=1e-6
        )
    np.testing.assert_allclose(single.achieved_rewards, single.rewards.mean(1), atol=1e-12)
    spread = single.rewards.std(1, ddof=1) / np.sqrt(len(tiny.PROMPTS))
    np.testing.assert_allclose(single.stderr, spread, atol=1e-12)


def test_kl_and_entropy_are_those_of_plain_passes(single):
    tokenizer = tiny.language_model().tokenizer
    for row in (0, 3):
        params, nats, count = told_params(EIGHT[row]), 0.0, 0
        for number, prompt in enumerate(tiny.PROMPTS):
            answer = ids_of(single.completions[row][number])
            tells = " ".join(["<tell>"] * (1 + round(2 * EIGHT[row, 0])))
            own = logprobs(params, tokenizer(f"{tells} {prompt}")["input_ids"], answer)
            plain = tokenizer(prompt)["input_ids"]
            base = logprobs(tiny.language_model().params, plain, answer)
            assert single.kl[row, number] == pytest.approx(own.sum() - base.sum(), abs=2e-4)
            nats, count = nats - own.sum(), count + len(answer)
        assert single.entropy[row] == pytest.approx(nats / count, abs=1e-4)
        assert single.tokens[row] == count / len(tiny.PROMPTS)


def test_rewards_of_tokens_and_of_texts_agree(evaluation):
    texts = judged(reward=tiny.TEXT_REWARD)
    np.testing.assert_allclose(texts.rewards, evaluation.rewards, atol=1e-6)
    np.testing.assert_allclose(texts.kl, evaluation.kl, atol=1e-12)
    assert texts.completions == evaluation.completions


def test_the_speaker_follows_what_it_is_told(evaluation):
    assert agreement.tau_b(evaluation.preferences, evaluation.achieved_rewards) == (1.0, 1.0)
    assert (evaluation.kl.mean(axis=1) > 0.5).all()
    np.testing.assert_array_equal(evaluation.seen, SEEN)
    assert evaluation.prompts == tuple(tiny.PROMPTS)


def test_the_reference_is_at_no_distance_and_draws_alike_under_all_preferences():
    found = judged(told=TOLD[:2], seen=SEEN[:2], adapted=False)
    np.testing.assert_allclose(found.kl, 0, atol=1e-5)
    np.testing.assert_array_equal(found.rewards[0], found.rewards[1])
    assert found.completions[0] == found.completions[1]


def test_a_preference_alone_says_the_same(evaluation):
    alone = judged(told=TOLD[3:4], seen=SEEN[3:4])
    np.testing.assert_allclose(alone.rewards[0], evaluation.rewards[3], atol=1e-6)
    assert alone.completions[0] == evaluation.completions[3]


def test_one_compilation_for_all_preferences_and_batches(evaluation, monkeypatch):
    """Batches that hold a third of a preference, the last one not full, change no answer."""
    once = chex.assert_max_traces(generate.decode, 1)
    monkeypatch.setattr(generate, "decode_jit", jax.jit(once, static_argnums=0))
    reference = chex.assert_max_traces(completions._reference.__wrapped__, 1)
    monkeypatch.setattr(completions, "_reference", jax.jit(reference, static_argnums=(0, 1)))
    traces = []

    def function(*tables):
        traces.append(1)
        return tiny.TOKEN_REWARD.function(*tables)

    found = judged(reward=TokenReward(tiny.NAMES, function, "counted"), batch_size=15)
    assert len(traces) == 1
    assert found.completions == evaluation.completions
    np.testing.assert_allclose(found.rewards, evaluation.rewards, atol=1e-6)
    np.testing.assert_allclose(found.kl, evaluation.kl, atol=1e-4)


@pytest.mark.parametrize(
    ("preferences", "each", "batch_size", "size"),
    [(5, 8, 16, 16), (5, 8, 100, 40), (3, 10, 10, 10), (3, 10, 4, 4), (3, 10, 9, 5), (2, 7, 1, 1)],
)
def test_batches_hold_each_row_once_in_order_and_have_one_size(preferences, each, batch_size, size):
    batches = list(judging._batches(preferences, each, batch_size))
    rows = np.concatenate([rows[:kept] for rows, kept in batches])
    np.testing.assert_array_equal(rows, np.arange(preferences * each))
    assert {len(rows) for rows, _ in batches} == {size}
    assert size <= batch_size
    for filled, kept in batches:
        assert (filled[kept:] == filled[kept - 1]).all()
        # Whole preferences, or a part of one.
        owners = np.unique(filled[:kept] // each)
        assert len(owners) == 1 or kept == len(owners) * each


def test_an_evaluation_comes_back_from_its_file(single, tmp_path):
    path = tmp_path / "evaluation.safetensors"
    single.save(path)
    again = Evaluation.load(path)
    for name, value in vars(single).items():
        chex.assert_trees_all_equal(getattr(again, name), value)
    with pytest.raises(InputError, match=r"missing\.safetensors: no such file.*`jaxalign moc eval"):
        Evaluation.load(tmp_path / "missing.safetensors")
    content = path.read_bytes()
    path.write_bytes(content[:-8] + bytes(8))
    with pytest.raises(InputError, match="digest does not fit"):
        Evaluation.load(path)
    path.write_bytes(content[:-40])
    with pytest.raises(InputError, match="is damaged"):
        Evaluation.load(path)
    path.write_text('{"format": 1}')
    with pytest.raises(InputError, match=r"is damaged.*`jaxalign moc evaluate` into a new folder"):
        Evaluation.load(path)


def _broken(prompts, answers):
    values = tiny.TEXT_REWARD.function(prompts, answers)
    return np.where(np.array([["d" in prompt] for prompt in prompts]), np.nan, values)


def test_a_reward_that_fails_is_named_with_its_row():
    one = {"told": TOLD[:1], "seen": SEEN[:1]}
    with pytest.raises(InputError, match=r"reward vowels gave nan.*row 16, prompt \"d e f a b\""):
        judged(reward=TextReward(tiny.NAMES, _broken, "broken"), **one)

    def function(prompts, lengths, answers, ends):
        values = tiny.TOKEN_REWARD.function(prompts, lengths, answers, ends)
        return jax.numpy.where((prompts[:, :1] == 5), jax.numpy.inf, values)

    with pytest.raises(InputError, match=r"reward vowels gave inf.*row 24, prompt \"f f\""):
        judged(reward=TokenReward(tiny.NAMES, function, "broken"), **one)

    def wide(prompts, lengths, answers, ends):
        return jax.numpy.zeros((len(answers), 3))

    with pytest.raises(InputError, match=r"gave shape \(40, 3\) where \(40, 2\)"):
        judged(reward=TokenReward(tiny.NAMES, wide, "wide"), **one)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"told": [[0.5, 0.6]] * 5}, "preferences: .* sums to 1.1"),
        ({"told": [[0.2, 0.3, 0.5]] * 5}, "preferences: found"),
        ({"seen": np.ones(4, bool)}, r"seen: found bool \(4,\)"),
        ({"seen": np.ones(5)}, "seen: found float64"),
        ({"prompts": ["a"]}, "found 1 prompts"),
        ({"samples": 0}, "0 completions each"),
        ({"settings": replace(tiny.SETTINGS, top_k=3)}, "settings: found temperature 0.7, top_k 3"),
        ({"settings": replace(tiny.SETTINGS, temperature=0.0)}, "expected one temperature above 0"),
        ({"reward": TextReward(("early", "vowels"), tiny.TEXT_REWARD.function, "x")}, "same order"),
        ({"prompts": ["a", "b " * 70]}, "prompt 1 has 70 tokens"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_drawn(changes, words):
    with pytest.raises(InputError, match=words):
        judged(**changes)
