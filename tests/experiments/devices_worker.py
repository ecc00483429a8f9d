"""`moc train` with classifier rewards, then `generate`, on eight virtual devices: where they ran.

`python devices_worker.py FOLDER OUT`, in a process of its own: the number of devices is fixed when
jax starts. FOLDER holds model/, judge/ and prompts.jsonl.
"""

import json
import os
import sys
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

from jaxalign.cli import main
from jaxalign.moc import _train as moc_train
from jaxalign.models import classifier, generate

folder, out = map(Path, sys.argv[1:])
found = {}


def recorded(name, program, part=lambda value: value):
    """The program, which notes over how many devices its rows are shared out."""

    def called(*arguments, **named):
        value = program(*arguments, **named)
        rows = part(value)
        parts = {str(shard.index) for shard in rows.addressable_shards}
        found.setdefault(name, []).append([len(rows.sharding.device_set), len(parts)])
        return value

    return called


classifier._forward = recorded("rewards", classifier._forward)
generate.decode_jit = recorded("completions", generate.decode_jit, lambda value: value.tokens)
texts = moc_train.completion_texts


def completion_texts(model, completions):
    rows = completions.completions
    found.setdefault("rollouts", []).append([len(rows.sharding.device_set)])
    return texts(model, completions)


moc_train.completion_texts = completion_texts
judge = str(folder / "judge")
config = {
    "rewards": [
        {"name": name, "kind": "classifier", "model": judge, "label": label}
        for label, name in enumerate(("first", "second"))
    ],
    "prompts": {"template": "plain", "hold_out_share": 0.25},
    "reference_answers": 256,
    "moc": {
        "steps": 1, "groups": 2, "rows": 4, "prompt_tokens": 80, "answer_tokens": 4,
        "temperature": 1.0, "epochs": 1, "micro_batches": 1,
        "trunk": {
            "lora": {"rank": 2}, "weights": "float32", "compute": "float32", "remat": None,
            "mesh": {"data": 2, "fsdp": 4},
        },
    },
}  # fmt: skip
(out / "config.json").write_text(json.dumps(config))
run = str(out / "run")
prompts = str(folder / "prompts.jsonl")
shared = ["--data", prompts, "--config", str(out / "config.json"), "--out", run]
codes = [main(["moc", "train", "--model", str(folder / "model"), *shared])]
trained, found = found, {}
asked = ["--prompts", prompts, "--out", str(out / "answers.jsonl"), "--max-tokens", "4"]
codes.append(main(["generate", "--model", str(folder / "model"), *asked, "--batch-size", "5"]))
report = {"codes": codes, "train": trained, "generate": found, "devices": jax.device_count()}
(out / "devices.json").write_text(json.dumps(report))
