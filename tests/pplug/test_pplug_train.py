"""Training a plug: against torch, to the same bits after a stop, and what stays as it is."""

import json
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pplug_world as world
import pytest
import tiny_bert
import tiny_lms
import torch
from kept_states import failed_step
from test_persona import projected, reference

from jaxalign import pplug
from jaxalign.data.histories import Histories, Item, Sample
from jaxalign.errors import InputError
from jaxalign.models.embed import load_encoder
from jaxalign.models.language import load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.pplug import _train
from jaxalign.pplug import model as plugs
from jaxalign.pplug.answers import FrozenParts, answer_loss
from jaxalign.pplug.config import PersonaConfig, PPlugConfig, TextConfig
from jaxalign.pplug.model import drop_items, embedding_norm
from jaxalign.pplug.rows import padded_length, prepare_persona_inputs, tokenize_samples
from jaxalign.pplug.store import HistoryStore, MemoryStore, history_store
from jaxalign.runs.artifact import flatten
from jaxalign.train.loop import LoopConfig
from jaxalign.train.mesh import MeshConfig, make_mesh

SETTINGS = Sampling(max_tokens=3, temperature=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    with history_store(tmp_path_factory.mktemp("store"), world.encoder()) as opened:
        yield opened


def started(store, persona=None, data=None):
    data = data or world.histories(8)
    persona, encoder = persona or PersonaConfig(), world.encoder()
    args = (world.language_model(), encoder, persona, world.TEXT, data, store)
    return pplug.init_plug(jax.random.key(0), *args)


def test_a_fresh_plug_shows_the_encoding_of_histories():
    shown = []

    class Store(MemoryStore):
        def add(self, texts, encode, progress=False):
            shown.append(progress)
            return super().add(texts, encode, progress)

    args = world.language_model(), world.encoder(), PersonaConfig(), world.TEXT, world.histories(2)
    pplug.init_plug(jax.random.key(0), *args, Store(world.encoder().config.width), progress=True)
    assert shown == [True]


def same_bits(one, two):
    flats = [flatten(jax.tree.map(np.asarray, tree)) for tree in (one, two)]
    assert flats[0].keys() == flats[1].keys()
    for name, leaf in flats[0].items():
        assert leaf.tobytes() == flats[1][name].tobytes(), name


def test_loss_and_its_gradient_are_those_of_torch(tmp_path):
    sizes = {"num_hidden_layers": 2}
    model = load_language_model(str(tiny_lms.write(tmp_path / "lm", "llama", **sizes)))
    theirs = tiny_lms.hf_model("llama", **sizes)
    bert = tiny_bert.torch_bert(3)
    encoder = load_encoder(str(tiny_bert.write_model(tmp_path / "bert", bert)))
    texts = ["red a b", "green c", "blue .", "a b c d", "e f red"]
    items = tuple(Item(str(place), {"text": text}) for place, text in enumerate(texts))
    samples = (
        Sample("0", "u", "red green", "the thing", (0, 1, 2)),
        Sample("1", "v", "blue a b c d", "an", (3, 4)),
        Sample("2", "w", "c", "in", ()),
    )
    data = Histories(samples, items, "text")
    persona = PersonaConfig(sharpness=3.0)
    text = TextConfig(query_prefix="a ", template="plain")
    with history_store(tmp_path / "store", encoder) as store:
        plug = pplug.init_plug(jax.random.key(1), model, encoder, persona, text, data, store)
        asked, said = tokenize_samples(model, text, data, [sample.input for sample in samples])
        rows = np.array([0, 1, 2, -1])
        prompts, lengths = asked.padded(rows, 24)
        answers, ends = said.padded(rows, 12)
        read = prepare_persona_inputs(encoder, persona, text, data, store)
        batch = {
            "prompts": prompts,
            "prompt_lengths": lengths,
            "completions": answers,
            "completion_lengths": np.where(rows < 0, 0, ends).astype(np.int32),
            "is_copy": rows > 5,
            **read.arrays(rows, 24, 16),
        }
        vectors = store.read(store.find(texts)).astype(np.float64)

    def total(trained):
        mesh = make_mesh(MeshConfig())
        frozen = FrozenParts(model.params)
        sums = answer_loss(plugs.prefix_spec(plug), mesh, trained, frozen, batch, None)
        return sums["loss"], sums["weight"]

    (found, weight), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(plug.trained)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), plug.trained["persona"])
    first = projected(params["task"], params["task"]["vector"])
    loss, slopes, count = 0.0, [], 0
    for sample in samples:
        ids = encoder.tokenizer.encode(f"a {sample.input}").ids
        with torch.no_grad():
            states = bert(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy()
        query = states / np.linalg.norm(states)
        tokens = reference(params, query, vectors[list(sample.profile)], persona)
        soft = torch.tensor(np.concatenate([first, tokens]), dtype=torch.float32)
        soft.requires_grad_()
        question = model.tokenizer(sample.input + "\n")["input_ids"]
        answer = [*model.tokenizer(sample.output)["input_ids"], model.tokenizer.eos_token_id]
        table = theirs.get_input_embeddings()
        line = torch.cat([soft, table(torch.tensor(question + answer))])
        logits = theirs(inputs_embeds=line[None]).logits[0, -len(answer) - 1 : -1]
        one = torch.nn.functional.cross_entropy(logits, torch.tensor(answer), reduction="sum")
        one.backward()
        loss, count = loss + one.item(), count + len(answer)
        slopes.append(soft.grad.numpy())
    assert int(weight) == count
    np.testing.assert_allclose(found, loss, rtol=1e-4)
    scale = params["project"]["scale"]
    ours = slope["persona"]
    np.testing.assert_allclose(ours["null"][0], slopes[2][1] * scale, rtol=2e-3, atol=1e-4)
    bias = (slopes[0][1] + slopes[1][1]) * scale
    np.testing.assert_allclose(ours["project"]["head"]["bias"][0], bias, rtol=2e-3, atol=1e-4)
    bias = sum(one[0] for one in slopes) * params["task"]["scale"]
    np.testing.assert_allclose(ours["task"]["head"]["bias"][0], bias, rtol=2e-3, atol=1e-4)
    # The input encoder learns: its vector decides the weights.
    assert np.abs(slope["encoder"]["layers"]["up"]["kernel"]).max() > 0


class Stop(Exception):
    pass


class Stopping(HistoryStore):
    """Stops a run at one of its batches."""

    left = 10**9

    def read(self, rows):
        self.left -= 1
        if self.left < 0:
            raise Stop
        return super().read(rows)


@pytest.mark.slow
def test_a_stopped_run_ends_with_the_same_bits_and_nothing_frozen_moves(tmp_path):
    data, held = world.histories(8), world.histories(4, seed=1)
    with history_store(tmp_path / "store", world.encoder()) as made:
        digest, width = made.encoder, made.width
    with Stopping(tmp_path / "store", digest, width) as store:
        plug = started(store, data=data)
        frozen = {"model": plug.model.params, "encoder": plug.encoder.params, "plug": plug.trained}
        before = jax.tree.map(np.array, frozen)
        config = world.config()
        whole = pplug.train(plug, data, config, tmp_path / "whole", store=store, validation=held)
        for left in (5, 4):
            store.left = left
            with pytest.raises(Stop):
                pplug.train(plug, data, config, tmp_path / "part", store=store, validation=held)
        store.left = 10**9
        again = pplug.train(plug, data, config, tmp_path / "part", store=store, validation=held)
    lengths = data.lengths
    steps = 2 * -(-int(len(lengths) + (lengths > 2).sum()) // 8)
    assert whole.fit.steps == steps
    assert again.fit == replace(whole.fit, params=again.fit.params)
    same_bits(again.plug.trained, whole.plug.trained)
    # Language model, history encoder and the plug that was given are as they were.
    same_bits(frozen, before)
    assert whole.plug.model is plug.model
    ours, theirs = (flatten(tree) for tree in (before["plug"], whole.plug.trained))
    still = {name for name, leaf in ours.items() if np.array_equal(leaf, theirs[name])}
    # Constants stay, and the persona of empty histories, of which there are none.
    assert still - {"persona/null"} == {"persona/project/scale", "persona/task/scale"}
    judged = whole.fit.validation["loss"]
    assert judged < whole.fit.validation_before["loss"]
    # What is kept on disk holds the trained tree, its moments, and no language model.
    kept = max((tmp_path / "whole" / "state").glob("0*"))
    about = json.loads((kept / "_CHECKPOINT_METADATA").read_text())["custom_metadata"]
    held_paths = [name.partition("/") for name, *_ in about["leaves"]]
    trained = flatten(whole.plug.trained)
    roots = {root for root, *_ in held_paths}
    assert roots == {"params", "moments", "step", "key"}
    assert {rest for root, _, rest in held_paths if root == "params"} == set(trained)
    sizes = sum(int(np.prod(shape)) for _, shape, _ in about["leaves"])
    own = sum(leaf.size for leaf in trained.values())
    assert 3 * own <= sizes < 3 * own + 10


@pytest.mark.slow
def test_a_row_that_is_not_finite_is_named_and_the_run_goes_on(store, tmp_path, monkeypatch):
    data, real = world.histories(8), _train._rows
    plug = started(store, data=data)
    config = world.config(loop=LoopConfig(epochs=2, batch_size=8, checkpoint_every=1))

    def poisoned(*given):
        rows = real(*given)

        def assemble(own, width):
            arrays = rows.assemble(own, width)
            arrays["items"][own == 3] = np.nan
            return arrays

        return replace(rows, assemble=assemble)

    monkeypatch.setattr(_train, "_rows", poisoned)
    with pytest.raises(InputError) as refused:
        pplug.train(plug, data, config, tmp_path / "run", store=store)
    assert failed_step(refused.value) > 1
    monkeypatch.setattr(_train, "_rows", real)
    found = pplug.train(plug, data, config, tmp_path / "run", store=store)
    whole = pplug.train(plug, data, config, tmp_path / "whole", store=store)
    same_bits(found.plug.trained, whole.plug.trained)


def test_tokens_start_as_long_as_the_models_embeddings(store):
    norm = embedding_norm(world.language_model().params["embed"]["table"])
    data = world.histories(40)
    for persona in (PersonaConfig(), PersonaConfig(tokens=2)):
        soft = pplug.prefixes(started(store, persona, data), data, store)
        lengths = np.linalg.norm(soft, axis=2)
        assert soft.shape == (80, 1 + persona.tokens, 32)
        np.testing.assert_allclose(lengths[:, 0], norm, rtol=1e-4)
        np.testing.assert_allclose(lengths[:, 1:].mean(), norm, rtol=1e-3)
        assert (abs(lengths / norm - 1) < 0.2).all()


@pytest.mark.slow
def test_parts_that_a_persona_does_not_need_are_not_trained(store):
    parts = {
        "history": (PersonaConfig(), {"encoder", "persona"}, 2),
        "no task": (PersonaConfig(task=False), {"encoder", "persona"}, 1),
        "mean": (PersonaConfig(mean=True), {"persona"}, 2),
        "input": (PersonaConfig(source="input"), {"encoder", "persona"}, 2),
        "none": (PersonaConfig(source="none"), {"persona"}, 1),
    }
    data = world.histories(4)
    sizes = {}
    for name, (persona, roots, soft) in parts.items():
        plug = started(None if persona.source != "history" else store, persona, data)
        assert set(plug.trained) == roots, name
        assert ("task" in plug.trained["persona"]) == persona.task
        found = pplug.prefixes(plug, data, store)
        assert found.shape == (len(data), soft, 32)
        assert np.isfinite(found).all()
        sizes[name] = sum(leaf.size for leaf in jax.tree.leaves(plug.trained))
    assert sizes["input"] == sizes["history"]
    assert sizes["none"] < sizes["mean"] < sizes["history"]


@pytest.mark.slow
def test_one_compilation_a_width_whatever_the_histories(store, monkeypatch):
    data = world.histories(30, longest=14)
    long = replace(world.TEXT, prompt_tokens=40)
    asked = tuple(
        replace(one, input="b " * (1 + 37 * (number % 2)), profile=one.profile[number % 5 :])
        for number, one in enumerate(data.samples)
    )
    data = replace(data, samples=asked)
    assert data.lengths.min() == 0
    plug = replace(started(store, data=data), text=long)
    traced, real = [], _train.answer_loss

    def counted(*args):
        traced.append(args[-2]["queries"].shape[-1])
        assert args[-2]["items"].shape[-2] == 16
        return real(*args)

    monkeypatch.setattr(_train, "answer_loss", counted)
    config = replace(world.config(copies=0), text=long)
    pplug.train(plug, data, config, store=store)
    # Once for the shapes of its sums, once for its gradient.
    assert {width: traced.count(width) for width in traced} == {32: 2, 40: 2}


@pytest.mark.slow
def test_histories_lack_items_while_training_only(store):
    data = world.histories(4, longest=9)
    plug = started(store, data=data)
    rows = np.arange(len(data))
    read = prepare_persona_inputs(plug.encoder, plug.persona, plug.text, data, store)
    asked, said = tokenize_samples(plug.model, plug.text, data, [one.input for one in data.samples])
    batch = dict(zip(("prompts", "prompt_lengths"), asked.padded(rows, 8), strict=True))
    batch |= dict(zip(("completions", "completion_lengths"), said.padded(rows, 4), strict=True))
    batch |= read.arrays(rows, 16, padded_length(read.counts))
    mesh = make_mesh(MeshConfig())
    plan, frozen = plugs.prefix_spec(plug, 0.5), FrozenParts(plug.model.params)

    @jax.jit
    def loss(key, thin):
        own = batch | {"is_copy": thin}
        return answer_loss(plan, mesh, plug.trained, frozen, own, key)["loss"]

    @jax.jit
    def whole(thin):
        own = batch | {"is_copy": thin}
        return answer_loss(plan, mesh, plug.trained, frozen, own, None)["loss"]

    none, every = np.zeros(len(rows), bool), np.ones(len(rows), bool)
    one, two = jax.random.key(0), jax.random.key(1)
    assert whole(every) == whole(none)
    np.testing.assert_allclose(loss(one, none), whole(none), rtol=1e-6)
    assert len({float(value) for value in (loss(one, every), loss(two, every), whole(none))}) == 3


def test_what_is_drawn_away():
    keys = jax.random.split(jax.random.key(0), 4000)
    drawn = jax.jit(jax.vmap(drop_items, (0, None, None)), static_argnums=2)
    places = np.random.default_rng(0).permutation(16)
    for count in (0, 1, 2, 3, 10):
        mask = np.zeros(16, bool)
        mask[places[:count]] = True
        found = np.asarray(drawn(keys, mask, 0.5))
        assert not found[:, ~mask].any()
        gone = count - found.sum(axis=1)
        if count <= 2:
            assert (gone == 0).all()
            continue
        # int(n * U(0, .5)) + 1
        expected = np.floor(count * np.linspace(0, 0.5, 10**5, endpoint=False)) + 1
        assert set(gone) == set(expected)
        np.testing.assert_allclose(gone.mean(), expected.mean(), rtol=0.03)
        shares = found[:, mask].mean(axis=0)
        np.testing.assert_allclose(shares, shares.mean(), atol=0.04)


@pytest.mark.slow
def test_bfloat16_with_recomputed_blocks_trains_nearly_the_same(store):
    data = world.histories(8)
    plug = started(store, data=data)
    loop = LoopConfig(epochs=1, batch_size=16, micro_batches=2)
    exact = pplug.train(plug, data, world.config(loop=loop), store=store, validation=data)
    rough = pplug.train(
        plug,
        data,
        world.config(loop=loop, weights="bfloat16", compute="bfloat16", remat="nothing_saveable"),
        store=store,
        validation=data,
    )
    chex.assert_tree_all_finite(rough.plug.trained)
    assert {leaf.dtype for leaf in jax.tree.leaves(rough.plug.trained)} == {jnp.dtype("float32")}
    assert rough.fit.validation["loss"] < rough.fit.validation_before["loss"]
    np.testing.assert_allclose(
        rough.fit.validation["loss"], exact.fit.validation["loss"], rtol=0.05
    )
    # Recomputing alone changes nothing but roundings.
    again = pplug.train(
        plug, data, world.config(loop=loop, remat="nothing_saveable"), store=store, validation=data
    )
    np.testing.assert_allclose(
        again.fit.validation["loss"], exact.fit.validation["loss"], rtol=1e-4
    )


def test_several_users_in_one_batch_answer_as_alone(store):
    data = world.histories(6)
    plug = started(store, data=data)
    # Items that differ more than a fresh projection sees.
    inner = plug.trained["persona"]["project"]["inner"]
    inner["kernel"] = 30 * inner["kernel"]
    assert len({one.user for one in data.samples}) == 6
    together = pplug.generate_answers(
        plug, data, SETTINGS, jax.random.key(0), store=store, progress=False
    )
    assert len(together) == len(data)
    for number in (0, 7, 11):
        one = data.take([number])
        alone = pplug.generate_answers(
            plug, one, SETTINGS, jax.random.key(0), store=store, progress=False
        )
        np.testing.assert_array_equal(alone[0].tokens, together[number].tokens)
        np.testing.assert_allclose(alone[0].logprobs, together[number].logprobs, atol=1e-4)
    # Another history, other probabilities; another question, another prompt.
    other = data.with_profiles([data.samples[-1].profile] * len(data))
    changed = pplug.generate_answers(
        plug, other, SETTINGS, jax.random.key(0), store=store, progress=False
    )
    assert abs(changed[0].logprobs[0] - together[0].logprobs[0]) > 1e-3
    asked = ["b c d e f g"] * len(data)
    longer = pplug.generate_answers(
        plug, data, SETTINGS, jax.random.key(0), store=store, questions=asked, progress=False
    )
    assert {one.prompt_tokens for one in longer} == {6}


@pytest.mark.parametrize("name", ["history", "none"])
def test_saved_and_loaded(store, tmp_path, name):
    data = world.histories(4)
    plug = started(store, PersonaConfig(source=name), data)
    path = tmp_path / "plug.safetensors"
    pplug.save(path, plug)
    found = pplug.load(path, plug.model, plug.encoder)
    same_bits(found.trained, plug.trained)
    assert (found.persona, found.text) == (plug.persona, plug.text)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(plug.trained))
    assert size < path.stat().st_size < size + 10_000


def test_files_that_cannot_be_used_are_refused(store, tmp_path):
    plug = started(store)
    path = tmp_path / "plug.safetensors"
    pplug.save(path, plug)
    other = replace(plug.model, sha256="1" * 64)
    with pytest.raises(InputError, match="with the model tiny"):
        pplug.load(path, other, plug.encoder)
    with pytest.raises(InputError, match="with the encoder"):
        pplug.load(path, plug.model, replace(plug.encoder, sha256="1" * 64))
    for persona in (replace(plug.persona, tokens=2), replace(plug.persona, mean=True)):
        pplug.save(path, replace(plug, persona=persona))
        with pytest.raises(InputError, match="has shape"):
            pplug.load(path, plug.model, plug.encoder)
    pplug.save(path, plug)
    content = path.read_bytes()
    for change, words in [
        ((b'\\"format\\": 2', b'\\"format\\": 9'), "format 9; this version reads 2"),
        ((b"cosine", b"cosinE"), "digest"),
        ((b"persona plug", b"persona PLUG"), "holds a persona PLUG"),
    ]:
        assert change[0] in content
        path.write_bytes(content.replace(*change))
        with pytest.raises(InputError, match=words) as error:
            pplug.load(path, plug.model, plug.encoder)
        assert "jaxalign pplug train" in str(error.value)
    # What an older version wrote was a folder.
    (tmp_path / "model").mkdir()
    with pytest.raises(InputError, match="jaxalign pplug train"):
        pplug.load(tmp_path / "model", plug.model, plug.encoder)


def test_data_that_cannot_be_used_are_refused(store, tmp_path):
    data = world.histories(4)
    plug = started(store, data=data)

    def refused(words, plug=plug, data=data, config=None, **more):
        with pytest.raises(InputError, match=words):
            pplug.train(plug, data, config or world.config(), **({"store": store} | more))

    mute = replace(data, samples=(replace(data.samples[0], output=None), *data.samples[1:]))
    refused("has no answer", data=mute)
    refused("found 1 prompts for 8 samples", prompts=["a"])
    refused("persona: the plug has", config=world.config(PersonaConfig(tokens=2)))
    wide = replace(world.TEXT, prompt_tokens=200)
    long = replace(data, samples=(replace(data.samples[0], input="b " * 100), *data.samples[1:]))
    refused("room for", plug=replace(plug, text=wide), data=long, config=world.config(text=wide))
    broken = jax.tree.map(lambda leaf: leaf * jnp.nan, plug.model.params)
    sick = replace(plug, model=replace(plug.model, params=broken))
    refused("is nan", plug=sick)
    refused("holds no sample", data=data.take([]))
    with pytest.raises(InputError, match="holds no sample"):
        pplug.prefixes(plug, data.take([]), store)
    with pytest.raises(InputError, match=r"batch_size: found 2\.5"):
        pplug.prefixes(plug, data, store, batch_size=2.5)
    with pytest.raises(InputError, match="no history store"):
        pplug.prefixes(plug, data)
    with pytest.raises(InputError, match="holds vectors of encoder"):
        history_store(store.folder, world.encoder(1))
    bad = ("copies", -1), ("drop", 0.0), ("remat", "everything")
    for name, value in bad:
        with pytest.raises(InputError, match=rf"{name} (is )?'?{value}"):
            PPlugConfig(**{name: value})
    with pytest.raises(InputError, match="max_items is 0"):
        TextConfig(max_items=0)
