"""A tiny model, prompts and a config on disk, for the commands of MOC."""

from types import SimpleNamespace

import tiny_lms
import yaml
from cli_calls import call

from jaxalign.models.weights.safetensors import open_tensors

NAMES = ("brevity", "simplicity")
CONFIG = {
    "rewards": [{"name": name} for name in NAMES],
    "prompts": {"template": "plain", "hold_out_share": 0.25},
    "reference_answers": 256,
    "moc": {
        "steps": 3,
        "groups": 2,
        "rows": 4,
        "prompt_tokens": 80,
        "answer_tokens": 8,
        "temperature": 1.0,
        "epochs": 1,
        "micro_batches": 1,
        "preferences": {"kind": "grid", "points": 11, "held_out": [[0.3, 0.7]]},
        "trunk": {
            "lora": {"rank": 2, "alpha": 4.0},
            "weights": "float32",
            "compute": "float32",
            "remat": None,
        },
        "optimiser": {"rate": 1e-2},
        "checkpoint_every": 1,
    },
}
WORDS = ("the", "thing", "in", "an", "inn", "than", "then", "thin", "ant", "hen", "tin", "net")
PROMPTS = [f"say {word}" for word in WORDS]


def build(root):
    """A folder with the model, the prompts and the config; `run` is where a run is to be."""
    (root / "config.yaml").write_text(yaml.dump(CONFIG))
    (root / "prompts.txt").write_text("\n".join(PROMPTS))
    return SimpleNamespace(
        root=root, model=tiny_lms.write(root / "model", "llama"), run=root / "run"
    )


def train(world, out, *more, model=None):
    return call(
        "moc", "train", "--config", world.root / "config.yaml", "--model", model or world.model,
        "--data", world.root / "prompts.txt", "--out", out, *more,
    )  # fmt: skip


def weights_of(folder):
    with open_tensors([folder / "adapter_model.safetensors"]) as tensors:
        return {name: tensors.read(name) for name in tensors.shapes}
