"""The benchmark of mixed adapters: what is compared is equal, and what goes wrong is named."""

import argparse
import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

from benchmarks import adapters, harness, sizes
from benchmarks.adapters import ONE, PEFT_ONE, SINGLY, Shape

torch.set_num_threads(1)
pytestmark = [
    # Of the library peft, which asks its base for a name that is going away.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.usefixtures("quick"),
]
SHAPE = Shape(4, 2, 8, 4)
MIXED, PEFT_MIXED = SHAPE.mixed, SHAPE.peft_mixed
WORDS = ["--batch", "4", "--adapters", "2", "--prompt", "8", "--new", "4", "--rounds", "1"]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(harness, "ceilings", lambda dtype: {"copy_bytes": 1e10})
    monkeypatch.setattr(harness, "measure", functools.partial(harness.measure, seconds=0.0))
    monkeypatch.setattr(adapters, "CHECKED", SHAPE)
    monkeypatch.setitem(sizes.SIZES, "tiny", sizes.SIZES["nano"])


def run(tmp_path, *words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    adapters.add_arguments(parser)
    code = adapters.run(parser.parse_args(["--out", str(tmp_path), *WORDS, *words]))
    return code, json.loads((tmp_path / "result.json").read_text())


def answers():
    """Of all sides, equal where they should be; rows of adapter 0 are those of one adapter."""
    drawn = np.random.default_rng(0).integers(0, 256, (2, 4, 4))
    mixed, one = drawn
    one[::2] = mixed[::2]
    return {MIXED: mixed, ONE: one, SINGLY: mixed, PEFT_MIXED: mixed, PEFT_ONE: one}


@pytest.fixture
def played(monkeypatch):
    """Sides that give answers at once."""
    given = answers()

    def sides(name, size, dtype, shape, peft, failed):
        if size == "8B":
            raise RuntimeError("out of memory\nat line 3")
        facts = {"tokens": 16, "bytes": 200, "bytes_one_adapter": 100, "shape": {}}
        return facts, {side: functools.partial(given.get, side) for side in given}

    monkeypatch.setattr(adapters, "_sides", sides)
    return given


def test_both_libraries_answer_alike_and_the_result_is_whole(tmp_path, capsys):
    code, result = run(tmp_path, "--sizes", "nano")
    assert (code, result["failed"], result["dtype"]) == (0, [], "float32")
    assert "says nothing" in result["claim"]
    (row,) = result["rows"]
    assert row["name"] == "nano batch 4"
    assert row["ours"] == MIXED == "jaxalign, 2 adapters"
    assert row["seconds"].keys() == {MIXED, ONE, SINGLY, PEFT_MIXED, PEFT_ONE}
    assert set(row["agreement"]) == {SINGLY, PEFT_MIXED, PEFT_ONE}
    for shares in row["agreement"].values():
        assert shares == {"tokens": 1.0, "after_equal": 1.0}
    # Two layers: query and out 32 x 32, key and value 32 x 16, three matrices 32 x 64.
    each = 2 * 16 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    once = sizes.decode_bytes(sizes.SIZES["nano"], 4, 10, 4)
    assert row["shape"]["adapter_parameters"] == each
    assert row["bytes"] == 4 * (once + 4 * 2 * each)
    assert (row["tokens"], row["ceiling"]) == (16, "copy_bytes")
    for side, share in row["share_of_ceiling"].items():
        read = row["bytes"] - (4 * 4 * each if "1 adapter" in side else 0)
        assert share == pytest.approx(read / row["seconds"][side]["median"] / 1e10)
    first, later = (row["seconds"][MIXED][name] for name in ("first", "median"))
    assert first > 3 * later  # compilation, which was before the answers were compared
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out


def test_without_peft_ours_are_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    code, result = run(tmp_path, "--sizes", "nano")
    assert code == 0
    assert result["failed"] == [{"name": "peft", "why": "peft is not installed"}]
    assert result["rows"][0]["agreement"] == {SINGLY: {"tokens": 1.0, "after_equal": 1.0}}
    assert result["rows"][0]["seconds"].keys() == {MIXED, ONE, SINGLY}


@pytest.mark.slow
def test_in_bfloat16_float32_is_compared_first(tmp_path):
    code, result = run(tmp_path, "--sizes", "nano", "--dtype", "bfloat16")
    assert (code, result["failed"]) == (0, [])
    for shares in result["check"]["agreement"].values():
        assert shares["tokens"] == 1
    (row,) = result["rows"]
    assert row["seconds"].keys() == {MIXED, ONE, SINGLY, PEFT_MIXED, PEFT_ONE}
    # Weights that are not those of the other side would give one in 256.
    assert min(shares["after_equal"] for shares in row["agreement"].values()) > 0.5


def test_an_adapter_is_small_and_changes_something():
    from jaxalign.models import families, lora

    blank = jax.eval_shape(lambda key: families.init(key, sizes.SIZES["nano"]), jax.random.key(0))
    draw = np.random.default_rng(1).normal
    params = jax.tree.map(lambda leaf: draw(scale=0.02, size=leaf.shape).astype("f"), blank)
    settings = lora.LoraConfig(rank=adapters.RANK, alpha=2 * adapters.RANK)
    tree = adapters._adapter(settings, jax.random.key(1), params)
    expected = jax.eval_shape(lambda key: lora.init(key, settings, params), jax.random.key(1))
    assert jax.tree.map(np.shape, tree) == jax.tree.map(np.shape, expected)
    spread = adapters._spread(params)
    for part, names in (("attention", ("query", "out")), ("mlp", ("gate", "down"))):
        for name in names:
            weight = np.asarray(spread["layers"][part][name]["weight"])
            pair = {key: np.asarray(value) for key, value in tree[part][name].items()}
            inputs = np.random.default_rng(0).normal(size=(weight.shape[0], 64, weight.shape[2]))
            whole, added = np.std(inputs @ weight.mT), np.std(2 * inputs @ pair["a"] @ pair["b"])
            assert 0.8 < whole < 1.2
            assert 0.1 < added / whole < 0.5


def test_sides_that_differ_are_not_timed(tmp_path, played):
    played[PEFT_MIXED] = played[PEFT_MIXED] ^ 1
    code, result = run(tmp_path, "--sizes", "nano", "--dtype", "bfloat16")
    why = f"{PEFT_MIXED}: 0.0% of the tokens are ours, expected 99%"
    assert code == 1
    assert result["failed"] == [{"name": "check in float32", "why": why}]
    assert result["rows"] == []


def test_a_size_that_fails_is_named_and_the_others_go_on(tmp_path, played, capsys):
    code, result = run(tmp_path, "--sizes", "8B", "nano")
    assert code == 0
    assert result["failed"] == [{"name": "8B batch 4", "why": "out of memory"}]
    assert [row["name"] for row in result["rows"]] == ["nano batch 4"]
    assert "8B batch 4 failed: out of memory" in capsys.readouterr().out


def test_a_side_of_peft_that_fails_is_left_out():
    def failing():
        raise ValueError("no such argument\nat line 3")

    given, result = answers(), {"failed": []}
    sides = {MIXED: lambda: given[MIXED], PEFT_MIXED: failing}
    first, found = adapters._answers("nano", sides, result)
    assert first.keys() == found.keys() == sides.keys() == {MIXED}
    assert result["failed"] == [{"name": f"nano, {PEFT_MIXED}", "why": "no such argument"}]
    with pytest.raises(ValueError, match="no such"):
        adapters._answers("nano", {MIXED: failing}, result)


def test_answers_of_single_calls_are_put_in_order():
    given = answers()
    sides = {SINGLY: lambda: [given[MIXED][::2], given[MIXED][1::2]]}
    _, found = adapters._answers("nano", sides, {"failed": []})
    np.testing.assert_array_equal(found[SINGLY], given[MIXED])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_agreement_asks(dtype):
    right = answers()
    assert adapters._agreement(right, dtype, SHAPE)[PEFT_ONE]["tokens"] == 1
    with pytest.raises(RuntimeError, match="adapters change only"):
        adapters._agreement({**right, ONE: right[MIXED]}, dtype, SHAPE)
    with pytest.raises(RuntimeError, match="have shape"):
        adapters._agreement({**right, MIXED: right[MIXED][:, :3]}, dtype, SHAPE)
    late = right[SINGLY].copy()
    late[0, 2:] ^= 1  # 14 of 16 tokens are equal, 14 of 15 of those behind equal ones
    if dtype == "float32":
        with pytest.raises(RuntimeError, match=r"one after another: 87\.5% .* expected 100%"):
            adapters._agreement({**right, SINGLY: late}, dtype, SHAPE)
    else:
        shares = adapters._agreement({**right, SINGLY: late}, dtype, SHAPE)
        assert shares[SINGLY] == {"tokens": 14 / 16, "after_equal": 14 / 15}
    with pytest.raises(RuntimeError, match="one after another: "):
        adapters._agreement({**right, SINGLY: right[ONE]}, dtype, SHAPE)


def test_shares_of_equal_tokens():
    expected = np.zeros((3, 4), int)
    found = np.array([[0, 0, 0, 0], [0, 1, 0, 1], [1, 0, 0, 0]])
    # Behind equal tokens: 4 of 4, 1 of 2, 0 of 1.
    assert adapters.shares_of(found, expected) == {"tokens": 9 / 12, "after_equal": 5 / 7}


@pytest.mark.parametrize("words", [["--adapters", "1"], ["--adapters", "3"]])
def test_rows_that_adapters_cannot_share_are_refused(tmp_path, words):
    with pytest.raises(SystemExit, match="expected two adapters or more"):
        run(tmp_path, *words)
