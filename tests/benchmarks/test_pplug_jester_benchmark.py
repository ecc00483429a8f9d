"""The benchmark of personas on Jester: its controls, its models, and its tables."""

import argparse
import gzip
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.special import logsumexp

from benchmarks import harness, pplug_jester
from jaxalign.data.histories import load_histories
from jaxalign.errors import InputError
from jaxalign.experiments.pplug.config import PPlugRunConfig
from jaxalign.experiments.pplug.data import PARTS, read_parts, sample_evenly

CONFIG = PPlugRunConfig()
CONFIG = replace(CONFIG, data=replace(CONFIG.data, kind="jester", history=8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Forty people with a level of their own, who rate all of twenty jokes."""
    place, rng = tmp_path_factory.mktemp("jester"), np.random.default_rng(0)
    jokes = [json.dumps({"id": f"j{n}", "text": f"Joke number {n}."}) for n in range(20)]
    (place / "jokes.jsonl").write_text("\n".join(jokes))
    levels = np.clip(rng.normal(0, 6, (40, 1)) + rng.normal(0, 1, (40, 20)), -10, 10)
    rows = [f"u{u},j{n},{levels[u, n]:.2f}" for u in range(40) for n in range(20)]
    with gzip.open(place / "ratings.csv.gz", "wt") as file:
        file.write("user,joke,rating\n" + "\n".join(rows) + "\n")
    return place


@pytest.fixture(scope="module")
def parts(folder):
    return read_parts(folder, CONFIG.data, (*PARTS, "test_new"))


def options(out, *words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default=out)
    pplug_jester.add_arguments(parser)
    return parser.parse_args(list(map(str, words)))


def test_a_control_states_the_mean_rating(folder, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(pplug_jester, "load_run", lambda path: SimpleNamespace(config=CONFIG))
    for control in ("scalar", "prompt"):
        words = ("--data", folder, "--trained", "run", "--write", control)
        assert pplug_jester.run(options(tmp_path, *words)) == 0
        read = load_histories(tmp_path / "test.jsonl", "jester")
        assert [one.id for one in read.samples] == [one.id for one in parts["test"].samples]
        level = pplug_jester.mean_rating(parts["test"], parts["test"].samples[0])
        (place,) = read.samples[0].profile
        assert read.items[place].fields["text"] == f"The mean of my ratings is {level:.1f}."
        assert (f"ratings is {level:.1f}" in read.samples[0].input) == (control == "prompt")


def test_the_ratings_stand_in_the_prompts_of_the_adapter(folder, parts, tmp_path, monkeypatch):
    words = SimpleNamespace(encode=lambda text, add_special_tokens: text.split(), decode=" ".join)
    source = SimpleNamespace(config=CONFIG, sources=SimpleNamespace(model="tiny"))
    monkeypatch.setattr(pplug_jester, "load_run", lambda path: source)
    monkeypatch.setattr(
        pplug_jester, "load_language_model", lambda name: SimpleNamespace(tokenizer=words)
    )
    given = ("--data", folder, "--write", "lora", "--lora-tokens", 200)
    with pytest.raises(InputError, match="--write lora needs --trained"):
        pplug_jester.run(options(tmp_path, *given))
    assert pplug_jester.run(options(tmp_path, *given, "--trained", "run")) == 0
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    sample = parts["train"].samples[0]
    assert (len(rows), rows[0]["completion"]) == (len(parts["train"]), sample.output)
    for place in sample.profile:
        fields = parts["train"].items[place].fields
        assert f'{fields["rating"]} is the rating of "{fields["text"]}"' in rows[0]["prompt"]
    assert rows[0]["prompt"].endswith(sample.input + "\n")


def test_models_know_levels_and_no_new_jokes(folder, parts):
    models = pplug_jester.fit_models(folder, parts["train"])
    losses = {}
    for name, predict in models.items():
        table = predict(parts["test"])
        np.testing.assert_allclose(logsumexp(table, axis=1), 0, atol=1e-6)
        losses[name] = -table[np.arange(len(table)), parts["test"].label_numbers].mean()
        assert (predict(parts["test_new"]) is None) == ("joke" in name)
    assert losses["level"] < losses["marginal"] - 0.2


def test_the_tables_have_every_method(folder, parts, tmp_path, monkeypatch):
    plugs = {("pplug", 0): None, ("pplug", 1): None, ("task", 0): None}
    run = SimpleNamespace(config=CONFIG, plugs=plugs)
    monkeypatch.setattr(pplug_jester, "load_run", lambda path: run)
    monkeypatch.setattr(harness, "started", lambda *given: {"benchmark": given[0]})
    samples = sample_evenly(parts["test"], 6, CONFIG.data.seed)
    known, rng = tmp_path / "known", np.random.default_rng(1)
    (known / "losses").mkdir(parents=True)
    for stem in ("persona", "task_token_only"):
        logits = rng.normal(size=(len(samples), 5))
        table = logits - logsumexp(logits, axis=1, keepdims=True)
        rows = {one.id: row for one, row in zip(samples.samples, table.tolist(), strict=True)}
        (known / f"losses/{stem}-0.json").write_text(json.dumps(rows))
    given = ("--data", folder, "--trained", "run")
    with pytest.raises(
        InputError, match=r"known/run\.json: no such file; .* `jaxalign pplug evaluate`"
    ):
        pplug_jester.run(options(tmp_path, *given, "--known", known))
    (known / "run.json").write_text(json.dumps({"kind": "pplug evaluate"}))
    with pytest.raises(InputError, match="an unfinished run of `pplug evaluate`"):
        pplug_jester.run(options(tmp_path, *given, "--known", known))
    (known / "report.json").write_text(json.dumps({"samples": len(samples)}))
    with pytest.raises(InputError, match="none of --known and --new"):
        pplug_jester.run(options(tmp_path, *given))
    page = tmp_path / "page.md"
    page.write_text("Before.\n<!-- jester: begin -->\n<!-- jester: end -->\n")
    words = (*given, "--known", known, "--page", page)
    assert pplug_jester.run(options(tmp_path, *words)) == 0
    lead, _, header, _, *rows = page.read_text().splitlines()[2:-1]
    steps = -(-len(parts["train"]) // CONFIG.pplug.loop.batch_size) * CONFIG.pplug.loop.epochs
    people = len(set(parts["train"].users))
    assert lead == (
        f"Trained on {len(parts['train'])} ratings of {people} people in {steps} steps: `pplug`, "
        "seeds 0, 1; `task`, seed 0."
    )
    assert header.startswith("| method | known: loss | known: above the persona (95 %) |")
    (own,) = [row for row in rows if row.startswith("| persona |")]
    assert own.split(" | ")[2] == "-"
    assert len(rows) == 6
    result = json.loads((tmp_path / "result.json").read_text())
    closed = result["known"]["gap_closed"]
    assert closed.keys() == {
        "persona", "task token only", "marginal", "joke", "level", "level and joke",
    }  # fmt: skip
    assert (closed["marginal"], closed["level and joke"]) == (0, 1)
    assert "# Jokes known" in (tmp_path / "report.md").read_text()
