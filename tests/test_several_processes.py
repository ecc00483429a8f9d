"""Commands on two real processes over loopback: as on one process, and when one dies."""

import json

import numpy as np
import pytest
import several
import tiny_bert
import tiny_lms

pytestmark = pytest.mark.slow
SMALL = {"num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 24}
FSDP = ["--trunk.mesh.data", "1", "--trunk.mesh.fsdp", "-1"]
MOC = several.moc_config(steps=2, prompt_tokens=64, mesh={"data": 1, "fsdp": -1})
PPLUG = {
    "data": {"kind": "jsonl", "test_share": 0.25, "validation_share": 0.25},
    "pplug": {
        "text": {"query_prefix": "", "prompt_tokens": 40, "answer_tokens": 6, "template": "plain"},
        "loop": {"epochs": 1, "batch_size": 4},
        "weights": "float32",
        "compute": "float32",
    },
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Folders of models, configs, and a file for each command."""
    root = tmp_path_factory.mktemp("several")
    tiny_lms.write(root / "model", "llama", **SMALL)
    tiny_lms.write(root / "judge", "llama", seed=1, labels=1, **SMALL)
    tiny_bert.write_model(root / "encoder")
    judge = {"name": "judged", "kind": "classifier", "model": str(root / "judge")}
    moc = MOC | {"rewards": [judge, {"name": "brevity"}]}
    for name, config in (("moc", moc), ("pplug", PPLUG)):
        (root / f"{name}.yaml").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 3)) for _ in range(32)]
    files = {
        "data": [{"prompt": word, "completion": word[::-1]} for word in words],
        "choices": [{"prompt": word, "chosen": word, "rejected": f"{word}a"} for word in words],
        "prompts": [{"prompt": f"say {word}"} for word in words],
        "histories": [
            {
                "id": str(number), "user": f"u{number}", "input": word, "output": word[::-1],
                "history": [{"text": f"{word} {letter}"} for letter in "abc"],
            }
            for number, word in enumerate(words)
        ],
    }  # fmt: skip
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (root / f"{name}.jsonl").write_text(text)
    return root


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", several.environment())


def sft(world, *more):
    full = ["--trunk.method", "full", "--optimiser.rate", "1e-3", "--loop.batch_size", "8"]
    files = ["--model", world / "model", "--data", world / "data.jsonl"]
    return ["sft", *files, *full, *FSDP, *more]


def test_sft_on_two_processes_is_as_on_one_and_resumes_on_the_other_number(world, tmp_path):
    """A full fine-tuning whose parameters and optimiser are cut over the processes."""
    short, long = (sft(world, "--loop.epochs", epochs) for epochs in (1, 2))
    two, alone = tmp_path / "two", tmp_path / "one"
    texts = several.finish(several.start([*short, "--out", two]))
    assert "steps; validation loss" in texts[0]
    assert "step" not in texts[1]  # process 0 alone shows progress
    several.one([*short, "--out", alone])
    assert several.worst(two, alone) < 1e-5
    # What two have saved goes on on one, and the other way round.
    several.one([*long, "--resume", "--out", two])
    several.finish(several.start([*long, "--resume", "--out", alone]))
    assert several.worst(two, alone) < 1e-5
    report = json.loads((alone / "report.json").read_text())
    assert report["devices"]["processes"] == 2


@pytest.mark.parametrize("command", ["reward", "moc", "pplug"])
def test_a_training_on_two_processes_is_as_on_one(world, tmp_path, command):
    """An adapter of a reward model, a policy cut over the processes, and a plug."""
    model = ["--model", world / "model"]
    words = {
        # Alone its layers lie apart, and on two they are one stack: they drop the same.
        "reward": [
            *("--data", world / "choices.jsonl", "--loop.epochs", "1"),
            *("--trunk.lora.dropout", "0.2", "--optimiser.eps", "1"),  # eps: see `moc_config`
        ],
        "moc": ["--data", world / "prompts.jsonl", "--config", world / "moc.yaml"],
        "pplug": [
            *("--data", world / "histories.jsonl", "--encoder", world / "encoder"),
            *("--config", world / "pplug.yaml"),
        ],
    }[command]
    two, alone = tmp_path / "two", tmp_path / "one"
    several.finish(several.start([command, "train", *model, *words, "--out", two]))
    several.one([command, "train", *model, *words, "--out", alone])
    assert several.worst(two, alone) < 1e-5


def generate(world, *more):
    files = ["--model", world / "model", "--prompts", world / "prompts.jsonl"]
    return ["generate", *files, "--max-tokens", "8", "--batch-size", "2", *more]


@pytest.mark.parametrize(
    ("processes", "sampling"), [(2, []), (3, ["--temperature", "1", "--samples", "3"])]
)
def test_generate_on_several_processes_writes_the_bytes_of_one(
    world, tmp_path, processes, sampling
):
    """Every process completes some of the batches, which are those of one process alone."""
    out, alone = tmp_path / "out.jsonl", tmp_path / "alone.jsonl"
    texts = several.finish(several.start([*generate(world, *sampling), "--out", out], processes))
    assert f"{32 * int((sampling or '1')[-1])} answers, " in texts[0]
    assert all("answer" not in text for text in texts[1:])  # process 0 alone says what was done
    several.one([*generate(world, *sampling), "--out", alone])
    assert out.read_bytes() == alone.read_bytes()


@pytest.mark.parametrize("number", [1, 0])
def test_the_death_of_one_ends_generate_which_resumes(world, tmp_path, number):
    """The worker, then the coordinator; resumed on one process, then on three."""
    out, alone = tmp_path / "out.jsonl", tmp_path / "alone.jsonl"
    command = generate(world, "--temperature", "1", "--samples", "40")
    started = several.start([*command, "--out", out])
    rows = tmp_path / ".out.jsonl.run" / "rows.jsonl"
    seconds, (code,) = several.kill(started, number, rows, 32)
    text = started[1 - number][1].read_text(errors="replace")
    if number:
        assert (code, text.count("another process of this run has ended")) == (3, 1)
        assert seconds < 10
        assert "Traceback" not in text
    else:
        assert code != 0
        assert seconds < 120
    assert not out.exists()
    assert 32 <= rows.read_bytes().count(b"\n") < 32 * 40
    again = [*command, "--resume", "--out", out]
    if number:
        several.one(again)
    else:
        several.finish(several.start(again, 3))
    several.one([*command, "--out", alone])
    assert out.read_bytes() == alone.read_bytes()


def test_other_settings_of_generate_are_refused_on_every_process(world, tmp_path):
    def change(number, words):
        return [*words, "--seed", "1"] if number else words

    command = [*generate(world), "--out", tmp_path / "out.jsonl"]
    for text in several.finish(several.start(command, change=change), wanted=2):
        assert "seed is 1 in process 1 and 0 in process 0; expected the same" in text
        assert "Traceback" not in text


def test_other_settings_are_refused_on_every_process(world, tmp_path):
    def change(number, words):
        return [*words, "--loop.seed", "1"] if number else words

    command = [*sft(world), "--out", tmp_path / "out"]
    for text in several.finish(several.start(command, change=change), wanted=2):
        assert "loop.seed is 1 in process 1 and 0 in process 0; expected the same" in text
        assert "Traceback" not in text


@pytest.mark.parametrize("number", [1, 0])
def test_the_death_of_one_ends_the_others_and_the_run_resumes(world, tmp_path, number):
    """The worker, then the coordinator; resumed on two processes, then on one."""
    out = tmp_path / "out"
    command = sft(world, "--loop.epochs", "30", "--loop.checkpoint_every", "10")
    started = several.start([*command, "--out", out])
    seconds, (code,) = several.kill(started, number, out / "metrics.jsonl", 24)
    text = started[1 - number][1].read_text(errors="replace")
    if number:
        assert code == 3
        assert seconds < 10
        assert text.count("another process of this run has ended") == 1
        assert "Traceback" not in text
    else:
        assert code != 0
        assert seconds < 120
    again = [*command, "--resume", "--out", out]
    if number:
        said, _ = several.finish(several.start(again))
        # Of step 20, the checkpoint may have been in writing when the process died.
        assert "resumed at step 20" in said or "resumed at step 10" in said
    else:
        several.one(again)
    assert json.loads((out / "report.json").read_text())["steps"] == 30 * 4
