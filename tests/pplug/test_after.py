"""Soft tokens behind the prompt: exact, cached and uncached, in the loss and in answers."""

import json
from dataclasses import replace
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pplug_world as world
import pytest

from jaxalign import pplug
from jaxalign.data import lamp
from jaxalign.data.histories import Item
from jaxalign.data.sequences import Sequences
from jaxalign.errors import InputError
from jaxalign.models import families
from jaxalign.models.attention import Cache
from jaxalign.models.decoder import unembedding
from jaxalign.models.gpt2 import GPT2Config
from jaxalign.models.sampling import Sampling
from jaxalign.pplug import _train, prompt_cache, rows
from jaxalign.pplug.answers import (
    FrozenParts,
    LabelTokens,
    PromptInputs,
    answer_loss,
    answer_states,
    label_logprobs,
    label_tokens,
)
from jaxalign.pplug.config import PersonaConfig
from jaxalign.pplug.model import prefix_spec
from jaxalign.pplug.prompt_cache import PromptCache
from jaxalign.pplug.rows import assistant_turn, prepare_persona_inputs
from jaxalign.pplug.store import history_store
from jaxalign.pplug.tokenized import TokenizedSamples
from jaxalign.train.batches import Batches
from jaxalign.train.mesh import MeshConfig, make_mesh

GPT2 = GPT2Config(vocab_size=19, width=32, layers=2, heads=2, hidden=48, positions=64)
PROMPTS = Sequences.of([[5, 6, 7, 8, 9, 3, 4], [10, 11, 3, 4], [5, 6, 7, 8, 9, 3, 4]])
TURN = np.array([3, 4], np.int32)
ANSWERS, LENGTHS = np.array([[2, 3], [4, 0], [12, 13]], np.int32), np.array([2, 1, 2], np.int32)


def model(name):
    if name == "llama":
        return world.LM, world.language_model().params
    if name == "window":
        return replace(world.LM, window=4), world.language_model().params
    params = jax.jit(families.init, static_argnums=1)(jax.random.key(0), GPT2)
    return GPT2, jax.tree.map(lambda leaf: leaf * (4 if leaf.ndim > 1 else 1), params)


def whole_sequence_loss(config, params, soft):
    """The loss of the answers, each row by itself, in one pass over everything."""
    total = 0.0
    for row in range(3):
        prompt = PROMPTS.tokens[PROMPTS.starts[row] : PROMPTS.starts[row + 1]]
        answer = ANSWERS[row, : LENGTHS[row]]
        parts = [
            families.embed(config, params, np.asarray(part)[None])
            for part in (prompt[:-2], prompt[-2:], answer)
        ]
        line = jnp.concatenate([parts[0], soft[row][None], *parts[1:]], axis=1)
        hidden, _ = families.forward(config, params, embeddings=line)
        before = hidden[0, -len(answer) - 1 : -1]
        logits = jax.nn.log_softmax(families.logits(params, before))
        total -= sum(logits[place, token] for place, token in enumerate(answer))
    return total


@pytest.mark.parametrize("name", ["llama", "window", "gpt2"])
def test_cached_is_the_whole_sequence_and_so_is_its_gradient(name):
    config, params = model(name)
    soft = 3 * jax.random.normal(jax.random.key(1), (3, 2, 32))
    cache, numbers = PromptCache(config, params, 1.0).read(PROMPTS)
    assert numbers.tolist() == [0, 1, 0]
    assert cache.key.shape[1] == 2
    tokens, lengths = PROMPTS.padded(np.arange(3), 9)
    past = Cache(*(jnp.pad(kept, [(0, 0)] * 3 + [(0, 2), (0, 0)]) for kept in cache))
    past = Cache(*(kept[:, numbers] for kept in past))

    def cached(soft):
        inputs = PromptInputs(tokens, lengths, soft, TURN, past)
        states = answer_states(config, params, inputs, ANSWERS, LENGTHS)
        logits = jax.nn.log_softmax(families.logits(params, states))
        own = jnp.take_along_axis(logits, ANSWERS[:, :, None], axis=2)[:, :, 0]
        return -jnp.sum(jnp.where(jnp.arange(2)[None, :] < LENGTHS[:, None], own, 0))

    found = jax.jit(jax.value_and_grad(cached))(soft)
    expected = jax.jit(jax.value_and_grad(lambda soft: whole_sequence_loss(config, params, soft)))
    chex.assert_trees_all_close(found, expected(soft), rtol=1e-5, atol=1e-5)


def test_a_cache_that_does_not_fit_is_not_made():
    config, params = model("llama")
    cache, numbers = PromptCache(config, params, 0.0).read(PROMPTS)
    assert cache is None
    assert numbers.tolist() == [0, 1, 0]


def test_prompts_that_are_held_are_returned_and_held_once(monkeypatch):
    config, params = model("llama")
    prompts = PromptCache(config, params, 1.0)
    before = {id(array) for array in jax.live_arrays()}
    cache, _ = prompts.read(PROMPTS)
    part, numbers = prompts.read(Sequences.of([PROMPTS.tokens_of(1).tolist()]))
    assert part is cache
    assert numbers.tolist() == [1]
    new = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.shape == cache.key.shape for array in new) == 2

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prompt_cache, "_read", stopped)
    with pytest.raises(KeyboardInterrupt):
        prompts.read(Sequences.of([[5] * 9]))
    monkeypatch.undo()
    again, numbers = prompts.read(PROMPTS)
    chex.assert_trees_all_equal(again, cache)
    assert numbers.tolist() == [0, 1, 0]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with history_store(tmp_path_factory.mktemp("store"), world.encoder()) as opened:
        yield opened


PERSONA = PersonaConfig(mean=True, centre=True, place="after")
TASK = lamp.Task(
    "tastes", label="verdict", kind="choice", labels=world.TASTES, encode="{verdict} {text}"
)


def started(store, data, persona=PERSONA, text=world.TEXT):
    args = (world.language_model(), world.encoder(), persona, text, data, store)
    return pplug.init_plug(jax.random.key(0), *args)


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["generated", "scored"])
def test_training_reads_the_cache_and_steps_without_it_alike(store, answers):
    data = world.histories(4)
    items = tuple(Item(one.id, {**one.fields, "verdict": "red"}) for one in data.items)
    data = replace(data, items=items, task="tastes", own_task=TASK)
    text = replace(world.TEXT, answers=answers, labels=True)
    plug = started(store, data, text=text)
    losses = []
    for gib in (2.0, 0.0):
        loop = replace(world.config().loop, epochs=1)
        config = replace(world.config(PERSONA, text=text, loop=loop), cache_gib=gib, copies=0)
        result = pplug.train(plug, data, config, store=store, validation=data)
        losses.append((result.fit.validation_before["loss"], result.fit.validation["loss"]))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    assert losses[0][1] < losses[0][0]


def test_batches_are_the_same_whether_prompts_are_cached_or_not():
    """A run resumes with another `cache_gib`, so that its batches must not depend on it."""
    data = world.histories(6)
    samples = tuple(
        replace(one, input="b " * (1 + 39 * (number % 2)))
        for number, one in enumerate(data.samples)
    )
    data, text = replace(data, samples=samples), replace(world.TEXT, prompt_tokens=48)
    persona = PersonaConfig(source="none", place="after")
    plug = started(None, data, persona, text)
    plain = TokenizedSamples.of(plug.model, persona, text, data, None)
    cached = replace(plain, numbers=np.arange(len(data), dtype=np.int32))
    config = world.config(persona, text=text)
    found = [_train._rows(plug, one, config, None, 1, False) for one in (plain, cached)]
    planned = [Batches(rows.lengths, 4).epoch(0) for rows in found]
    chex.assert_trees_all_equal(*planned)
    assert len({width for width, _ in planned[0]}) == 2
    widths = [
        {rows.assemble(own, width)["prompts"].shape[1] for width, own in planned[0]}
        for rows in found
    ]
    assert widths == [{32, 40}, {40}]  # cached prompts are not computed again: one program


@pytest.mark.slow
def test_generated_answers_stand_behind_the_soft_tokens(store):
    data = world.histories(3)
    plug = started(store, data)
    found = pplug.generate_answers(
        plug, data, Sampling(max_tokens=1, temperature=0.0), jax.random.key(0), store=store,
        progress=False,
    )  # fmt: skip
    soft = pplug.prefixes(plug, data, store)
    for row, sample in enumerate(data.samples):
        ids = np.asarray(plug.model.tokenizer(sample.input + "\n")["input_ids"])[None]
        embedded = families.embed(plug.model.config, plug.model.params, ids)
        line = jnp.concatenate([embedded, soft[row][None]], axis=1)
        hidden, _ = families.forward(plug.model.config, plug.model.params, embeddings=line)
        assert found[row].tokens[0] == families.logits(plug.model.params, hidden[0, -1]).argmax()


@pytest.mark.slow
def test_labels_are_scored_as_one_by_one():
    config, params = model("llama")
    soft = jax.random.normal(jax.random.key(1), (3, 2, 32))
    tokens, lengths = PROMPTS.padded(np.arange(3), 7)
    several = LabelTokens(np.array([[5, 6], [7, 0], [5, 8]]), np.array([2, 1, 2]))
    single = LabelTokens(np.array([[5], [7], [9]]), np.array([1, 1, 1]))
    for labels in (several, single):
        for past in (None, PromptCache(config, params, 1.0).read(PROMPTS)):
            own = past if past is None else Cache(*(kept[:, past[1]] for kept in past[0]))
            inputs = PromptInputs(tokens, lengths, soft, TURN, own)
            found = jax.jit(label_logprobs, static_argnums=0)(config, params, inputs, labels)
            scores = np.zeros((3, 3))
            for label in range(3):
                answer = np.tile(labels.tokens[label], (3, 1))
                many = np.full(3, labels.lengths[label])
                states = answer_states(config, params, inputs, answer, many)
                logits = jax.nn.log_softmax(states @ unembedding(params).T)
                for place in range(labels.lengths[label]):
                    scores[:, label] += logits[:, place, labels.tokens[label, place]]
            expected = jax.nn.log_softmax(scores, axis=1)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_labels_that_cannot_be_told_apart_are_refused():
    words = world.language_model()
    with pytest.raises(InputError, match="'red' of the task t begins the label 'red green'"):
        label_tokens(words, ("red", "red green"), "t")
    with pytest.raises(InputError, match="has 0 labels; expected at least two"):
        label_tokens(words, (), "text")


@pytest.mark.parametrize("source", ["input", "none"])
def test_a_plug_that_reads_no_items_keeps_no_mean_of_them(store, tmp_path, source):
    plug = started(store, world.histories(5), replace(PERSONA, source=source))
    assert plug.centre is None
    path = tmp_path / "plug.safetensors"
    pplug.save(path, plug)
    again = pplug.load(path, plug.model, plug.encoder)
    assert again.centre is None
    chex.assert_trees_all_equal(again.trained, plug.trained)


def test_the_mean_of_the_items_is_kept_with_the_plug(store, tmp_path):
    data = world.histories(5)
    plug = started(store, data)
    places = [place for sample in data.samples for place in sample.profile]
    rows = store.find([data.items[place].fields["text"] for place in places])
    expected = store.read(rows).astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(plug.centre, expected, atol=1e-6)
    path = tmp_path / "plug.safetensors"
    pplug.save(path, plug)
    again = pplug.load(path, plug.model, plug.encoder)
    np.testing.assert_array_equal(again.centre, plug.centre)
    chex.assert_trees_all_equal(
        pplug.prefixes(again, data, store), pplug.prefixes(plug, data, store)
    )
    # Items are centred before the projection, whatever their number.
    one = data.take([0])
    read = prepare_persona_inputs(plug.encoder, PERSONA, world.TEXT, one, store, centre=plug.centre)
    batch = read.arrays(np.array([0]), 8, 16)
    own = jax.jit(pplug.aggregate, static_argnums=4)(
        plug.trained["persona"], np.zeros(len(plug.centre)), batch["items"][0], batch["mask"][0],
        PERSONA,
    )  # fmt: skip
    np.testing.assert_allclose(pplug.prefixes(plug, one, store)[0, 1:], own, rtol=1e-5)
    with pytest.raises(InputError, match="no training sample has a history"):
        started(store, data.with_profiles([()] * len(data)))


def test_the_turn_of_the_assistant_is_found():
    def write(turns, tokenize, add_generation_prompt):
        return "".join(f"{one['content']} e " for one in turns) + "c d" * add_generation_prompt

    words = world.language_model().tokenizer
    chat = SimpleNamespace(chat_template="...", apply_chat_template=write)
    chat = type("Chat", (), {"__call__": lambda self, *a, **k: words(*a, **k)})()
    chat.chat_template, chat.apply_chat_template = "...", write
    named = SimpleNamespace(tokenizer=chat, name="chat")
    turn = assistant_turn(named, replace(world.TEXT, template="chat"))
    assert words.convert_ids_to_tokens(turn) == ["c", "d"]
    assert assistant_turn(named, replace(world.TEXT, template="plain")) == ()


def read_losses(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [row["validation_loss"] for row in rows if "validation_loss" in row]


def test_stages_end_with_attention_and_the_encoder_has_its_own_rate(store, tmp_path, monkeypatch):
    data, persona = world.histories(4), replace(PERSONA, mean=False)
    plug = started(store, data, persona)
    config = replace(
        world.config(persona, loop=replace(world.config().loop, epochs=1)),
        mean_epochs=1, encoder_rate=1e-9, copies=0,
    )  # fmt: skip
    encoded, encode_with = [], rows.encode_with

    def recorded(encoder):
        return lambda texts: encoded.extend(texts) or encode_with(encoder)(texts)

    monkeypatch.setattr(rows, "encode_with", recorded)
    result = pplug.train(plug, data, config, tmp_path, validation=data)
    assert encoded
    assert len(encoded) == len(set(encoded))  # both stages read one store
    before = read_losses(tmp_path / "mean")
    assert result.fit.validation_before == {"loss": before[0]}
    assert result.fit.steps == result.fit.best_step == 2  # those with the mean are counted
    # A baseline without attention has as many passes.
    plain = PersonaConfig(source="none", place="after")
    own = pplug.train(started(None, data, plain), data, replace(config, persona=plain))
    assert own.fit.steps == 2
    chex.assert_trees_all_close(result.plug.trained["encoder"], plug.trained["encoder"], atol=1e-6)
    kernels = [one.trained["persona"]["project"]["inner"]["kernel"] for one in (plug, result.plug)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4


def test_the_loss_of_a_batch_counts_rows_that_are_there():
    _, params = model("llama")
    plug = started(None, world.histories(2), PersonaConfig(source="none", place="after"))
    spec = prefix_spec(plug)
    tokens, lengths = PROMPTS.padded(np.array([0, 1, -1]), 7)
    labels = LabelTokens(np.array([[5], [7]]), np.array([1, 1]))
    batch = {
        "prompts": tokens, "prompt_lengths": lengths, "label": np.array([1, 0, 0]),
        "completion_lengths": np.array([1, 1, 0], np.int32), "is_copy": np.zeros(3, bool),
    }  # fmt: skip
    frozen = FrozenParts(params, TURN, None, labels)
    sums = answer_loss(spec, make_mesh(MeshConfig()), plug.trained, frozen, batch, None)
    assert float(sums["weight"]) == 2
    assert np.isfinite(float(sums["loss"]))
