"""Log-probabilities of given answers: those that `generate` drew them with."""

from functools import cache, partial

import jax
import numpy as np
import pytest
from tiny_words import word_tokenizer

from jaxalign.models import families, lora
from jaxalign.models.completions import (
    CompletionBatch,
    completion_logprobs,
    completion_states,
    reference_logprobs,
    sampling_distribution,
)
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.generate import generate
from jaxalign.models.gpt2 import GPT2Config
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling

LLAMA = DecoderConfig("llama", 24, 16, 2, 4, 2, 4, 24, 64)
GPT2 = GPT2Config(24, 16, 2, 4, 32, 64)
SETTINGS = Sampling(
    max_tokens=7,
    min_tokens=2,
    temperature=0.7,
    stop_ids=(3, 8, 9, 10, 11),
    suppressed_ids=(5, 6),
    pad_id=5,
)
DRAWN = sampling_distribution(SETTINGS, 24)


@cache
def model(config):
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), config)
    return jax.tree.map(lambda x: x * 8, params)


def drawn_answers(config, adapters=None, prefix=None):
    params = model(config)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 24, (6, 9)).astype(np.int32)
    lengths = np.array([9, 1, 4, 7, 2, 5], np.int32)
    found = generate(
        config, params, tokens, lengths, jax.random.key(5), SETTINGS,
        adapters=adapters, prefix=prefix,
    )  # fmt: skip
    return params, CompletionBatch(tokens, lengths, found.tokens, found.lengths), found


def adapter_of(config):
    plain = lora.LoraConfig(rank=3, targets=("out", "up"))
    tree = lora.init(jax.random.key(2), plain, model(config))
    return jax.tree.map(lambda x: x + 0.2, lora.scaled(tree, plain))


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
@pytest.mark.parametrize("soft", [0, 2])
def test_they_are_those_of_the_drawing(config, soft):
    adapter = adapter_of(config)
    prefix = np.random.default_rng(1).normal(size=(6, soft, 16)).astype("f") if soft else None
    params, answers, found = drawn_answers(config, adapter, prefix)
    assert 2 <= found.lengths.min() < found.lengths.max() == 7  # ends of all kinds
    of = jax.jit(lambda params, **more: completion_logprobs(config, params, answers, DRAWN, **more))
    logprob, entropy = of(params, adapters=adapter, prefix=prefix)
    np.testing.assert_allclose(logprob, found.logprobs, rtol=1e-4, atol=1e-4)
    assert not np.asarray(entropy)[~np.asarray(answers.mask)].any()
    others, _ = of(params)
    assert np.abs(others - logprob).max() > 0.1


def test_entropies_are_of_the_same_distribution():
    params, answers, _ = drawn_answers(LLAMA)
    _, entropy = jax.jit(partial(completion_logprobs, LLAMA, distribution=DRAWN))(params, answers)
    states = jax.jit(partial(completion_states, LLAMA))(params, answers)
    logits = np.asarray(families.logits(params, states), np.float64) / 0.7
    for slot in range(7):
        barred = DRAWN.early if slot < 2 else DRAWN.later
        own = np.exp(logits[:, slot] - logits[:, slot].max(-1, keepdims=True)) * ~barred
        share = own / own.sum(-1, keepdims=True)
        safe = np.where(share > 0, share, 1)
        expected = -(share * np.log(safe)).sum(-1) * np.asarray(answers.mask)[:, slot]
        np.testing.assert_allclose(entropy[:, slot], expected, atol=2e-5)


def test_padding_changes_nothing_and_gives_no_gradient():
    """Ids outside the vocabulary behind the ends would be NaN."""
    params, answers, _ = drawn_answers(LLAMA)
    slots, places = np.arange(7)[None], np.arange(9)[None]
    dirty = CompletionBatch(
        np.where(places < answers.prompt_lengths[:, None], answers.prompts, 99),
        answers.prompt_lengths,
        np.where(slots < np.asarray(answers.completion_lengths)[:, None], answers.completions, 99),
        answers.completion_lengths,
    )

    def total(params, answers):
        return completion_logprobs(LLAMA, params, answers, DRAWN)[0].sum()

    slope_of = jax.jit(jax.value_and_grad(total))
    clean, slope = slope_of(params, answers)
    again, other = slope_of(params, dirty)
    assert float(clean) == float(again)
    assert np.isfinite(float(clean))
    for one, two in zip(jax.tree.leaves(slope), jax.tree.leaves(other), strict=True):
        assert np.isfinite(one).all()
        np.testing.assert_array_equal(one, two)


def test_the_reference_pads_no_prompt_past_the_context():
    """57 tokens would be padded to 64, and 7 more do not fit the 64 positions of GPT-2."""
    rng = np.random.default_rng(1)
    lengths, ends = np.array([57, 1], np.int32), np.array([7, 3], np.int32)
    batch = CompletionBatch(
        rng.integers(0, 24, (2, 57)), lengths, rng.integers(12, 24, (2, 7)), ends
    )
    named = LanguageModel(GPT2, model(GPT2), word_tokenizer(["a"]), {}, "tiny", "0" * 64)
    found = reference_logprobs(named, batch, SETTINGS)
    expected = completion_logprobs(GPT2, model(GPT2), batch, DRAWN)[0]
    np.testing.assert_allclose(found, expected, atol=1e-5)
