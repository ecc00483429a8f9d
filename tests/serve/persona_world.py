"""A tiny language model and a persona plug over it, trained on choices by the command."""

from dataclasses import replace
from types import SimpleNamespace

import tiny_bert
import tiny_lms
import yaml
from cli_calls import call, write_rows

from jaxalign import pplug
from jaxalign.experiments.pplug import ask

WORDS = ("the", "thing", "in", "an", "inn", "than", "then", "thin")
CONFIG = {
    "data": {"kind": "jsonl", "test_share": 0.25, "validation_share": 0.25,
             "train_samples": 4, "validation_samples": 0},
    "pplug": {
        "text": {"query_prefix": "", "prompt_tokens": 24, "answer_tokens": 8, "template": "chat"},
        "copies": 0, "loop": {"epochs": 1, "batch_size": 4}, "optimiser": {"rate": 1e-2},
        "weights": "float32", "compute": "float32",
    },
}  # fmt: skip


def build(root, family="llama", layers="num_hidden_layers"):
    """Return the folders of the model and of a plug that stands before prompts."""
    model = tiny_lms.write(root / "lm", family, **{layers: 1})
    encoder = tiny_bert.write_model(root / "bert", tiny_bert.torch_bert(0))
    rows = [
        {"user": word, "input": f"say {word}", "output": word,
         "history": [{"prompt": "say it", "chosen": word, "rejected": word[::-1]}]}
        for word in WORDS
    ]  # fmt: skip
    (root / "config.yaml").write_text(yaml.dump(CONFIG))
    data = write_rows(root / "people.jsonl", rows)
    found = call(
        "pplug", "train", "--config", root / "config.yaml", "--model", model, "--encoder", encoder,
        "--data", data, "--out", root / "before",
    )  # fmt: skip
    assert found.code == 0, found.err
    return SimpleNamespace(root=root, model=model, plug=root / "before")


def behind_prompts(folder):
    """Put the soft tokens of a plug behind the prompts, with the same parameters."""
    plug = ask.open_plug(folder).plug
    path = next(folder.glob("plugs/*/plug.safetensors"))
    pplug.save(path, replace(plug, persona=replace(plug.persona, place="after")))
