"""Texts to vectors: one encoding a text, what is kept, what is compiled."""

import json
import sqlite3

import chex
import jax
import numpy as np
import pytest
import torch
from tiny_bert import torch_bert, write_model

from jaxalign import progress
from jaxalign.errors import InputError
from jaxalign.models import embed
from jaxalign.models.buckets import bucket_length, by_length
from jaxalign.models.embed import encode, encode_unkept, encode_with_stats, load_encoder

TEXTS = ["red", "green blue", "a b c d e f g h", "red", "abc " * 9, ""]


@pytest.fixture
def encoder(model_folder):
    return load_encoder(str(model_folder))


def reference(encoder, texts, pooling="mean", normalise=True):
    """transformers on torch, one text at a time."""
    model, rows = torch_bert(), []
    for text in texts:
        ids = torch.tensor([encoder.tokenizer.encode(text).ids])
        with torch.no_grad():
            hidden = model(ids).last_hidden_state[0].numpy()
        row = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling]
        rows.append(row / np.linalg.norm(row) if normalise else row)
    return np.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalise", [True, False])
def test_agrees_with_transformers(encoder, pooling, normalise):
    found = encode(encoder, TEXTS, pooling, normalise)
    assert (found.shape, found.dtype) == ((6, 32), np.float32)
    expected = reference(encoder, TEXTS, pooling, normalise)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_second_run_encodes_nothing(encoder):
    first, stats = encode_with_stats(encoder, TEXTS)
    assert (stats.encoded, stats.cached) == (5, 0)
    second, stats = encode_with_stats(encoder, TEXTS[::-1])
    assert (stats.encoded, stats.cached) == (0, 5)
    np.testing.assert_array_equal(second, first[::-1])
    _, stats = encode_with_stats(encoder, [*TEXTS, "new"])
    assert (stats.encoded, stats.cached) == (1, 5)


def test_vectors_that_the_caller_keeps(encoder, own_cache):
    found = encode_unkept(encoder, TEXTS)
    assert (found.shape, found.dtype) == ((6, 32), np.float32)
    assert not (own_cache / "embeddings").exists()
    np.testing.assert_allclose(found, encode(encoder, TEXTS), rtol=1e-5, atol=1e-6)
    assert encode_unkept(encoder, []).shape == (0, 32)
    with pytest.raises(InputError, match="one string"):
        encode_unkept(encoder, "red")


def test_what_else_a_vector_depends_on_is_part_of_its_key(encoder, tmp_path):
    encode(encoder, TEXTS)
    others = [
        (encoder, {"pooling": "cls"}),
        (encoder, {"normalise": False}),
        (encoder, {"cache_dir": tmp_path / "elsewhere"}),
        (load_encoder(str(write_model(tmp_path / "b", torch_bert(seed=1)))), {}),
        (load_encoder(str(write_model(tmp_path / "c", max_length=9))), {}),
        (load_encoder(str(write_model(tmp_path / "d")), "bfloat16"), {}),
    ]
    for other, options in others:
        assert encode_with_stats(other, TEXTS, **options)[1].cached == 0
    same = load_encoder(str(write_model(tmp_path / "e")))
    assert encode_with_stats(same, TEXTS)[1].encoded == 0


def test_interrupt_keeps_finished_batches(encoder, monkeypatch):
    texts = [" ".join("a" for _ in range(count)) for count in range(1, 40)]
    real, done = embed._forward, []

    def interrupted(*args):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(args[-1].any(axis=1).sum())
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(embed, "_forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            encode(encoder, texts, batch_tokens=256)
    finished = int(sum(done))
    assert 0 < finished < len(texts)
    vectors, stats = encode_with_stats(encoder, texts, batch_tokens=256)
    assert (stats.encoded, stats.cached) == (len(texts) - finished, finished)
    np.testing.assert_allclose(vectors, reference(encoder, texts), rtol=1e-4, atol=1e-4)


def test_one_compilation_a_bucket(encoder, monkeypatch, tmp_path):
    lengths = np.random.default_rng(0).integers(1, 60, 200)
    texts = [" ".join("abcdefghijklmnop"[i % 16] for i in range(n)) for n in lengths]
    texts = [f"{text} {'red ' * (i % 3)}" for i, text in enumerate(texts)]
    buckets = {bucket_length(n, encoder.max_length) for n in range(1, encoder.max_length + 1)}
    assert len(buckets) == 3
    counted = jax.jit(
        chex.assert_max_traces(embed.forward, n=len(buckets)), static_argnums=(0, 1, 2)
    )
    monkeypatch.setattr(embed, "_forward", counted)
    for part in (texts, texts[:50], texts[50:90]):
        cache = tmp_path / f"{len(part)}"
        encode(encoder, part, batch_tokens=512, cache_dir=cache)
    assert counted._cache_size() <= len(buckets)


def test_few_texts_have_shapes_that_fit():
    """8 answers of up to 20 tokens: 8 x 24, not the 128 x 16 or 64 x 32 of many texts."""
    lengths = [20, 9, 18, 7, 17, 12, 15, 9]
    ((rows, shape),) = by_length(lengths, 256, 2048, few=True)
    assert sorted(rows) == list(range(8))
    assert shape == (8, 24)
    ((_, shape),) = by_length(lengths, 256, 2048)
    assert shape == (64, 32)
    assert [shape for _, shape in by_length(lengths[:3], 256, 48, few=True)] == [(2, 24), (1, 16)]


@pytest.mark.parametrize("limit", [16, 48, 250, 512])
def test_buckets_fit_and_waste_little(limit):
    for length in range(1, limit + 1):
        width = bucket_length(length, limit)
        assert length <= width <= limit
        assert width - length < max(16, length / 3)
    assert len({bucket_length(n, limit) for n in range(1, limit + 1)}) <= 16


def test_batches_hold_every_text_once_at_fixed_sizes():
    lengths = np.random.default_rng(0).integers(1, 65, 333).tolist()
    batches = list(by_length(lengths, 64, 256))
    assert sorted(row for rows, _ in batches for row in rows) == list(range(333))
    assert all(len(rows) == shape[0] for rows, shape in batches[:-1])
    assert all(lengths[row] <= shape[1] for rows, shape in batches for row in rows)
    assert len({shape for _, shape in batches}) == len({shape[1] for _, shape in batches})


def test_truncation_is_counted_and_said_once(encoder, capsys):
    texts = ["red " * 100, "blue " * 90, "green"]
    vectors, stats = encode_with_stats(encoder, texts)
    said = " ".join(capsys.readouterr().err.split())
    assert stats.truncated == 2
    assert said.count("2 of 3 texts were longer than 48 tokens") == 1
    np.testing.assert_allclose(vectors, reference(encoder, texts), rtol=1e-4, atol=1e-4)
    assert encode_with_stats(encoder, texts)[1].truncated == 0
    assert capsys.readouterr().err == ""


def test_progress_shows_on_stderr_only_when_it_takes_long(encoder, capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SHOW_AFTER", 1e9)
    encode(encoder, TEXTS[:2], batch_tokens=16)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_SHOW_AFTER", -1.0)
    monkeypatch.setattr(progress, "_SAY_EVERY", -1.0)  # in lines, where there is no terminal
    encode(encoder, TEXTS[2:], batch_tokens=16)
    captured = capsys.readouterr()
    assert "encoding texts" in captured.err
    assert captured.out == ""


def test_defaults_come_from_sentence_transformers(model_folder):
    encoder = load_encoder(str(model_folder))
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == ("mean", True, 48)
    (model_folder / "sentence_bert_config.json").unlink()
    modules = [{"type": "sentence_transformers.models.Transformer", "path": ""}]
    modules += [{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]
    (model_folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(InputError, match="1_Pooling"):
        load_encoder(str(model_folder))
    (model_folder / "1_Pooling").mkdir()
    config = model_folder / "1_Pooling" / "config.json"
    config.write_text(json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": 0}))
    encoder = load_encoder(str(model_folder))
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == ("cls", False, 64)
    config.write_text(json.dumps({"pooling_mode": "last"}))
    assert load_encoder(str(model_folder)).pooling == "last"
    config.write_text(json.dumps({"pooling_mode_max_tokens": True}))
    with pytest.raises(InputError, match="pooling_mode_max_tokens"):
        load_encoder(str(model_folder))
    (model_folder / "modules.json").write_text(json.dumps([{"type": "x.Dense"}]))
    with pytest.raises(InputError, match="Dense"):
        load_encoder(str(model_folder))


def test_vocabulary_and_tokenizer_file_agree(encoder, model_folder):
    encoder.tokenizer.save(str(model_folder / "tokenizer.json"))
    again = load_encoder(str(model_folder))
    for text in TEXTS:
        assert again.tokenizer.encode(text).ids == encoder.tokenizer.encode(text).ids
    assert encoder.tokenizer.encode("Red AB?").tokens == [
        "[CLS]",
        "red",
        "a",
        "##b",
        "[UNK]",
        "[SEP]",
    ]
    assert again.identity == encoder.identity


@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("config.json", "{", "config.json: is not JSON"),
        ("config.json", "[]", "config.json: holds a JSON list"),
        ("config.json", None, "config.json: no such file"),
        ("tokenizer.json", "{}", "tokenizer.json: not a tokenizer"),
        ("vocab.txt", "a\nb\n", "vocab.txt:.*UNK"),
        ("vocab.txt", None, "no tokenizer"),
    ],
)
def test_broken_folders_are_refused(model_folder, file, content, match):
    path = model_folder / file
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=match):
        load_encoder(str(model_folder))


def test_a_tokenizer_larger_than_the_encoder_is_refused(model_folder):
    with (model_folder / "vocab.txt").open("a") as file:
        file.write("more\n")
    with pytest.raises(InputError, match="belong together"):
        load_encoder(str(model_folder))


def test_wrong_arguments_are_refused(encoder, model_folder):
    for options, match in (
        ({"texts": "red"}, "one string"),
        ({"texts": ["red", None]}, r"texts\[1\] is NoneType"),
        ({"texts": ["red", "a\ud800"]}, r"texts\[1\] is not valid Unicode"),
        ({"texts": ["red"], "pooling": "max"}, "'max'"),
        ({"texts": ["red"], "batch_tokens": 0}, "batch_tokens"),
    ):
        with pytest.raises(InputError, match=match):
            encode(encoder, **options)
    for dtype, match in (("int32", "int32"), ("none", "none"), ("float64", "jax_enable_x64")):
        with pytest.raises(InputError, match=match):
            load_encoder(str(model_folder), dtype)


def test_vectors_that_are_not_finite_are_refused_and_not_kept(tmp_path):
    model = torch_bert()
    with torch.no_grad():
        model.embeddings.LayerNorm.bias[0] = float("nan")
    encoder = load_encoder(str(write_model(tmp_path / "broken", model)))
    for _ in range(2):
        with pytest.raises(InputError, match="not finite"):
            encode(encoder, ["red"])


def test_no_texts(encoder):
    assert encode(encoder, []).shape == (0, 32)


def test_a_broken_cache_is_refused(encoder, tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "embeddings.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(InputError, match="delete it"):
        encode(encoder, ["red"], cache_dir=tmp_path / "a")
    encode(encoder, ["red"], cache_dir=tmp_path / "b")
    database = sqlite3.connect(tmp_path / "b" / "embeddings.sqlite")
    database.execute("PRAGMA user_version = 9")
    database.close()
    with pytest.raises(InputError, match="format 9"):
        encode(encoder, ["red"], cache_dir=tmp_path / "b")
    database = sqlite3.connect(tmp_path / "b" / "embeddings.sqlite")
    database.executescript("PRAGMA user_version = 1; ALTER TABLE vectors RENAME vector TO values_")
    database.close()
    with pytest.raises(InputError, match=r"cannot be used as the cache .*no such column"):
        encode(encoder, ["red"], cache_dir=tmp_path / "b")
    (tmp_path / "c").write_text("a file")
    with pytest.raises(InputError, match="cache_dir"):
        encode(encoder, ["red"], cache_dir=tmp_path / "c")


@pytest.mark.slow
def test_real_minilm_agrees_with_transformers():
    """Fetched as a user would, through resolve; 84 MB."""
    from transformers import AutoTokenizer, BertModel

    from jaxalign.models.resolve import resolve

    encoder = load_encoder("all-MiniLM-L6-v2")
    assert encoder.sha256.startswith("53aa5117")
    assert (encoder.pooling, encoder.normalise, encoder.max_length) == ("mean", True, 256)
    texts = ["A small red boat.", "Ein Schiff?", "Naïve café, 3 < 4!", "word " * 400, "", "船"]
    found = encode(encoder, texts)
    folder = resolve("all-MiniLM-L6-v2").folder
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder)
    options = {"padding": True, "truncation": True, "max_length": 256, "return_tensors": "pt"}
    inputs = tokenizer(texts, **options)
    with torch.no_grad():
        hidden = model.eval()(**inputs).last_hidden_state
    kept = inputs["attention_mask"][..., None]
    mean = (hidden * kept).sum(1) / kept.sum(1)
    expected = torch.nn.functional.normalize(mean, dim=-1).numpy()
    np.testing.assert_allclose(found, expected, atol=2e-6)
    near, far = (
        encode(encoder, ["a boat", "a ship", "tax law"])[[1, 2]] @ encode(encoder, ["a boat"]).T
    )
    assert near > far + 0.2
