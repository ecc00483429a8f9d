"""Sequence classifiers of every family against transformers on torch."""

import json
import shutil
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_lms
import torch
import transformers
from chex import assert_max_traces, assert_trees_all_close, clear_trace_counter
from safetensors.numpy import load_file, save_file
from tiny_bert import WORDS

from jaxalign.errors import InputError
from jaxalign.models import classifier as module
from jaxalign.models.classifier import classify, forward, load_classifier, read_config
from jaxalign.models.encoder import EncoderConfig, EncoderModule, embed
from jaxalign.models.weights import distilbert
from jaxalign.models.weights.classifier import layout
from jaxalign.models.weights.load import load_params
from jaxalign.models.weights.safetensors import find_weights, open_tensors
from jaxalign.models.weights.save import save_params

B, T = 4, 9
LENGTHS = np.array([9, 1, 6, 3], np.int32)
REAL = np.arange(T)[None, :] < LENGTHS[:, None]
# Token 1 is padding: of a row's own tokens, none.
TOKENS = np.where(REAL, np.random.default_rng(0).integers(2, 40, (B, T)), 1).astype(np.int32)
DECODERS = ("llama", "mistral", "qwen2", "qwen3", "gpt2")
ENCODERS = ("bert", "distilbert")
TEXTS = ["the end", "thing", "an other thing and the rest of it", "t", "nothing in the hat"]
PAIRS = [("a b", "c"), ("red green", "blue . blue"), ("p", "o n m l k j i h g f e d c b a")]

run = jax.jit(forward, static_argnums=0)


def torch_model(name, labels=3):
    """A random classifier of transformers, every parameter moved, so that each one counts."""
    if name in DECODERS:
        return tiny_lms.hf_model(name, labels=labels, num_hidden_layers=2)
    torch.manual_seed(0)
    sizes = {"vocab_size": len(WORDS), "max_position_embeddings": 32, "num_labels": labels}
    if name == "bert":
        sizes |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.BertConfig(**sizes, intermediate_size=48)
        kind = transformers.BertForSequenceClassification
    else:
        config = transformers.DistilBertConfig(
            **sizes, dim=32, n_layers=2, n_heads=4, hidden_dim=48
        )
        kind = transformers.DistilBertForSequenceClassification
    config._attn_implementation = "eager"
    model = kind(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def write(folder, name, labels=3):
    model = torch_model(name, labels)
    model.save_pretrained(folder)
    if name in DECODERS:
        tiny_lms.tokenizer().save_pretrained(folder)
    else:
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Written once a name."""
    made = {}

    def get(name):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = folder, write(folder, name)
        return made[name]

    return get


def load(folder, dtype="float32"):
    config, labels = read_config(json.loads((folder / "config.json").read_text()), dtype)
    with open_tensors(find_weights(folder)) as tensors:
        return config, load_params(tensors, layout(config, len(labels)), dtype)


def theirs(model, tokens, mask=REAL, **more):
    inputs = {name: torch.tensor(value).long() for name, value in more.items()}
    with torch.no_grad(), tiny_lms.in_double():
        ids, mask = torch.tensor(tokens).long(), torch.tensor(mask).long()
        return model(input_ids=ids, attention_mask=mask, **inputs).logits.numpy()


def relative(found, expected):
    found = np.asarray(found)
    assert found.shape == expected.shape
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


@pytest.mark.parametrize("name", DECODERS + ENCODERS)
def test_float32_logits_agree_with_transformers(folders, name):
    folder, model = folders(name)
    config, params = load(folder)
    found = run(config, params, TOKENS, LENGTHS)
    assert found.dtype == jnp.float32
    assert relative(found, theirs(model, TOKENS)) < 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen3", "gpt2", "bert", "distilbert"])
def test_float64_logits_agree_with_transformers(tmp_path, name, x64):
    model = tiny_lms.double(torch_model(name))
    model.save_pretrained(tmp_path)
    config, params = load(tmp_path, "float64")
    found = run(config, params, TOKENS, LENGTHS)
    assert found.dtype == jnp.float64
    assert relative(found, theirs(model, TOKENS)) < 1e-10


def test_token_types_agree_with_transformers(folders):
    folder, model = folders("bert")
    config, params = load(folder)
    types = (np.arange(T)[None, :] >= LENGTHS[:, None] // 2).astype(np.int32)
    found = run(config, params, TOKENS, LENGTHS, types)
    assert relative(found, theirs(model, TOKENS, token_type_ids=types)) < 1e-4
    assert relative(found, theirs(model, TOKENS)) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", *ENCODERS])
def test_embeddings_stand_in_for_tokens(folders, name):
    folder, model = folders(name)
    config, params = load(folder)
    soft = np.random.default_rng(1).normal(size=(1, T, config.width)).astype(np.float32)
    lengths = np.array([T], np.int32)
    found = run(config, params, None, lengths, embeddings=soft)
    with torch.no_grad():  # one row: transformers sees no padding in embeddings
        expected = model(inputs_embeds=torch.tensor(soft)).logits.numpy()
    assert relative(found, expected) < 1e-4
    if name in ENCODERS:
        rows = embed(params, TOKENS)
        alike = run(config, params, None, LENGTHS, embeddings=rows)
        np.testing.assert_array_equal(alike, run(config, params, TOKENS, LENGTHS))


@pytest.mark.parametrize("name", ["gpt2", "distilbert"])
def test_gradients_do_not_depend_on_remat(folders, name):
    config, params = load(folders(name)[0])

    def loss(params, remat):
        changed = replace(config, remat=remat)
        return jnp.sum(forward(changed, params, TOKENS, LENGTHS) ** 2)

    expected, found = (
        jax.jit(jax.grad(loss), static_argnums=1)(params, remat)
        for remat in (None, "nothing_saveable")
    )
    scale = max(float(np.max(np.abs(leaf))) for leaf in jax.tree.leaves(expected))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(expected["head"]))
    assert_trees_all_close(found, expected, rtol=1e-3, atol=1e-6 * scale)


@pytest.mark.parametrize("name", ["llama", "gpt2", *ENCODERS])
def test_the_way_back_to_transformers_is_bit_identical(folders, tmp_path, name):
    folder, model = folders(name)
    config, params = load(folder)
    save_params(tmp_path / "ours", params, layout(config, 3))
    shutil.copy(folder / "config.json", tmp_path / "ours")
    files = (load_file(where / "model.safetensors") for where in (folder, tmp_path / "ours"))
    expected, found = files
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)
    again = type(model).from_pretrained(tmp_path / "ours", attn_implementation="eager").eval()
    np.testing.assert_array_equal(theirs(again, TOKENS), theirs(model, TOKENS))


def test_a_distilbert_without_a_head(tmp_path):
    """From a file of the bare model, and from one of a classifier."""
    model = torch_model("distilbert")
    settings = model.config.to_dict()
    config = EncoderConfig.from_hf(settings)
    states = []
    for part in (model.distilbert, model):
        part.save_pretrained(tmp_path)
        with open_tensors(find_weights(tmp_path)) as tensors:
            params = load_params(tensors, distilbert.layout(config))
        fresh = jax.eval_shape(EncoderModule(config).init, jax.random.key(0), TOKENS, REAL)[
            "params"
        ]
        assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
        states.append(jax.jit(EncoderModule(config).apply)({"params": params}, TOKENS, REAL))
    with torch.no_grad():
        mask = torch.tensor(REAL).long()
        expected = model.distilbert(torch.tensor(TOKENS).long(), mask).last_hidden_state.numpy()
    assert relative(states[0][REAL], expected[REAL]) < 1e-4
    np.testing.assert_array_equal(*states)


@pytest.mark.parametrize("name", ["llama", *ENCODERS])
def test_texts_are_classified_as_transformers_does(folders, name):
    folder, model = folders(name)
    classifier = load_classifier(str(folder))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    expected = []
    for text in TEXTS:
        ids = np.array([tokenizer(text)["input_ids"]])
        expected.append(theirs(model, ids, np.ones_like(ids))[0])
    found = classify(classifier, TEXTS)
    assert found.dtype == np.float32
    assert relative(found, np.stack(expected)) < 1e-4
    np.testing.assert_allclose(classify(classifier, TEXTS[::-1], 64)[::-1], found, atol=1e-5)
    assert classify(classifier, []).shape == (0, 3)


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_pairs_are_joined_as_the_tokenizer_does(folders, name, tmp_path):
    folder, model = folders(name)
    shutil.copytree(folder, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    classifier = load_classifier(str(tmp_path / "plain"))
    assert not classifier.tokenizer.chat_template
    expected = []
    for prompt, answer in PAIRS:
        inputs = classifier.tokenizer(prompt, answer)
        types = {k: [inputs[k]] for k in ("token_type_ids",) if name == "bert"}
        ids = np.array([inputs["input_ids"]])
        expected.append(theirs(model, ids, np.ones_like(ids), **types)[0])
    assert relative(classify(classifier, PAIRS), np.stack(expected)) < 1e-4


def test_pairs_are_a_conversation_where_there_is_a_template(folders):
    folder, model = folders("llama")
    classifier = load_classifier(str(folder))
    expected = []
    for prompt, answer in PAIRS:
        text = f"<|user|>{prompt}<|end|><|assistant|>{answer}<|end|>"
        ids = np.array([classifier.tokenizer(text)["input_ids"]])
        expected.append(theirs(model, ids, np.ones_like(ids))[0])
    assert relative(classify(classifier, PAIRS), np.stack(expected)) < 1e-4


def test_the_padding_token_ends_no_text(folders):
    """transformers reads the last token that is not padding, even where padding was typed."""
    folder, model = folders("llama")
    classifier = load_classifier(str(folder))
    found = classify(classifier, ["the end<|pad|><|pad|>", "the end"])
    np.testing.assert_array_equal(found[0], found[1])
    ids = np.array([classifier.tokenizer("the end<|pad|><|pad|>")["input_ids"]])
    assert relative(found[:1], theirs(model, ids, np.ones_like(ids))) < 1e-4


def test_one_compilation_a_bucket(folders, monkeypatch):
    classifier = load_classifier(str(folders("distilbert")[0]))
    clear_trace_counter()
    counted = jax.jit(assert_max_traces(forward, n=2), static_argnums=0)
    monkeypatch.setattr(module, "_forward", counted)
    for count in (1, 5, 14, 15, 25, 3):  # with [CLS] and [SEP], 16 and 32 columns
        classify(classifier, ["a " * count] * 4)


def test_long_texts_are_cut_and_it_is_said(folders, capsys):
    classifier = load_classifier(str(folders("distilbert")[0]))
    assert classifier.max_length == 32
    found = classify(classifier, ["a " * 100, "a " * 30, "b"])
    assert "1 of 3 texts were longer than 32 tokens" in capsys.readouterr().err.replace("\n", " ")
    np.testing.assert_allclose(found[0], found[1], atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "match"),
    [
        ("text", "one string"),
        (["a", 3], r"texts\[1\] is 3; expected a string"),
        (["a", ("a", "b")], r"texts\[1\].*expected a string"),
        ([("a", "b"), "ab"], r"texts\[1\].*expected a pair"),
        ([("a", "b", "c")], r"texts\[0\].*expected a pair"),
        (["a", ""], r"texts\[1\] has no tokens"),
    ],
)
def test_wrong_texts_are_refused(folders, texts, match):
    with pytest.raises(InputError, match=match):
        classify(load_classifier(str(folders("llama")[0])), texts)


def of_fewer_tokens(classifier, count):
    config = replace(classifier.config, vocab_size=count)
    embed = {"table": classifier.params["embed"]["table"][:count]}
    return replace(classifier, config=config, params=classifier.params | {"embed": embed})


def test_a_token_that_the_model_lacks_is_refused(folders):
    classifier = load_classifier(str(folders("llama")[0]))
    few = of_fewer_tokens(classifier, 3)
    with pytest.raises(InputError, match=r"texts\[0\] has token \d+, but .* only 3: check"):
        classify(few, ["the"])


def test_wrong_folders_are_refused(folders, tmp_path):
    folder = shutil.copytree(folders("llama")[0], tmp_path / "copy")
    settings = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")

    def refused(match, changed=settings, held=tensors):
        (folder / "config.json").write_text(json.dumps(changed))
        save_file(held, folder / "model.safetensors")
        with pytest.raises(InputError, match=match):
            load_classifier(str(folder))

    refused(
        "architectures names 'LlamaForCausalLM'", settings | {"architectures": ["LlamaForCausalLM"]}
    )
    refused("model_type is 'opt'", settings | {"model_type": "opt"})
    refused("id2label", settings | {"id2label": {"1": "a"}})
    refused(r"'score.weight' has shape \[3, 32\].*\[1, 32\]", settings | {"id2label": {"0": "a"}})
    refused(
        "'score.weight' is missing", held={k: v for k, v in tensors.items() if k != "score.weight"}
    )
    (folder / "tokenizer.json").write_text("{}")
    refused("tokenizer cannot be read")


def test_tokens_and_logits_are_checked(folders):
    classifier = load_classifier(str(folders("llama")[0]))
    small = of_fewer_tokens(classifier, 20)
    with pytest.raises(InputError, match="only 20"):
        classify(small, ["the end"])
    head = {"kernel": classifier.params["head"]["kernel"] * jnp.nan}
    broken = replace(classifier, params=classifier.params | {"head": head})
    with pytest.raises(InputError, match="not finite"):
        classify(broken, ["the end"])


def test_labels_are_named(folders):
    settings = json.loads((folders("llama")[0] / "config.json").read_text())
    assert read_config(settings)[1] == ("LABEL_0", "LABEL_1", "LABEL_2")
    del settings["id2label"]
    assert read_config(settings)[1] == ("LABEL_0", "LABEL_1")
    assert read_config(settings | {"id2label": {"1": "no", "0": "yes"}})[1] == ("yes", "no")
