"""Every kind of folder and file of ours, given to every command that reads another one."""

import json

import numpy as np
import pytest
import tiny_lms
from safetensors.numpy import save_file

from jaxalign.cli import main
from jaxalign.recognise import recognise
from jaxalign.runs.user_store import AboutUsers, create_users


def folder_of(place, **files):
    place.mkdir()
    for name, content in files.items():
        name = name.replace("__", ".")
        text = content if isinstance(content, str) else json.dumps(content)
        (place / name).write_text(text)
    return place


def artifact(path, kind):
    path.parent.mkdir(exist_ok=True)
    meta = {"kind": kind, "format": 2, "digest": "0", "about": "{}"}
    save_file({"x": np.zeros(1, np.float32)}, path, {"jaxalign": json.dumps(meta)})
    return path


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Small made-up artefacts: name -> path, and what they are."""
    root = tmp_path_factory.mktemp("kinds")
    scored = {"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}
    adapter = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
               "base_model_name_or_path": str(root / "model")}  # fmt: skip
    made = {
        "model": (tiny_lms.write(root / "model", "llama"), "a whole language model (llama)"),
        "classifier": (folder_of(root / "classifier", config__json=scored), "a classifier or rew"),
        "adapter": (folder_of(root / "adapter", adapter_config__json=adapter), "a LoRA adapter"),
        "empty": (folder_of(root / "empty"), "nothing"),
        "checkpoint": (folder_of(root / "checkpoint", _CHECKPOINT_METADATA=""), "a checkpoint"),
        "pickles": (folder_of(root / "pickles", pytorch_model__bin="x"), "PyTorch pickles"),
        "tokenizer": (folder_of(root / "tokenizer", tokenizer__json={}), "a tokenizer without"),
        "gguf": (root / "m.gguf", "a GGUF file"),
        "table": (root / "rows.jsonl", "a table or text"),
        "features": (root / "features.npz", "arrays (npz)"),
    }
    (root / "m.gguf").write_bytes(b"GGUF" + b"\0" * 20)
    row = {"prompt": "a", "answer": "b", "text": "c", "chosen": "d", "rejected": "e"}
    (root / "rows.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    np.savez(root / "features.npz", zebra=np.zeros(2))
    made["export"] = folder_of(root / "export", routing__json={}), "adapters of `jaxalign export"
    place = folder_of(root / "reward", adapter_config__json=adapter, reward__json={})
    made["reward"] = place, "a reward model"
    for name, file, kind, words in (
        ("policy", "policy.safetensors", "MOC policy", "a MOC policy"),
        ("portfolio", "portfolio.safetensors", "portfolio", "a portfolio"),
        ("policies", "policies.safetensors", "set of policies", "a portfolio with its policies"),
        ("plug", "plug.safetensors", "persona plug", "a persona plug"),
        ("users model", "model.safetensors", "user model", "a user reward model"),
    ):
        made[name] = artifact(root / name / file, kind).parent, words
    (root / "policy" / "adapter_config.json").write_text(json.dumps(adapter))
    for name in ("reward", "policy"):
        save_file({}, root / name / "adapter_model.safetensors")
    for kind in ("sft", "moc train", "mrm train", "palm build", "pplug train", "reward train"):
        place = folder_of(root / kind, run__json={"kind": kind, "format": 3}, report__json={})
        made[f"run of {kind}"] = place, f"a run of `{kind}`"
        place = folder_of(root / f"part {kind}", run__json={"kind": kind, "format": 3})
        made[f"part of {kind}"] = place, f"an unfinished run of `{kind}`"
    create_users(AboutUsers("", "bayes", 2, 6)).save(root / "users.sqlite")
    made["users"] = root / "users.sqlite", "users of `jaxalign mrm adapt`"
    return made


def test_each_is_recognised(kinds):
    for name, (path, words) in kinds.items():
        assert (recognise(path) or "unknown").find(words) >= 0, (name, recognise(path))
    assert recognise("nowhere") is None


MODELS = {"model", "gguf"}
ADAPTERS = {"adapter", "policy", "reward"}
PLUGS = {"run of pplug train", "part of pplug train"}  # made up without a plug
# Command with the thing in place of X, and the kinds that it takes.
READERS = {
    "generate --model X --prompt a": MODELS | {"adapter", "policy"},
    "generate --model MODEL --adapter X --prompt a": ADAPTERS,
    "sft --model X --data ROWS --out OUT": MODELS | {"adapter"},
    "reward train --model X --data ROWS --out OUT": MODELS | {"adapter"},
    "reward score --model X --data ROWS --out OUT.jsonl": {"classifier", *MODELS, *ADAPTERS},
    "embed --model X --texts ROWS --out OUT.npz": MODELS | {"adapter", "classifier"},
    "mrm adapt --model X --data ROWS --out OUT.sqlite": {"users model"},
    "mrm rank --model X --texts ROWS": {"users model"},
    "mrm evaluate --model X --data ROWS": {"users model"},
    "palm route --portfolio X --users ROWS --out OUT.jsonl": {"portfolio"},
    "palm certify --portfolio X --data ROWS": {"portfolio"},
    "pplug generate --model X --input a": {"plug", *PLUGS},
    "pplug evaluate --model X --out OUT": PLUGS,
    "pplug export --model X --input a --out OUT.pt": {"plug", *PLUGS},
    "moc evaluate --model X --out OUT": {"policy", "run of moc train"},
    "moc export --model X --preference a=1 --out OUT": {"policy"},
    "export vllm --portfolio X --out OUT": {"policies"},
    "export vllm --policy X --out OUT": {"policy"},
    "serve --port 0 --engine openai --engine.url http://x/v1 --portfolio X": {"policies"},
}


@pytest.mark.parametrize("command", READERS)
def test_the_wrong_one_is_named(command, kinds, tmp_path, capsys):
    places = {"MODEL": kinds["model"][0], "ROWS": kinds["table"][0], "OUT": tmp_path / "out"}
    faults = []
    for name, (path, known) in kinds.items():
        words = "empty" if name == "empty" else known
        if name in READERS[command]:
            continue
        line = []
        for word in command.split():
            for short, place in places.items():
                word = word.replace(short, str(place)) if word.startswith(short) else word
            line.append(str(path) if word == "X" else word)
        code = main(line)
        said = capsys.readouterr().err
        last = said.rstrip("\n").rpartition("\n")[2]  # below what says the devices
        if code != 2 or words not in last or not last.startswith("jaxalign: "):
            faults.append(f"{name}: {code} {said[-300:]}")
    assert not faults, "\n\n".join(faults)


@pytest.mark.parametrize("command", READERS)
def test_the_folder_of_an_unknown_user_is_named(command, kinds, tmp_path, capsys):
    model, rows = str(kinds["model"][0]), str(kinds["table"][0])
    line = command.replace("MODEL", model).replace("ROWS", rows).replace("OUT", f"{tmp_path}/out")
    assert main(["~no-such-user/x" if word == "X" else word for word in line.split()]) == 2
    last = capsys.readouterr().err.rstrip("\n").rpartition("\n")[2]
    assert last.startswith("jaxalign: ")
    assert "~no-such-user/x: found no folder of this user" in last


@pytest.mark.parametrize("command", [
    "mrm train --data X --out OUT", "palm build --data X --out OUT",
    "sft --model MODEL --data X --out OUT", "mrm train --data ROWS --config X --out OUT",
    "reward train --model MODEL --data X --out OUT", "embed --model MODEL --texts X --out OUT.npz",
    "import feedback X --out OUT.jsonl",
])  # fmt: skip
def test_data_of_an_unknown_user_are_named(command, kinds, tmp_path, capsys):
    model, rows = str(kinds["model"][0]), str(kinds["table"][0])
    line = command.replace("MODEL", model).replace("ROWS", rows).replace("OUT", f"{tmp_path}/out")
    assert main(["~no-such-user/x.jsonl" if word == "X" else word for word in line.split()]) == 2
    assert "found no folder of this user" in capsys.readouterr().err


def test_a_language_model_is_no_reward_model(kinds, tmp_path, capsys):
    rest = ["--data", str(kinds["table"][0]), "--out", str(tmp_path / "out.jsonl")]
    for name, words in (("model", "`jaxalign reward train`"), ("gguf", "holds a language model")):
        code = main(["reward", "score", "--model", str(kinds[name][0]), *rest])
        said = capsys.readouterr().err
        assert code == 2
        assert words in said
