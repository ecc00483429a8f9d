"""Ratings scored behind cached prompts: the whole way through the commands, and the export."""

import gzip
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_bert
import tiny_lms
import torch
import yaml
from cli_calls import call, refused, write_rows
from scipy.special import logsumexp

from jaxalign import pplug
from jaxalign.config import load_config
from jaxalign.data import lamp
from jaxalign.data.histories import load_histories
from jaxalign.errors import InputError
from jaxalign.experiments.pplug import ask
from jaxalign.experiments.pplug.config import PPlugRunConfig
from jaxalign.models import families
from jaxalign.models.sampling import Sampling
from jaxalign.pplug.store import history_store
from jaxalign.recognise import first_fields

CONFIG = {
    "data": {
        "kind": "jester", "test_share": 0.3, "validation_share": 0.2, "history": 4,
        "train_samples": 12, "validation_samples": 4,
    },
    "pplug": {
        "persona": {"mean": True, "centre": True, "place": "after"},
        "text": {
            "query_prefix": "", "labels": True, "answers": "scored", "prompt_tokens": 24,
            "template": "plain",
        },
        "copies": 0,
        "loop": {"epochs": 1, "batch_size": 4, "checkpoint_every": 1},
        "optimiser": {"rate": 1e-2},
        "weights": "float32",
        "compute": "float32",
    },
    "trainings": ["pplug", "task"],
    "evaluate": {"batch_size": 8, "draws": 20},
}  # fmt: skip
KEYS = {"accuracy", "MAE", "label loss", "f1", "RMSE", "calibration error"}
METHODS = (
    "zero-shot",
    "task token only",
    "persona",
    "persona of another",
    "persona of another, same level",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twenty people who rate all of ten jokes, a run, and its evaluation on new jokes."""
    root, rng = tmp_path_factory.mktemp("rated"), np.random.default_rng(0)
    data = root / "jester"
    data.mkdir()
    jokes = [json.dumps({"id": f"j{n}", "text": f"the {'an ' * n}thing"}) for n in range(10)]
    (data / "jokes.jsonl").write_text("\n".join(jokes))
    rows = [f"u{u},j{n},{rng.uniform(-10, 10):.2f}" for u in range(20) for n in range(10)]
    with gzip.open(data / "ratings.csv.gz", "wt") as file:
        file.write("user,joke,rating\n" + "\n".join(rows) + "\n")
    (root / "config.yaml").write_text(yaml.dump(CONFIG))
    made = SimpleNamespace(
        root=root,
        data=data,
        run=root / "run",
        judged=root / "judged",
        model=tiny_lms.write(root / "lm", "llama", num_hidden_layers=1),
        encoder=tiny_bert.write_model(root / "bert", tiny_bert.torch_bert(0)),
    )
    trained = call(
        "pplug", "train", "--config", root / "config.yaml", "--model", made.model, "--encoder",
        made.encoder, "--data", data, "--out", made.run,
    )  # fmt: skip
    assert trained.code == 0, trained.err
    made.judge = ("pplug", "evaluate", "--model", made.run, "--split", "test_new", "--methods")
    result = call(*made.judge, *METHODS, "--out", made.judged)
    assert result.code == 0, result.err
    return made


def test_labels_are_scored_and_every_metric_is_reported(world):
    report = json.loads((world.judged / "report.json").read_text())
    assert report["predictions"] == list(METHODS)
    statistics = report["statistics"]
    assert [*statistics["metrics"]] == ["accuracy", "MAE", "label loss"]
    assert statistics["baselines"] == [METHODS[1], *METHODS[3:]]
    for name, scores in statistics["scores"].items():
        assert scores.keys() == KEYS, name
        assert np.isfinite([*scores.values()]).all()
    own = json.loads((world.judged / "losses/persona-0.json").read_text())
    other = json.loads((world.judged / "losses/persona_of_another-0.json").read_text())
    np.testing.assert_allclose(logsumexp([*own.values()], axis=1), 0, atol=1e-6)
    assert np.abs(np.array([*own.values()]) - np.array([*other.values()])).max() > 1e-7
    # What a file of answers says is the median.
    answers = lamp.read_answers(world.judged / "predictions/persona-0.json")[1]
    for name, row in own.items():
        median = 1 + int((np.cumsum(np.exp(row)) >= 0.5).argmax())
        assert answers[name] == str(median)


def test_methods_are_added_and_unknown_ones_refused(world):
    refused(call(*world.judge, "luck", "--out", world.root / "x"), "names 'luck'", "persona")
    more = call(*world.judge, *METHODS, "retrieval BM25", "--out", world.judged, "--resume")
    assert more.code == 0, more.err
    report = json.loads((world.judged / "report.json").read_text())
    assert "retrieval BM25" in report["predictions"]
    nothing = call(*world.judge, "input only", "--out", world.root / "x")
    refused(nothing, "names input only, none of which can be evaluated here")
    assert not (world.root / "x").exists()


def test_an_exported_prompt_gives_the_answer_of_the_plug(world, tmp_path):
    items = [{"text": "the an thing", "rating": "4"}, {"text": "in the inn", "rating": "1"}]
    history, out = write_rows(tmp_path / "history.jsonl", items), tmp_path / "prompt.pt"
    result = call(
        "pplug", "export", "--model", world.run, "--input", "the thing", "--history", history,
        "--out", out,
    )  # fmt: skip
    assert result.code == 0, result.err
    assert first_fields(out) >= {"tensor/data.pkl", "tensor/data/0"}  # so that it is replaced
    given = torch.load(out, weights_only=True).numpy()
    opened = ask.open_plug(world.run)
    histories = ask.read_history(history, "jester", "the thing")
    with history_store(tmp_path / "store", opened.plug.encoder) as store:
        said = pplug.generate_answers(
            opened.plug, histories, Sampling(max_tokens=2, temperature=0.0), jax.random.key(0),
            store=store, progress=False,
        )  # fmt: skip
    model = opened.plug.model
    hidden, _ = families.forward(model.config, model.params, embeddings=given[None])
    assert families.logits(model.params, hidden[0, -1]).argmax() == said[0].tokens[0]
    # The last two are the task token and the persona.
    asked = pplug.format_prompts(model, opened.plug.text, [histories.samples[0].input])
    words = model.tokenizer(asked[0])["input_ids"]
    assert given.shape == (len(words) + 2, model.config.width)
    table = np.asarray(model.params["embed"]["table"])
    np.testing.assert_allclose(given[:-2], table[words], rtol=1e-6)


def test_messages_name_the_option_where_no_history_is_given():
    assert ask.read_history(None, "text", "What now?").source == "--input"


def test_choices_are_items_in_words(tmp_path):
    rows = [
        {"user": "u", "prompt": "Hi", "chosen": "Hello.", "rejected": "What?"},
        {"user": "u", "chosen": "Same.", "rejected": "Other.", "tie": True},
        {"text": "I wrote this."},
    ]
    found = ask.read_history(write_rows(tmp_path / "clicks.jsonl", rows), "text", "What now?")
    assert found.item_texts() == [
        "I chose this answer: Hello.", "I rejected this answer: What?", "I wrote this.",
    ]  # fmt: skip
    assert found.lengths.tolist() == [3]
    with pytest.raises(InputError, match="expected a task of texts alone"):
        ask.read_history(tmp_path / "clicks.jsonl", "LaMP_4", "What now?")
    requests = [{"user": "u", "input": "What now?", "history": rows}]
    read = load_histories(write_rows(tmp_path / "requests.jsonl", requests), "text")
    assert [read.item_texts()[place] for place in read.samples[0].profile] == found.item_texts()


OWN = """
data:
  kind: jsonl
  own_task:
    name: opinions
    fields: [text]
    label: verdict
    kind: choice
    labels: ["yes", "no"]
    item: '"{text}" is {verdict} '
    encode: "I {verdict} this: {text}"
    verdicts: [share, refuse]
"""


def test_a_task_of_ones_own_stands_in_the_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(OWN)
    config = load_config(PPlugRunConfig, path, [])
    task = config.data.own_task
    assert lamp.item_text(task, {"text": "a", "verdict": "no"}, labels=True) == "I refuse this: a"
    rows = [
        {"user": "u", "input": "b", "output": "yes", "history": [{"text": "a", "verdict": "no"}]}
    ]
    found = load_histories(write_rows(tmp_path / "rows.jsonl", rows), config.data.rules)
    assert found.rules == task
    assert found.item_texts(template="{verdict}: {text}") == ["refuse: a"]
    assert found.label_numbers.tolist() == [0]
    wrong = load_histories(
        write_rows(tmp_path / "wrong.jsonl", [rows[0] | {"output": "maybe"}]), config.data.rules
    )
    with pytest.raises(InputError, match="question '1' has the answer 'maybe', which is none of"):
        _ = wrong.label_numbers
    with pytest.raises(InputError, match=r"text\.item: .* holds \{author\}; expected some of"):
        found.item_texts(template="{author}")
    for old, new, words in (
        ("[share, refuse]", "[share]", "found 1 verdicts for 2 labels"),
        ("{verdict} this", "{mood} this", r"holds \{mood\}; expected some of \{text\}"),
        ("name: opinions", "name: LaMP_4", "named 'LaMP_4', which is a task already"),
        ('["yes", "no"]', '["yes"]', "found 1 labels"),
        ("kind: choice", "kind: rating", "expected ascending numbers for a rating"),
        ("kind: jsonl", "kind: lamp", "expected data.kind jsonl"),
        ("verdicts: ", "verdict: ", "key `data.own_task`: `verdict` does not exist"),
        ("[share, refuse]", "5", "key `data.own_task`: `verdicts` is 5"),
    ):
        path.write_text(OWN.replace(old, new))
        with pytest.raises(InputError, match=words):
            load_config(PPlugRunConfig, path, [])
