"""Generation against full forward passes without a cache, and exact distributions in NumPy."""

import re
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compile_cache import xla_flags
from scipy import stats
from scipy.special import log_softmax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from jaxalign.errors import InputError
from jaxalign.models import families, lora
from jaxalign.models import generate as generation
from jaxalign.models.chat import complete_tokens, generate_texts, prompt_ids, stop_ids
from jaxalign.models.decoder_config import DecoderConfig
from jaxalign.models.generate import PolicyMixture, Prompt, generate
from jaxalign.models.gpt2 import GPT2Config
from jaxalign.models.sampling import Sampling
from jaxalign.models.stream import stream

V, D = 29, 16
LLAMA = DecoderConfig("llama", V, D, 2, 4, 2, 4, 24, 128, qk_norm=True)
MISTRAL = replace(LLAMA, window=5, tied=True, qkv_bias=True)
GPT2 = GPT2Config(V, D, 2, 4, 32, 128)
TOKENS = np.random.default_rng(0).integers(0, V, (5, 9)).astype(np.int32)
LENGTHS = np.array([9, 1, 4, 7, 2], np.int32)
KEY = jax.random.key(11)
LORA = lora.LoraConfig(rank=2, alpha=8.0, targets=("out", "up"))


@cache
def params_of(config, seed=0):
    """Random parameters, large enough that distributions are far from flat."""
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(seed), config)
    return jax.tree.map(lambda leaf: leaf * 12 if leaf.ndim > 1 else leaf, params)


@cache
def adapter_of(config, seed):
    """A trained adapter, so to speak: its second factor is not zero."""
    adapter = lora.scaled(lora.init(jax.random.key(seed), LORA, params_of(config)), LORA)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.25, leaf.shape).astype("f"), adapter)


@partial(jax.jit, static_argnums=0)
def one_pass(config, params, tokens, adapter, soft):
    embeddings = families.embed(config, params, tokens[None])
    if soft is not None:
        embeddings = jnp.concatenate([soft[None], embeddings], axis=1)
    hidden, _ = families.forward(config, params, embeddings=embeddings, adapters=adapter)
    return families.logits(params, hidden)[0]


def full_logits(config, params, row, adapter=None, soft=None):
    """Logits [T, V] after each token of one row, by one pass without a cache."""
    tokens = np.zeros(20, np.int32)  # causal: what stands behind changes nothing
    tokens[: len(row)] = row
    if adapter is None:  # of its shape, so that it compiles once
        adapter = jax.tree.map(jnp.zeros_like, adapter_of(config, 0))
        adapter = jax.tree.map(lambda leaf: leaf.astype(params["embed"]["table"].dtype), adapter)
    logits = np.asarray(one_pass(config, params, tokens, adapter, soft), np.float64)
    return logits[: len(row) + (0 if soft is None else len(soft))]


def expected_logprobs(found, row, tokens, logits, temperature=1.0, suppressed=()):
    """Log-probabilities of what a row drew, from logits [T, V] of the final sequence."""
    drawn = np.asarray(found.tokens[row, : found.lengths[row]])
    logits = logits[-len(drawn) - 1 : -1].copy()
    logits[:, list(suppressed)] = -np.inf
    return log_softmax(logits / temperature, axis=1)[np.arange(len(drawn)), drawn]


def sequence(found, row):
    return [*TOKENS[row, : LENGTHS[row]], *np.asarray(found.tokens[row, : found.lengths[row]])]


@pytest.mark.parametrize("config", [LLAMA, MISTRAL, GPT2], ids=["llama", "mistral", "gpt2"])
def test_cached_decoding_equals_full_passes(config):
    """Ragged prompts and prefixes, mixed adapters, none among them."""
    params = params_of(config)
    adapters = [adapter_of(config, seed) for seed in range(2)]
    rows, firsts = np.array([1, -1, 0, 1, -1]), np.array([3, 2, 0, 1, 3], np.int32)
    prefix = jax.random.normal(KEY, (5, 3, D))
    settings = Sampling(max_tokens=8, temperature=0.7, stop_ids=(3, 4), suppressed_ids=(5, 6))
    with_soft = {"prefix": prefix, "prefix_lengths": firsts}
    found = generate(
        config, params, TOKENS, LENGTHS, KEY, settings,
        adapters=lora.stack(adapters), rows=rows, **with_soft,
    )  # fmt: skip
    for row in range(5):
        adapter = None if rows[row] < 0 else adapters[rows[row]]
        tokens = sequence(found, row)
        logits = full_logits(config, params, tokens, adapter, prefix[row, : firsts[row]])
        expected = expected_logprobs(found, row, tokens, logits, 0.7, (5, 6))
        length = int(found.lengths[row])
        np.testing.assert_allclose(found.logprobs[row, :length], expected, rtol=1e-5, atol=1e-5)
        assert not np.asarray(found.logprobs[row, length:]).any()
        assert not np.asarray(found.tokens[row, length:]).any()
        assert bool(found.stopped[row]) == (int(found.tokens[row, length - 1]) in (3, 4))
        assert found.stopped[row] or length == 8
    assert not np.isin(found.tokens, (5, 6)).any()
    # The adapters and the prefix are not idle.
    plain = generate(config, params, TOKENS, LENGTHS, KEY, settings)
    assert (np.asarray(plain.tokens) != np.asarray(found.tokens)).any()


@pytest.mark.parametrize("config", [LLAMA, GPT2], ids=["llama", "gpt2"])
def test_layers_apart_draw_the_same(config):
    stack = lora.stack([adapter_of(config, seed) for seed in range(2)])
    policies = {"adapters": stack, "rows": np.array([1, -1, 0, 1, -1])}
    settings = Sampling(max_tokens=8)
    model = config, params_of(config)
    together, apart = (
        generate(*form, TOKENS, LENGTHS, KEY, settings, **policies)
        for form in (model, families.unstack_layers(*model))
    )
    np.testing.assert_array_equal(together.tokens, apart.tokens)
    np.testing.assert_allclose(together.logprobs, apart.logprobs, rtol=1e-5, atol=1e-5)


def test_float64_agrees_to_its_digits(x64):
    config = replace(LLAMA, dtype="float64")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params_of(config))
    found = generate(config, params, TOKENS, LENGTHS, KEY, Sampling(max_tokens=6))
    assert found.logprobs.dtype == jnp.float64
    for row in range(5):
        tokens = sequence(found, row)
        expected = expected_logprobs(found, row, tokens, full_logits(config, params, tokens))
        np.testing.assert_allclose(found.logprobs[row], expected, atol=1e-12)


def test_greedy_takes_the_likeliest_and_says_how_likely():
    params = params_of(LLAMA)
    found = generate(LLAMA, params, TOKENS, LENGTHS, KEY, Sampling(max_tokens=6, temperature=0.0))
    for row in range(5):
        tokens = sequence(found, row)
        logits = full_logits(LLAMA, params, tokens)
        assert np.asarray(found.tokens[row]).tolist() == logits[-7:-1].argmax(1).tolist()
        expected = expected_logprobs(found, row, tokens, logits)
        np.testing.assert_allclose(found.logprobs[row], expected, rtol=1e-5, atol=1e-5)


def test_eight_adapters_at_once_equal_eight_runs():
    params = params_of(LLAMA)
    adapters = [adapter_of(LLAMA, seed) for seed in range(8)]
    tokens, lengths = np.resize(TOKENS, (8, 9)), np.resize(LENGTHS, 8)
    keys, settings = jax.random.split(KEY, 8), Sampling(max_tokens=6, stop_ids=(3,))
    rows = np.array([5, 2, 7, 0, 1, 6, 3, 4])
    together = generate(
        LLAMA, params, tokens, lengths, keys, settings, adapters=lora.stack(adapters), rows=rows
    )
    for row in range(8):
        one = slice(row, row + 1)
        alone = generate(
            LLAMA, params, tokens[one], lengths[one], keys[one], settings,
            adapters=adapters[rows[row]],
        )  # fmt: skip
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])
        np.testing.assert_allclose(alone.logprobs[0], together.logprobs[row], rtol=1e-5, atol=1e-5)
    assert len({tuple(row) for row in np.asarray(together.tokens).tolist()}) > 5


def test_a_row_does_not_depend_on_its_batch():
    params, settings = params_of(LLAMA), Sampling(max_tokens=12, stop_ids=(3, 4))
    whole = generate(LLAMA, params, TOKENS, LENGTHS, KEY, settings)
    keys = jax.vmap(partial(jax.random.fold_in, KEY))(np.arange(5))
    order = np.array([4, 2, 0])
    part = generate(LLAMA, params, TOKENS[order], LENGTHS[order], keys[order], settings)
    np.testing.assert_array_equal(part.tokens, np.asarray(whole.tokens)[order])
    same = generate(
        LLAMA, params, np.repeat(TOKENS[:1], 5, 0), np.repeat(LENGTHS[:1], 5), KEY, settings
    )
    assert len({tuple(row) for row in np.asarray(same.tokens).tolist()}) == 5


def test_two_tokens_follow_their_joint_distribution():
    """Chi-square over all pairs: filters, suppression and minimum length inside the loop."""
    config = replace(LLAMA, vocab_size=9)
    params, prompt, count = params_of(config), [1, 5, 2], 3_000
    settings = Sampling(
        max_tokens=2, min_tokens=1, temperature=1.3, top_k=6, top_p=0.93, stop_ids=(0, 7),
        suppressed_ids=(4,),
    )  # fmt: skip

    def filtered(logits, barred):
        shares = np.exp(logits / 1.3 - (logits / 1.3).max())
        shares[list(barred)] = 0
        order = np.argsort(-shares, kind="stable")
        shares[order[6:]] = 0
        shares /= shares.sum()
        shares[order[np.searchsorted(np.cumsum(shares[order]), 0.93) + 1 :]] = 0
        return shares / shares.sum()

    first = filtered(full_logits(config, params, prompt)[-1], (0, 4, 7))
    second = [filtered(full_logits(config, params, [*prompt, t])[-1], (4,)) for t in range(9)]
    joint = (first[:, None] * np.array(second)).reshape(-1)
    found = generate(config, params, np.tile(prompt, (count, 1)), np.full(count, 3), KEY, settings)
    pairs = np.asarray(found.tokens) @ np.array([9, 1])
    counts = np.bincount(pairs, minlength=81)
    assert not counts[joint == 0].any()
    np.testing.assert_allclose(np.sum(found.logprobs, axis=1), np.log(joint[pairs]), atol=2e-5)
    often = joint * count >= 5
    cells = np.append(counts[often], counts[~often].sum())
    expected = np.append(joint[often], joint[~often].sum()) * count
    kept = expected > 1e-6
    assert kept.sum() > 10
    assert stats.chisquare(cells[kept], expected[kept]).pvalue > 1e-3


def test_the_loop_ends_with_the_last_row():
    params = params_of(LLAMA)
    settings = Sampling(max_tokens=60, stop_ids=tuple(range(0, V, 2)), pad_id=1)
    found = generate(LLAMA, params, TOKENS, LENGTHS, KEY, settings)
    assert found.stopped.all()
    assert int(found.steps) == int(found.lengths.max()) < 60
    chex.assert_shape(found.tokens, (5, 60))
    late = generate(LLAMA, params, TOKENS, LENGTHS, KEY, replace(settings, min_tokens=20))
    assert int(late.lengths.min()) > 20
    assert int(late.steps) == int(late.lengths.max())
    for row, length in enumerate(np.asarray(found.lengths)):
        assert (np.asarray(found.tokens)[row, length:] == 1).all()
        ends = np.isin(np.asarray(late.tokens)[row], settings.stop_ids)
        assert ends.argmax() == late.lengths[row] - 1


def test_a_row_without_a_prompt_is_empty_and_harms_none():
    params, settings = params_of(LLAMA), Sampling(max_tokens=5)
    lengths = np.where(np.arange(5) == 2, 0, LENGTHS)
    # Ids in the padding are never looked at.
    tokens = np.where(np.arange(9)[None, :] < lengths[:, None], TOKENS, -100)
    found = generate(LLAMA, params, tokens, lengths, KEY, settings)
    expected = generate(LLAMA, params, TOKENS, LENGTHS, KEY, settings)
    assert found.lengths.tolist() == [5, 5, 0, 5, 5]
    others = np.array([0, 1, 3, 4])
    np.testing.assert_array_equal(found.tokens[others], expected.tokens[others])


@pytest.mark.parametrize("kind", ["adapters", "models"])
def test_a_mixture_is_the_normalised_product_of_powers(kind):
    params, other = params_of(LLAMA), params_of(MISTRAL, 1)
    adapters = [adapter_of(LLAMA, seed) for seed in range(2)]
    rng = np.random.default_rng(1)
    if kind == "adapters":  # two adapters and the model itself as reference
        weights, stacked = rng.normal(size=(5, 3)), lora.stack(adapters)
        rows = np.array([[0, 1, -1], [1, 0, -1], [0, 1, -1], [1, 0, -1], [0, 0, 1]])
        mixture, policies = PolicyMixture(weights, rows), rows
    else:
        weights, stacked = rng.uniform(size=(5, 2)), None
        mixture, policies = PolicyMixture(weights, others=((MISTRAL, other),)), [[-1, None]] * 5
    settings = Sampling(max_tokens=6, temperature=0.8, suppressed_ids=(2,))
    found = generate(
        LLAMA, params, TOKENS, LENGTHS, KEY, settings, adapters=stacked, combine=mixture
    )
    for row in range(5):
        tokens, total = sequence(found, row), 0
        for weight, policy in zip(weights[row], policies[row], strict=True):
            if policy is None:
                logits = full_logits(MISTRAL, other, tokens)
            else:
                adapter = None if policy < 0 else adapters[policy]
                logits = full_logits(LLAMA, params, tokens, adapter)
            total = total + weight * log_softmax(logits, axis=1)
        expected = expected_logprobs(found, row, tokens, total, 0.8, (2,))
        np.testing.assert_allclose(found.logprobs[row], expected, atol=5e-5)


def test_one_compilation_a_bucket(monkeypatch):
    chex.clear_trace_counter()
    counted = chex.assert_max_traces(generation.decode, n=2)
    monkeypatch.setattr(generation, "decode_jit", jax.jit(counted, static_argnums=0))
    params = params_of(LLAMA)
    for length, count, most, temperature, top_p in (
        (3, 9, 5, 1.0, 0.9), (16, 10, 16, 0.3, 0.5), (11, 9, 1, [2.0] * 9, 0.7),
        (17, 9, 16, 1.0, 0.9), (32, 10, 2, 1.0, 0.2),
    ):  # fmt: skip
        settings = Sampling(
            max_tokens=most, temperature=temperature, top_p=top_p, stop_ids=(length % V,)
        )
        lengths = np.full(count, length)
        found = generate(LLAMA, params, np.ones((count, length), int), lengths, KEY, settings)
        chex.assert_shape((found.tokens, found.lengths), [(count, most), (count,)])


def test_the_cache_is_written_in_place():
    """Of the compiled loop, nothing but the scatter of new slots makes an array of its size."""
    settings = Sampling(max_tokens=16)
    prompt = Prompt(np.ones((4, 100), np.int32), np.full(4, 100))
    spec, inputs, prompt = generation.prepare_decode(LLAMA, params_of(LLAMA), prompt, KEY, settings)
    lowered = generation.decode_jit.lower(spec, inputs, prompt)
    # As users compile, not as tests do; a newer XLA knows no other way.
    as_users = {"xla_cpu_use_fusion_emitters": True} if "emitters" in xla_flags() else None
    text = lowered.compile(as_users).as_text()
    shape = r"= f32\[2,4,2,127,4\]\S* ([\w-]+)\("  # L, B, G, S = 112 + 16 - 1, H
    made: dict[bool, list[str]] = {True: [], False: []}
    for line in text.splitlines():
        if found := re.search(shape, line):
            made["while/body" in line].append(found[1])
    inside = [name for name in made[True] if name != "get-tuple-element"]
    # Keys and values, in prefill and in decoding: a scatter each, and the call of it.
    assert sorted(inside) == ["fusion"] * 4 + ["scatter"] * 4
    assert made[False].count("copy") <= 1


def refused(message, config=LLAMA, tokens=TOKENS, lengths=LENGTHS, key=KEY, **options):
    settings = options.pop("settings", Sampling(max_tokens=4))
    with pytest.raises(InputError, match=message):
        generate(config, params_of(config), tokens, lengths, key, settings, **options)


def test_what_does_not_fit_is_refused():
    stacked = lora.stack([adapter_of(LLAMA, seed) for seed in range(2)])
    rows = np.zeros(5, int)
    refused("tokens have shape", tokens=TOKENS[0])
    refused("lengths has shape", lengths=LENGTHS[:3])
    refused("lengths are .*from 0 to 9", lengths=LENGTHS + 1)
    refused("expected keys", key=jnp.zeros(2, jnp.uint32))
    refused("row 0 has 9 tokens, and 120 may be drawn", settings=Sampling(max_tokens=120))
    refused("prefix has shape", prefix=np.zeros((5, 2, D + 1)))
    refused("prefix_lengths are", prefix=np.zeros((5, 2, D)), prefix_lengths=rows + 3)
    refused("a stack of adapters and no rows", adapters=stacked)
    refused("no stack of adapters and rows", rows=rows)
    refused("from -1 to 1", adapters=stacked, rows=rows + 2)
    refused("combine.weights has shape", combine=PolicyMixture(np.ones((5, 2))))
    other = replace(LLAMA, vocab_size=V + 1)
    refused("combine.weights is None", combine=PolicyMixture(None, others=((LLAMA, {}),)))
    broken = PolicyMixture(np.full((5, 1), np.nan))
    refused("combine.weights are .*expected finite", combine=broken)
    refused("the same vocabulary", combine=PolicyMixture(np.ones((5, 2)), others=((other, {}),)))


TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def model():
    """A byte-level tokenizer, so that a character of many bytes takes many tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], additional_special_tokens=special[1:]
    )
    template = TEMPLATE + "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}"
    wrapped.chat_template = template + "{% if not messages %}{{ raise_exception('x') }}{% endif %}"
    config = replace(LLAMA, vocab_size=len(vocabulary))
    return SimpleNamespace(
        config=config, params=params_of(config), tokenizer=wrapped, name="tiny",
        hf_config={"eos_token_id": [0]}, generation={"eos_token_id": 9}, sha256="",
    )  # fmt: skip


def test_prompts_go_through_the_template(model):
    chat = [{"role": "user", "content": "hé"}]
    text = model.tokenizer.decode(prompt_ids(model, chat))
    assert text == "<|im_start|>user hé<|im_end|><|im_start|>assistant "
    assert model.tokenizer.decode(prompt_ids(model, "hé")) == "hé"
    assert prompt_ids(model, "") == [0]
    assert stop_ids(model) == (0, 2, 9)


def test_texts_in_texts_out(model):
    prompts = ["a", "a longer prompt", "", "aé", "a"]
    settings = Sampling(max_tokens=30, temperature=[1.0, 0.5, 1.0, 1.0, 1.0], top_k=40)
    answers = generate_texts(model, prompts, settings, KEY, batch_size=2, progress=False)
    again = generate_texts(model, prompts, settings, KEY, batch_size=5, progress=False)
    assert [each.text for each in answers] == [each.text for each in again]
    assert answers[0].text != answers[4].text
    assert [each.prompt_tokens for each in answers] == [1, 15, 1, 3, 1]
    for answer in answers:
        assert len(answer.tokens) == len(answer.logprobs) <= 30
        assert answer.stopped == (int(answer.tokens[-1]) in (0, 2, 9))


def test_parts_of_the_batches_are_the_same_batches(model):
    """Processes that share the batches give what one gives, to the last bit."""
    ids = [prompt_ids(model, "x" * (1 + 7 * row % 5)) for row in range(7)]
    keys = jax.random.split(KEY, 7)
    ask = partial(complete_tokens, model, ids, Sampling(max_tokens=5), keys, batch_size=2)
    whole = list(ask())
    assert [len(batch) for batch in whole] == [2, 2, 2, 1]
    for part in (slice(0, None, 3), slice(1, None, 3), slice(2, None, 3), slice(9, None, 3)):
        for batch, again in zip(whole[part], ask(part=part), strict=True):
            assert batch.keys() == again.keys()
            for row, answer in batch.items():
                np.testing.assert_array_equal(answer.logprobs, again[row].logprobs)
                assert (answer.text, answer.stopped) == (again[row].text, again[row].stopped)


def test_texts_that_cannot_be_answered_are_refused(model):
    ask = partial(generate_texts, model, settings=Sampling(max_tokens=100), key=KEY, progress=False)
    long = "x" * 29
    with pytest.raises(InputError, match=r"prompt 1 has 29 tokens, and 100 more .* has 128"):
        ask(["x" * 28, long])
    with pytest.raises(InputError, match="expected a list"):
        ask("one text")
    with pytest.raises(InputError, match="prompt 0 is list; expected"):
        ask([[]])
    with pytest.raises(InputError, match="prompt 0 is not valid Unicode"):
        ask(["\ud800"])
    bare = SimpleNamespace(**{**vars(model), "tokenizer": SimpleNamespace(chat_template=None)})
    with pytest.raises(InputError, match="prompt 0: the tokenizer has no chat template"):
        generate_texts(bare, [[{"role": "user", "content": "x"}]], Sampling(), KEY)
    for name, given in (
        ("places", {"places": [0]}),
        ("prefix_lengths", {"prefix_lengths": np.zeros(3, int)}),
        ("rows", {"rows": [0]}),
        ("temperature", {"settings": Sampling(max_tokens=2, temperature=[1.0, 1.0, 0.5])}),
    ):
        with pytest.raises(InputError, match=f"{name} has shape .*one entry for each of 2 prompts"):
            ask(["x", "y"], **({"settings": Sampling(max_tokens=2)} | given))
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, model.params)
    broken = SimpleNamespace(**{**vars(model), "params": broken})
    with pytest.raises(InputError, match="not finite"):
        generate_texts(broken, ["x"], Sampling(max_tokens=2), KEY, progress=False)


def test_prompts_with_soft_tokens_may_fill_a_position_table(model):
    """Their padding leaves room for the soft tokens: GPT-2 has no positions beyond its table."""
    config = replace(GPT2, vocab_size=model.config.vocab_size)
    learned = {**vars(model), "config": config, "params": params_of(config)}
    ask = partial(generate_texts, SimpleNamespace(**learned), key=KEY, progress=False)
    settings = Sampling(max_tokens=4)
    soft = jax.random.normal(KEY, (2, 2, D))
    long = "x" * (config.positions - 6)
    [short, found] = ask(["x", long], settings, prefix=soft)
    assert (short.prompt_tokens, found.prompt_tokens) == (1, len(long))
    [alone] = ask(["x"], settings, prefix=soft[:1])
    np.testing.assert_array_equal(short.tokens, alone.tokens)
    ragged = ask(["xx", long], settings, prefix=soft, prefix_lengths=np.array([0, 2]))
    np.testing.assert_array_equal(ragged[1].tokens, found.tokens)


def test_a_stream_is_the_text_in_whole_characters(model):
    settings = Sampling(max_tokens=40, min_tokens=35, temperature=3.0)
    [answer] = generate_texts(model, ["a"], settings, KEY, progress=False)
    pieces = list(stream(model, "a", settings, KEY))
    assert "".join(piece.text for piece in pieces) == answer.text
    assert pieces[-1].tokens == len(answer.tokens)
    assert pieces[-1].stopped == answer.stopped
    assert len(pieces) > 2


def test_a_character_waits_for_its_bytes(model, monkeypatch):
    """A model made to say one text: each token leads to the next of it."""
    text = "aé€😀z" * 3
    ids = model.tokenizer(text)["input_ids"]
    assert len(ids) > 2 * len(text)
    monkeypatch.setattr("jaxalign.models.stream._BLOCK", 1)
    # Tokens come from the text, whatever the model draws.
    monkeypatch.setattr(
        "jaxalign.models.stream.text_of",
        lambda model, tokens: model.tokenizer.decode(ids[: len(tokens)]),
    )
    settings = Sampling(max_tokens=len(ids), min_tokens=len(ids))
    pieces = [piece.text for piece in stream(model, "a", settings, KEY)]
    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces)
    assert len(pieces) == len(text)
