"""The encoder against transformers' BERT, and the refusals of its loader."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from tiny_bert import SIZES, torch_bert, torch_tensors, write_model

from jaxalign.errors import InputError
from jaxalign.models.encoder import EncoderConfig, EncoderModule, normalise, pool
from jaxalign.models.weights import encoder as weights
from jaxalign.models.weights.load import load_params
from jaxalign.models.weights.safetensors import INDEX, find_weights, open_tensors

B, T, V = 5, 12, SIZES["vocab_size"]
HF = SIZES | {"model_type": "bert", "hidden_act": "gelu", "layer_norm_eps": 1e-12}


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    lengths = np.array([12, 1, 7, 3, 10])
    mask = np.arange(T)[None, :] < lengths[:, None]
    return np.where(mask, rng.integers(5, V, (B, T)), 0), mask


def read(paths, config, dtype="float32"):
    with open_tensors(paths) as tensors:
        return load_params(tensors, weights.layout(config), dtype)


def ours(path, tokens, mask, dtype="float32", **switches):
    config = EncoderConfig.from_hf(HF, dtype)
    params = read([path], config, dtype)
    config = EncoderConfig(**{**config.__dict__, **switches})
    return jax.jit(EncoderModule(config).apply)({"params": params}, tokens, mask)


def theirs(model, tokens, mask):
    with torch.no_grad():
        return model(torch.tensor(tokens), torch.tensor(mask).long()).last_hidden_state.numpy()


def relative(found, expected, mask):
    found, expected = np.asarray(found)[mask], expected[mask]
    return np.max(np.abs(found - expected)) / np.max(np.abs(expected))


def test_float32_agrees_with_transformers(model_folder, batch):
    found = ours(model_folder / "model.safetensors", *batch)
    assert found.dtype == jnp.float32
    assert relative(found, theirs(torch_bert(), *batch), batch[1]) < 1e-4


def test_float64_agrees_with_transformers(tmp_path, batch):
    model = torch_bert().double()
    save_file(torch_tensors(model), tmp_path / "model.safetensors")
    with jax.enable_x64(True):
        found = ours(tmp_path / "model.safetensors", *batch, dtype="float64")
        assert found.dtype == jnp.float64
        assert relative(found, theirs(model, *batch), batch[1]) < 1e-10


@pytest.mark.parametrize(
    "switches", [{"unroll": True}, {"remat": "nothing_saveable"}, {"remat": "dots_saveable"}]
)
def test_switches_change_no_value(model_folder, batch, switches):
    path = model_folder / "model.safetensors"
    expected = ours(path, *batch)
    np.testing.assert_allclose(ours(path, *batch, **switches), expected, rtol=1e-5, atol=1e-5)


def test_gradients_do_not_depend_on_remat(model_folder, batch):
    config = EncoderConfig.from_hf(HF)
    params = read([model_folder / "model.safetensors"], config)

    def loss(params, remat):
        hidden = EncoderModule(EncoderConfig(**{**config.__dict__, "remat": remat})).apply(
            {"params": params}, *batch
        )
        return jnp.sum(normalise(pool(hidden, batch[1])) ** 3)

    plain, again = (jax.grad(loss)(params, remat) for remat in (None, "nothing_saveable"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), plain, again)


def test_bfloat16_stays_near(model_folder, batch):
    found = ours(model_folder / "model.safetensors", *batch, dtype="bfloat16")
    assert found.dtype == jnp.bfloat16
    expected = theirs(torch_bert(), *batch)
    assert relative(found.astype(jnp.float32), expected, batch[1]) < 0.1


def test_padding_changes_nothing(model_folder, batch):
    tokens, mask = batch
    wide = np.pad(tokens, ((0, 0), (0, 9)), constant_values=7), np.pad(mask, ((0, 0), (0, 9)))
    path = model_folder / "model.safetensors"
    found = np.asarray(ours(path, *wide))[:, :T]
    assert relative(found, np.asarray(ours(path, *batch)), mask) < 1e-5


def test_order_of_the_batch_changes_nothing(model_folder, batch):
    order = np.array([3, 0, 4, 1, 2])
    path = model_folder / "model.safetensors"
    found = ours(path, batch[0][order], batch[1][order])
    assert relative(found, np.asarray(ours(path, *batch))[order], batch[1][order]) < 1e-5


def test_fresh_parameters_have_the_layout_of_loaded_ones(model_folder, batch):
    config = EncoderConfig.from_hf(HF)
    fresh = EncoderModule(config).init(jax.random.key(0), *batch)["params"]
    loaded = read([model_folder / "model.safetensors"], config)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, loaded)


def test_a_row_without_tokens_stays_finite(model_folder, batch):
    mask = batch[1].copy()
    mask[1] = False
    hidden = ours(model_folder / "model.safetensors", batch[0], mask)
    assert np.isfinite(hidden).all()
    assert np.isfinite(normalise(pool(hidden, mask))).all()


def test_pool_takes_what_it_says():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    hidden = hidden.at[0, 2:].set(jnp.nan)
    mask = jnp.array([[1, 1, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(pool(hidden, mask, "mean")[0], hidden[0, :2].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(pool(hidden, mask, "cls"), hidden[:, 0])
    np.testing.assert_array_equal(pool(hidden, mask, "last"), hidden[np.arange(2), [1, 3]])
    with pytest.raises(InputError, match="max"):
        pool(hidden, mask, "max")  # type: ignore[arg-type]


def test_normalise_and_its_gradient_at_zero():
    vectors = jnp.array([[3.0, 4.0], [0.0, 0.0]])
    np.testing.assert_allclose(normalise(vectors), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda v: normalise(v).sum())(vectors)).all()


def test_too_many_tokens_are_refused(model_folder):
    tokens = np.ones((1, 65), np.int32)
    with pytest.raises(InputError, match=r"65 tokens.*64 positions"):
        ours(model_folder / "model.safetensors", tokens, tokens)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"model_type": None}, "model_type"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"position_embedding_type": "relative_key"}, "relative_key"),
        ({"is_decoder": True}, "is_decoder"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"num_attention_heads": 5}, "multiple"),
    ],
)
def test_other_architectures_are_refused_by_name(change, match):
    with pytest.raises(InputError, match=match):
        EncoderConfig.from_hf(HF | change)


def load(folder):
    return read(find_weights(folder), EncoderConfig.from_hf(HF))


def test_prefix_early_names_heads_and_shards_load_alike(model_folder, tmp_path):
    expected = load(model_folder)
    tensors = torch_tensors(torch_bert())
    renamed = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): value
        for name, value in tensors.items()
    }
    renamed["cls.predictions.bias"] = np.zeros(3, np.float32)
    renamed["bert.pooler.dense.bias"] = np.zeros(3, np.float32)
    renamed["bert.embeddings.position_ids"] = np.arange(64)[None]
    names = sorted(renamed)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    folder = tmp_path / "sharded"
    folder.mkdir()
    for file, part in parts.items():
        save_file({name: renamed[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / INDEX).write_text(json.dumps(index))
    jax.tree.map(np.testing.assert_array_equal, load(folder), expected)
    (folder / "b.safetensors").unlink()
    with pytest.raises(InputError, match=r"b\.safetensors is missing"):
        load(folder)


def test_wrong_tensors_are_refused_by_name(tmp_path):
    folder = write_model(tmp_path / "tiny")
    tensors = torch_tensors(torch_bert())
    name = "encoder.layer.1.attention.self.key.bias"
    cases = {
        rf"{name}' is missing": {k: v for k, v in tensors.items() if k != name},
        "'extra.weight' is not part": tensors | {"extra.weight": np.zeros(2, np.float32)},
        rf"{name}' has shape \[7\].*\[32\]": tensors | {name: np.zeros(7, np.float32)},
    }
    for match, changed in cases.items():
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(InputError, match=match):
            load(folder)


def test_broken_files_are_refused(model_folder):
    path = model_folder / "model.safetensors"
    content = path.read_bytes()
    for broken in (content[:-5], content[: len(content) // 2], b"", b"no weights"):
        path.write_bytes(broken)
        with pytest.raises(InputError, match="not a whole safetensors file"):
            load(model_folder)
    path.unlink()
    with pytest.raises(InputError, match="no safetensors file"):
        load(model_folder)
    (model_folder / INDEX).write_text("{}")
    with pytest.raises(InputError, match="weight_map"):
        load(model_folder)


def test_float64_without_64_bit_mode_is_refused(model_folder):
    with pytest.raises(InputError, match="jax_enable_x64"):
        read(find_weights(model_folder), EncoderConfig.from_hf(HF), "float64")
