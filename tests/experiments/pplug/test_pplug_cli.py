"""`jaxalign pplug train`, `evaluate` and `generate`: the whole way, and refusals."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import tiny_bert
import tiny_lms
import torch
import yaml
from cli_calls import call, digest, refused, write_rows

from jaxalign import pplug
from jaxalign.data import lamp
from jaxalign.data.histories import Histories, load_histories
from jaxalign.errors import InputError
from jaxalign.experiments import generate
from jaxalign.experiments.pplug import ask
from jaxalign.experiments.pplug import data as sources
from jaxalign.experiments.pplug.baselines import BASELINES, METHODS, TRAININGS
from jaxalign.experiments.pplug.data import HistoryDataConfig
from jaxalign.experiments.pplug.losses import ScoredSamples, answer_losses
from jaxalign.experiments.pplug.run_folder import load_run
from jaxalign.metrics import text
from jaxalign.models.language import load_language_model
from jaxalign.models.sampling import Sampling
from jaxalign.pplug.store import HistoryStore, history_store

CONFIG = {
    "data": {
        "kind": "jsonl",
        "test_share": 0.34,
        "validation_share": 0.25,
        "train_samples": 7,
        "validation_samples": 0,
    },
    "pplug": {
        "text": {"query_prefix": "", "prompt_tokens": 40, "answer_tokens": 6, "template": "plain"},
        "copies": 1,
        "loop": {"epochs": 2, "batch_size": 4, "checkpoint_every": 1},
        "optimiser": {"rate": 1e-2},
        "weights": "float32",
        "compute": "float32",
    },
    "retrieval": {"count": 2},
    "evaluate": {"batch_size": 8, "draws": 20},
}
SIZES = {"num_hidden_layers": 1}
WORDS = ("the", "thing", "in", "an", "inn", "than", "then", "thin", "ant", "hen", "tin", "net")
ASKED = "a b c d e f g h i j k l m n o p "


def people(users=12, questions=2):
    """Rows of users who write one word each, some of whom have written nothing yet."""
    rows = []
    for user in range(users):
        items = [
            {"text": f"{WORDS[user]} {letter}", "category": f"c{user % 2}", "date": f"20{10 + n}"}
            for n, letter in enumerate("abcd"[: user % 5])
        ]
        rows += [
            {
                "id": f"{user}/{number}", "user": f"u{user}", "input": ASKED + "ab"[number],
                "output": WORDS[user], "history": items,
            }
            for number in range(questions)
        ]  # fmt: skip
    return rows


def train(world, out, *more, data=None):
    return call(
        "pplug", "train", "--config", world.root / "config.yaml", "--model", world.model,
        "--encoder", world.encoder, "--data", data or world.data, "--out", out, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Tiny models on disk, a history file, a config, and a run with its evaluation."""
    root = tmp_path_factory.mktemp("pplug")
    (root / "config.yaml").write_text(yaml.dump(CONFIG))
    made = SimpleNamespace(
        root=root,
        model=tiny_lms.write(root / "lm", "llama", **SIZES),
        encoder=tiny_bert.write_model(root / "bert", tiny_bert.torch_bert(0)),
        data=write_rows(root / "people.jsonl", people()),
        run=root / "run",
        judged=root / "judged",
    )
    made.trained = train(made, made.run)
    assert made.trained.code == 0, made.trained.err
    made.judge = ("pplug", "evaluate", "--model", made.run, "--out", made.judged)
    made.said = call(*made.judge)
    assert made.said.code == 0, made.said.err
    return made


def asked_of(world):
    return sources.read_parts(world.data, load_run(world.run).config.data, ("test",))["test"]


def test_train_leaves_a_plug_and_a_report(world):
    report = json.loads((world.run / "report.json").read_text())
    assert (report["samples"], report["validation_samples"]) == (7, 0)
    ((name, one),) = report["trainings"].items()
    assert name == "pplug-0"
    assert one["steps"] > 2
    assert one["validation"] == {}
    assert "pplug-0" in world.trained.out
    place = world.run / "plugs/pplug-0"
    names = {path.name for path in place.iterdir()}
    assert names == {
        "plug.safetensors",
        "metrics.jsonl",
        "report.json",
        "state",
    }
    plug = pplug.load(place / "plug.safetensors")
    assert sum(leaf.size for leaf in jax.tree.leaves(plug.trained)) == one["parameters"]
    with history_store(world.run / "history", plug.encoder) as store:
        assert len(store) > 0


def test_evaluate_judges_what_is_trained_and_writes_predictions(world):
    asked = asked_of(world)
    report = json.loads((world.judged / "report.json").read_text())
    statistics = report["statistics"]
    wanted = {name for name, method in METHODS.items() if method.training in (None, "pplug")}
    assert statistics["scores"].keys() == wanted
    others = ["persona of another", "persona of another, same category"]
    assert statistics["baselines"] == ["zero-shot", *others]
    for name in ("task token only", "persona, mean", "retrieval BM25 + persona"):
        assert any(note.startswith(f"{name}: left out") for note in report["notes"])
    # What the data can show is said after the first method and before the second.
    said = world.said.err.replace("\n", " ")
    assert said.index("is expected to show") < said.index("2 of 7")
    for name, scores in statistics["scores"].items():
        path = world.judged / f"predictions/{re.sub('[ ,-]+', '_', name)}-0.json"
        task, answers = lamp.read_answers(path)
        assert task == "text"
        assert list(answers) == [one.id for one in asked.samples]
        own = text.score(task, list(answers.values()), asked.outputs)
        assert {key: scores[key] for key in own} == pytest.approx(own)
        assert name in (world.judged / "report.md").read_text()
    assert [*statistics["metrics"]] == ["rouge-1", "rouge-L", "loss"]
    assert "Nats per token" in (world.judged / "report.md").read_text()
    # Histories count: another's make another loss, and only where there is one.
    losses = [
        json.loads((world.judged / f"losses/{name}-0.json").read_text())
        for name in ("persona", "persona_of_another")
    ]
    same = {key for key, loss in losses[0].items() if losses[1][key] == loss}
    empty = {one.id for one in asked.samples if not one.profile}
    assert empty
    assert same == empty


def test_losses_are_those_of_torch(world):
    asked = asked_of(world)
    found = json.loads((world.judged / "losses/zero_shot-0.json").read_text())
    tokenizer, theirs = tiny_lms.tokenizer(), tiny_lms.hf_model("llama", **SIZES)
    for one in asked.samples:
        question = tokenizer(one.input + "\n")["input_ids"]
        answer = [*tokenizer(one.output)["input_ids"], tokenizer.eos_token_id][:6]
        logits = theirs(torch.tensor([question + answer])).logits[0, len(question) - 1 : -1]
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).item()
        assert found[one.id] == pytest.approx(loss, rel=1e-4)


def test_a_question_without_room_for_its_answer_is_refused(world):
    model, sample = load_language_model(str(world.model)), asked_of(world).samples[0]
    long = replace(sample, input="b " * model.config.positions)
    data = Histories((long,), asked_of(world).items, "text")
    text = pplug.TextConfig(prompt_tokens=10**6, template="plain")
    with pytest.raises(InputError, match=rf"question '{sample.id}' has \d+ tokens as a prompt"):
        answer_losses(ScoredSamples(model, text, data, [long.input], progress=False))


def test_an_evaluation_goes_on_with_the_answers_that_are_there(world, tmp_path):
    out = tmp_path / "judged"
    shutil.copytree(world.judged, out)
    judge = (*world.judge[:-1], out)
    refused(call(*judge), "a finished run", "--resume")
    (out / "predictions/persona-0.json").unlink()
    (out / "report.json").unlink()
    kept = out / "predictions/zero_shot-0.json"
    lamp.write_answers(kept, "text", dict.fromkeys(lamp.read_answers(kept)[1], "the"))
    result = call(*judge, "--resume")
    assert result.code == 0, result.err
    for name in ("predictions/persona-0.json", "losses/persona-0.json"):
        assert (out / name).read_bytes() == (world.judged / name).read_bytes()
    statistics = json.loads((out / "report.json").read_text())["statistics"]
    assert statistics["scores"]["zero-shot"]["rouge-1"] == asked_of(world).outputs.count("the") / 8
    refused(call(*judge, "--resume", "--evaluate.samples", 4), "another run")
    refused(call(*judge, "--resume", "--pplug.copies", 3), "--evaluate.samples")


class Stopping(HistoryStore):
    """A Ctrl-C at one of the batches."""

    left = 4

    def read(self, rows):
        Stopping.left -= 1
        if not Stopping.left:
            raise KeyboardInterrupt
        return super().read(rows)


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_plug(world, tmp_path, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr("jaxalign.pplug.store.HistoryStore", Stopping)
        stopped = train(world, out)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    assert not (out / "plugs/pplug-0/plug.safetensors").exists()
    refused(call("pplug", "evaluate", "--model", out, "--out", tmp_path / "judged"), "no trained")
    refused(train(world, out), "an unfinished run", "--resume")
    refused(train(world, out, "--resume", "--pplug.copies", 2), "another run")
    result = train(world, out, "--resume")
    assert result.code == 0, result.err
    assert "resumed at step" in result.err
    path = "plugs/pplug-0/plug.safetensors"
    assert (out / path).read_bytes() == (world.run / path).read_bytes()


def test_a_run_is_made_longer_from_its_last_state(world, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(world.run, out)
    before = json.loads((out / "report.json").read_text())["trainings"]["pplug-0"]
    result = train(world, out, "--resume", "--pplug.loop.epochs", 3)
    assert result.code == 0, result.err
    assert "pplug.loop.epochs was 2, now it is 3" in result.err
    assert "of a run of this length from the start" in " ".join(result.err.split())
    assert f"resumed at step {before['steps']} of" in result.err
    after = json.loads((out / "report.json").read_text())["trainings"]["pplug-0"]
    assert after["steps"] == before["steps"] * 3 // 2
    refused(train(world, out, "--resume"), "epochs was 3, now it is 2; a run can only be made")
    judge = ("pplug", "evaluate", "--model", out, "--out", tmp_path / "judged", "--resume")
    shutil.copytree(world.judged, tmp_path / "judged")
    refused(call(*judge), "another run (not the same run as before")


def test_a_report_keeps_the_trainings_that_are_there(world, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(world.run, out)
    shutil.copytree(out / "plugs/pplug-0", out / "plugs/task-0")
    path = out / "plugs/task-0/report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": "task"}))
    result = train(world, out, "--resume")
    assert result.code == 0, result.err
    found = json.loads((out / "report.json").read_text())["trainings"]
    assert {name: one["training"] for name, one in found.items()} == {
        "pplug-0": "pplug", "task-0": "task"
    }  # fmt: skip


@pytest.mark.slow
def test_baselines_are_added_to_a_run_and_judged(world, tmp_path):
    run, out, store = tmp_path / "run", tmp_path / "judged", tmp_path / "store"
    small = (
        "--data.validation_samples", 4, "--store", store, "--seeds", 0, 1, "--baseline_seeds", 0,
    )  # fmt: skip
    assert train(world, run, *small).code == 0
    before = digest(run / "plugs")
    result = train(world, run, *small, "--baselines", "--resume")
    assert result.code == 0, result.err
    names = {path.name for path in (run / "plugs").iterdir()}
    assert names == {"pplug-1", *(f"{name}-0" for name in TRAININGS)}
    trained = json.loads((run / "report.json").read_text())["trainings"]
    assert trained.keys() == names
    for name, one in trained.items():
        assert np.isfinite([one["validation"]["loss"], one["validation_before"]["loss"]]).all(), (
            name
        )
    assert trained["input-0"]["parameters"] == trained["pplug-0"]["parameters"]
    for path in set(TRAININGS) - {"pplug"}:
        shutil.copytree(run / f"plugs/{path}-0", tmp_path / path)
        shutil.rmtree(run / f"plugs/{path}-0")
    assert digest(run / "plugs") == before
    for path in set(TRAININGS) - {"pplug"}:
        shutil.move(tmp_path / path, run / f"plugs/{path}-0")
    result = call("pplug", "evaluate", "--model", run, "--out", out, "--split", "test")
    assert result.code == 0, result.err
    report = json.loads((out / "report.json").read_text())["statistics"]
    assert [*report["scores"]] == [*METHODS]
    assert report["baselines"] == list(BASELINES)
    seeds = {name: one["seeds"] for name, one in report["metrics"]["loss"]["methods"].items()}
    assert {name for name, count in seeds.items() if count == 2} == {
        name for name, method in METHODS.items() if method.training == "pplug"
    }
    assert not (run / "history").exists()  # the store is shared


def test_generate_answers_with_the_history_that_is_given(world, tmp_path):
    rows = people()
    path = write_rows(tmp_path / "requests.jsonl", rows[:8])
    out = tmp_path / "answers.jsonl"
    result = call("pplug", "generate", "--model", world.run, "--requests", path, "--out", out)
    assert result.code == 0, result.err
    found = [json.loads(line) for line in out.read_text().splitlines()]
    plug = pplug.load(world.run / "plugs/pplug-0/plug.safetensors")
    with history_store(tmp_path / "store", plug.encoder) as store:
        expected = pplug.generate_answers(
            plug, load_histories(path), Sampling(6, temperature=0.0), jax.random.key(0),
            store=store, progress=False,
        )  # fmt: skip
    assert [one["completion"] for one in found] == [one.text for one in expected]
    assert [(one["id"], one["user"]) for one in found] == [(r["id"], r["user"]) for r in rows[:8]]
    for row, said in ((rows[6], expected[6]), (rows[0], expected[0])):
        history = write_rows(tmp_path / "history.jsonl", reversed(row["history"]))
        where = ("--model", world.run / "plugs/pplug-0", "--history", history)
        result = call("pplug", "generate", *where, "--input", row["input"])
        assert result.code == 0, result.err
        assert result.out == said.text + "\n"
    assert rows[0]["history"] == []  # the second was a new user


def test_generate_goes_on_after_a_stop_and_refuses_before_the_work(world, tmp_path, monkeypatch):
    path = write_rows(tmp_path / "requests.jsonl", people()[:9])
    command = ("pplug", "generate", "--model", world.run, "--requests", path, "--batch-size", 1)
    out, whole = tmp_path / "answers.jsonl", tmp_path / "whole.jsonl"
    sampled = ("--temperature", 1, "--samples", 2)
    result = call(*command, *sampled, "--out", whole)
    assert result.code == 0, result.err
    assert "18 answers" in result.err
    assert "tokens/s" in result.err
    usual = generate.complete_tokens

    def some(*arguments, **more):
        for number, batch in enumerate(usual(*arguments, **more)):
            if number == 1 and out.with_name(f".{out.name}.run").joinpath("rows.jsonl").exists():
                raise KeyboardInterrupt
            yield batch

    monkeypatch.setattr(generate, "complete_tokens", some)
    assert call(*command, *sampled, "--out", out).code == 130
    monkeypatch.setattr(generate, "complete_tokens", usual)
    resumed = ("--out", out, "--resume")
    refused(call(*command, *sampled, "--seed", 1, *resumed), "seed was 0, now it is 1")
    result = call(*command, *sampled, *resumed)
    assert result.code == 0, result.err
    assert out.read_bytes() == whole.read_bytes()
    monkeypatch.setattr(ask, "prefixes", None)
    long = call(*command, "--max-tokens", 500)
    refused(long, "requests.jsonl, question", "tokens, and 50", "context")


def test_generate_refuses(world, tmp_path):
    generate = ("pplug", "generate", "--model", world.run)
    refused(call(*generate), "--input")
    refused(call(*generate, "--requests", world.data, "--history", world.data), "--requests")
    refused(call(*generate, "--input", "a", "--history", tmp_path / "no"), "does not exist")
    history = write_rows(tmp_path / "h.jsonl", [{"text": "a", "date": "2010"}, {"title": "b"}])
    refused(call(*generate, "--input", "a", "--history", history), f"{history}, line 2", "`text`")
    write_rows(history, [{"text": "a", "date": "2010"}, {"text": "b"}])
    refused(call(*generate, "--input", "a", "--history", history), "line 2", "`date`")
    write_rows(history, [{"text": "a", "date": "soon"}])
    refused(call(*generate, "--input", "a", "--history", history), "line 1", "soon")
    refused(call(*generate, "--input", "a", "--batch-size", 0), "--batch-size")
    refused(
        call(*generate[:2], "--model", world.model, "--input", "a"),
        "no such file",
        "jaxalign pplug train",
    )


def test_data_that_cannot_be_used_are_refused_and_nothing_is_written(world, tmp_path):
    out = tmp_path / "out"
    good = {"text": "a", "date": "2010"}
    cases = [
        ({"history": [{"title": "a"}]}, ("line 1, history[0]", "`text`")),
        ({"history": [good, {"text": "b", "date": "soon"}]}, ("history", "soon")),
        ({"history": [good, {"text": "b"}]}, ("no `date`",)),
        ({"history": [{**good, "id": 1}, {**good, "text": "b", "id": 1}]}, ("two different",)),
        ({"id": "1/0"}, ("'1/0' comes twice",)),
        ({"input": ""}, ("`input`",)),
    ]
    for number, (change, words) in enumerate(cases):
        rows = people()
        data = write_rows(tmp_path / f"{number}.jsonl", [rows[0] | change, *rows[1:]])
        refused(train(world, out, data=data), *words)
    mute = [row | {"output": None} for row in people()]
    refused(train(world, out, data=write_rows(tmp_path / "mute.jsonl", mute)), "has no answer")
    split = tmp_path / "split"
    split.mkdir()
    write_rows(split / "train.jsonl", people())
    write_rows(split / "validation.jsonl", [*people()[:3], people()[3] | {"output": None}])
    held = ("--data.validation_samples", 4)
    refused(train(world, out, *held, data=split), "question '1/1' has no answer")
    refused(train(world, out, data=tmp_path / "nowhere"), "does not exist")
    tracked = ("--data", tmp_path / "nowhere", "--pplug.loop.trackers", "trackio")
    refused(train(world, out, *tracked), "trackio is not installed")
    refused(train(world, out, "--data.kind", "lamp"), "train_questions.json")
    refused(train(world, out, "--trainings", "other"), "'other'")
    few = ("--data.train_samples", 1, "--trainings", "pplug", "shuffled")
    refused(train(world, out, *few), "no other user")
    later = ("--trainings", "pplug", "task_retrieval", "--pplug.text.answers", "scored")
    refused(train(world, out, *later), "has 0 labels")
    other = tiny_bert.write_model(tmp_path / "bert", tiny_bert.torch_bert(1))
    before = digest(world.run)
    result = call(
        "pplug", "train", "--config", world.root / "config.yaml", "--model", world.model,
        "--encoder", other, "--data", world.data, "--out", out, "--store", world.run / "history",
    )  # fmt: skip
    refused(result, "holds vectors of encoder")
    refused(train(world, world.run), "a finished run")
    refused(train(world, world.run, "--resume", "--pplug.text.prompt_tokens", 9), "another run")
    assert digest(world.run) == before
    assert not out.exists()
    # Dates that are out of order are sorted, and that is said.
    rows = people()
    rows[8]["history"] = rows[8]["history"][::-1]
    sorted_ = sources.read_parts(
        write_rows(tmp_path / "late.jsonl", rows), HistoryDataConfig("jsonl"), ("train",)
    )
    assert sorted_["train"].notes == ("histories out of date order, which were sorted: 1",)


def test_a_file_is_split_by_users(tmp_path):
    path = write_rows(tmp_path / "people.jsonl", people())
    found = sources.read_parts(path, HistoryDataConfig("jsonl"), sources.PARTS)
    users = [set(own.users) for own in found.values()]
    assert [len(own) for own in users] == [9, 1, 2]
    assert len(set.union(*users)) == 12
    other = sources.read_parts(path, HistoryDataConfig("jsonl", seed=1), sources.PARTS)
    assert other["test"].users != found["test"].users
    with pytest.raises(InputError, match="at least 3"):
        sources.read_parts(write_rows(path, people(2)), HistoryDataConfig("jsonl"), ("train",))


def test_a_training_that_does_not_exist_is_refused(world, tmp_path):
    shutil.copytree(world.run, tmp_path / "run")
    path = tmp_path / "run/plugs/pplug-0/report.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "training": "wit"}))
    result = call("pplug", "generate", "--model", tmp_path / "run", "--input", "a")
    refused(result, "report.json", "'wit'", "pplug train")
