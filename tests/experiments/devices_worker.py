"""`moc train` with classifier rewards, then `generate`, on eight virtual devices: where they ran.

`python devices_worker.py FOLDER OUT`, in a process of its own: the number of devices is fixed when
jax starts. FOLDER holds model/, config.json and prompts.jsonl.
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
run = str(out / "run")
prompts = str(folder / "prompts.jsonl")
shared = ["--data", prompts, "--config", str(folder / "config.json"), "--out", run]
codes = [main(["moc", "train", "--model", str(folder / "model"), *shared])]
trained, found = found, {}
asked = ["--prompts", prompts, "--out", str(out / "answers.jsonl"), "--max-tokens", "4"]
codes.append(main(["generate", "--model", str(folder / "model"), *asked, "--batch-size", "5"]))
# Rows that do not divide over the devices are refused before the run has a folder.
crowded = ["--data", prompts, "--config", str(folder / "config.json"), "--out", str(out / "more")]
codes.append(main(["moc", "train", "--model", str(folder / "model"), *crowded, "--moc.rows", "3"]))
report = {"codes": codes, "train": trained, "generate": found, "devices": jax.device_count()}
(out / "devices.json").write_text(json.dumps(report))
