import json

import ml_dtypes
import numpy as np
import pytest
import torch
from cli_calls import call, write_rows

from jaxalign import data, mrm
from jaxalign.errors import InputError


def entry(row, conversation, prompt="p", **more):
    return {
        "conversation_id": conversation,
        "prompt": prompt,
        "chosen": f"good {row}",
        "rejected": f"bad {row}",
        "chosen_idx": 2 * row,
        "rejected_idx": 2 * row + 1,
        "chosen_score": 0.5,
        "rejected_score": 0.1,
        **more,
    }


TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes?"}]
META = {
    "ann": [entry(0, "c1"), entry(1, "c1", TURNS), entry(2, "c2")],
    "bob": [entry(3, "c1", split="train")],
}


def write(folder, meta, rows=8):
    values = torch.arange(rows * 3).reshape(rows, 3).to(torch.bfloat16)
    torch.save(values, folder / "x.pt")
    (folder / "x.json").write_text(json.dumps(meta))
    return folder / "x.pt", folder / "x.json"


def refused(call, *parts):
    with pytest.raises(InputError) as caught:
        call()
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_choices_point_into_the_embeddings(tmp_path):
    table, values, extra = data.load_authors(*write(tmp_path, META))
    assert values.shape == (8, 3)
    assert values.dtype == ml_dtypes.bfloat16
    assert table.users == ("ann", "bob")
    assert table.items == tuple("01234567")
    assert table.texts[0] == "p\n\ngood 0"
    assert table.texts[3] == "hi\n\nyes?\n\nbad 1"
    np.testing.assert_array_equal(table.chosen, [0, 2, 4, 6])
    np.testing.assert_array_equal(table.rejected, [1, 3, 5, 7])
    np.testing.assert_array_equal(table.group, [0, 0, 1, 2])
    np.testing.assert_array_equal(table.prompt, [0, 1, 0, 0])
    np.testing.assert_array_equal(extra["split"], ["", "", "", "train"])
    features = data.Features(table.items, values)
    np.testing.assert_array_equal(data.lookup(features, ["6"]), values[6:7])


def test_no_split_is_none_and_conversations_may_be_numbers(tmp_path):
    table, _, extra = data.load_authors(*write(tmp_path, {"a": [entry(0, 1), entry(1, 2)]}))
    assert extra == {"split": None}
    np.testing.assert_array_equal(table.group, [0, 1])


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"chosen_idx": 8}, ("`chosen_idx` is 8", "0 to 7", "belong together")),
        ({"rejected_idx": "1"}, ("`rejected_idx` is '1'",)),
        ({"chosen_idx": 1}, ("are equal",)),
        ({"chosen_idx": 3}, ("embedding row 3 already belongs",)),
        ({"prompt": None}, ("`prompt` is missing",)),
        ({"prompt": [1]}, ("`prompt` is neither text nor",)),
        ({"chosen": 4}, ("`chosen` is 4",)),
        ({"split": 4}, ("`split` is 4",)),
    ],
)
def test_a_bad_entry_is_named(tmp_path, change, parts):
    meta = {"ann": [entry(1, "c"), {**entry(0, "c"), **change}]}
    paths = write(tmp_path, meta)
    refused(lambda: data.load_authors(*paths), "x.json, user 'ann', choice 2", *parts)


def test_bad_files(tmp_path):
    back = {
        **entry(0, "c"),
        "chosen_idx": 1,
        "rejected_idx": 0,
        "chosen": "bad 0",
        "rejected": "good 0",
    }
    paths = write(tmp_path, {"u": [entry(0, "c"), back]})
    table, _, _ = data.load_authors(*paths)
    assert len(table) == 2
    assert "1 row chooses a pair the other way than the same user did before" in table.notes[0]
    for meta, part in ((["x"], "holds a JSON list"), ({}, "no choices"), ({"u": 3}, "user 'u'")):
        paths = write(tmp_path, meta)
        refused(lambda paths=paths: data.load_authors(*paths), part)
    paths[1].write_text("{")
    refused(lambda: data.load_authors(*paths), "is not JSON")
    refused(lambda: data.load_authors(paths[0], tmp_path / "no.json"), "no such file")
    torch.save({"a": torch.zeros(2)}, paths[0])
    refused(lambda: data.load_authors(*paths), "holds dict", "one tensor [2N, E]")
    torch.save(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]), paths[0])
    refused(lambda: data.load_authors(*paths), "row 1", "NaN")


def state(bias=True):
    torch.manual_seed(0)
    layers = torch.nn.ModuleList([torch.nn.Linear(5, 4, bias), torch.nn.Linear(4, 2, bias)])
    return torch.nn.ParameterDict({"shared_weight": torch.randn(2)}), layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
def test_a_checkpoint_computes_what_torch_computes(tmp_path, bias, wrapper):
    own, layers = state(bias)
    keys = {**own.state_dict(), **{f"layers.{k}": v for k, v in layers.state_dict().items()}}
    torch.save({wrapper: keys} if wrapper else keys, tmp_path / "m.pt")
    params = data.read_authors_checkpoint(tmp_path / "m.pt")
    inputs = torch.randn(3, 5)
    value = inputs.numpy()
    for name in ("layer0", "layer1"):
        layer = params["base"][name]
        assert ("bias" in layer) == bias
        value = value @ layer["kernel"] + layer.get("bias", 0)
    with torch.no_grad():
        np.testing.assert_allclose(value, layers[1](layers[0](inputs)).numpy(), rtol=1e-5)
    np.testing.assert_array_equal(params["weight_init"], own["shared_weight"].detach().numpy())


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"head.weight": torch.zeros(2)}, ("the key `head.weight`",)),
        ({"layers.1.weight": torch.zeros(2, 3)}, ("`layers.1.weight`", "(2, 3)", "[out, 4]")),
        ({"layers.0.bias": torch.zeros(3)}, ("`layers.0.bias`", "(3,)", "(4,)")),
        ({"layers.3.weight": torch.zeros(2, 2)}, ("`layers.2.weight`", "()")),
        ({"shared_weight": torch.zeros(3)}, ("`shared_weight`", "(3,)", "(2,)")),
    ],
)
def test_a_bad_checkpoint_is_named(tmp_path, change, parts):
    _, layers = state()
    keys = {f"layers.{k}": v for k, v in layers.state_dict().items()}
    torch.save({**keys, "shared_weight": torch.zeros(2), **change}, tmp_path / "m.pt")
    refused(lambda: data.read_authors_checkpoint(tmp_path / "m.pt"), "m.pt", *parts)


def test_a_checkpoint_adapts_and_ranks_for_users(tmp_path):
    own, layers = state(bias=False)
    keys = {**own.state_dict(), **{f"layers.{k}": v for k, v in layers.state_dict().items()}}
    torch.save(keys, tmp_path / "m.pt")
    convert = call("mrm", "convert", "--checkpoint", tmp_path / "m.pt", "--out", tmp_path / "model")
    assert "2 base rewards of features that are 5 wide" in convert.out
    again = call("mrm", "convert", "--checkpoint", tmp_path / "m.pt", "--out", tmp_path / "model")
    assert "model is not empty" in again.err
    texts, values = [f"text {n}" for n in range(4)], np.eye(4, 5, dtype=np.float32)
    np.savez(tmp_path / "f.npz", features=values, ids=np.array(texts))
    rows = [{"user": "ann", "chosen": texts[0], "rejected": texts[n]} for n in (1, 2, 3)]
    data_file = write_rows(tmp_path / "choices.jsonl", rows)
    model = ("--model", tmp_path / "model", "--features", tmp_path / "f.npz")
    assert call("mrm", "adapt", *model, "--data", data_file).code == 0
    loaded = mrm.load(tmp_path / "model")
    with torch.no_grad():
        expected = layers[1](layers[0](0.01 * torch.tensor(values))).numpy()
    np.testing.assert_allclose(loaded.base(values), expected, rtol=1e-5)
    ranked = write_rows(tmp_path / "texts.jsonl", [{"text": text} for text in texts])
    found = call("mrm", "rank", *model, "--user", "ann", "--texts", ranked, "--json")
    scores = {(row := json.loads(line))["text"]: row["score"] for line in found.out.splitlines()}
    weights = loaded.users.get("ann").weights
    np.testing.assert_allclose([scores[text] for text in texts], expected @ weights, rtol=1e-4)


def test_a_file_without_a_model_is_named(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "m.pt")
    refused(lambda: data.read_authors_checkpoint(tmp_path / "m.pt"), "holds a, expected `layers.*`")
    torch.save(torch.zeros(2), tmp_path / "m.pt")
    refused(lambda: data.read_authors_checkpoint(tmp_path / "m.pt"), "holds ndarray")
