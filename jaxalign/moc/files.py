"""A policy on disk: a PEFT adapter, what the values and the soft token need, and what it is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import write_folder_aside, write_json
from jaxalign.moc.config import Conditioning
from jaxalign.moc.policy import ConditionedPolicy
from jaxalign.models.encoder_files import read_json
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.peft import load_adapter, save_adapter
from jaxalign.models.weights.safetensors import open_tensors
from jaxalign.models.weights.save import write_tensors
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.runs.artifact import flatten, unflatten

FORMAT = 1
ABOUT, HEADS = "moc.json", "heads.safetensors"


def save(folder: str | Path, policy: ConditionedPolicy) -> None:
    """Write a policy as a folder that peft, and `load_adapter`, read as a LoRA adapter.

    Args:
        folder: new, or one whose policy is replaced once the new one is whole.
        policy: what to write; the base model is named, not copied.
    """
    rest = {name: tree for name, tree in policy.trained.items() if name != "adapter"}
    flat = {name: np.asarray(value, np.float32) for name, value in flatten(rest).items()}
    about = {
        "format": FORMAT,
        "names": list(policy.names),
        "conditioning": policy.conditioning,
        "decimals": policy.decimals,
        "scale": None if policy.scale is None else policy.scale.to_json(),
        "model": {"name": policy.model.name, "sha256": policy.model.sha256},
    }
    with write_folder_aside(folder) as aside:
        model = policy.model
        save_adapter(aside, policy.trained["adapter"], policy.lora, model.name, model.config)
        headers = [(name, "F32", value.shape, value.nbytes) for name, value in flat.items()]
        with (aside / HEADS).open("wb") as handle:
            write_tensors(handle, headers, iter(flat.values()))
        write_json(aside / ABOUT, about)


def load(
    folder: str | Path, model: LanguageModel | None = None, dtype: str = "float32"
) -> ConditionedPolicy:
    """Read what `save` wrote.

    Args:
        folder: of the policy.
        model: its base model, loaded already; None loads the one that is named in the folder.
        dtype: that it is loaded in.

    Raises:
        InputError: a file is missing, damaged or of another version, or the model is another one.
    """
    folder = Path(folder).expanduser()
    about = _about(folder)
    if model is None:
        model = load_language_model(about["model"]["name"], dtype)
    if model.sha256 != about["model"]["sha256"]:
        raise InputError(
            f"{folder}: the policy was trained on {about['model']['name']} with weights "
            f"{about['model']['sha256']:.12}..; found {model.name} with {model.sha256:.12}..: give "
            "the model it was trained on."
        )
    lora, adapter = load_adapter(folder, model.config)
    with open_tensors([folder / HEADS]) as tensors:
        flat = {name: tensors.read(name) for name in tensors.shapes}
    rest, scale = unflatten(flat), about["scale"]
    _check(folder, about, rest, model.config.width)
    return ConditionedPolicy(
        model,
        tuple(about["names"]),
        about["conditioning"],
        lora,
        {"adapter": adapter, **jax.tree.map(jnp.asarray, rest)},
        None if scale is None else RewardScale.from_json(scale, str(folder / ABOUT)),
        about["decimals"],
    )


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    about = read_json(path, required=True, version=FORMAT)
    model, names = about.get("model"), about.get("names")
    sound = (
        isinstance(names, list)
        and names
        and all(isinstance(name, str) for name in names)
        and about.get("conditioning") in get_args(Conditioning)
        and isinstance(about.get("decimals"), int)
        and isinstance(about.get("scale"), dict | None)
        and isinstance(model, Mapping)
        and all(isinstance(model.get(key), str) for key in ("name", "sha256"))
    )
    if not sound:
        raise InputError(
            f"{path}: expected names, conditioning, decimals, scale and model; copy the folder "
            "again."
        )
    return about


def _check(folder: Path, about: Mapping[str, Any], trained: Mapping[str, Any], width: int) -> None:
    """Refuses heads that are missing or of another model."""
    shapes = {name: value.shape for name, value in flatten(dict(trained)).items()}
    heads = shapes.get("heads/value/kernel", (0, 0))
    token = shapes.get("token/head/kernel", (0, 0))
    told, count = about["conditioning"] == "token", len(about["names"])
    if heads[0] != width or told != ("token" in trained) or (told and token[1] != width):
        raise InputError(
            f"{folder / HEADS}: expected value heads{' and a soft token' if told else ''} for "
            f"states of width {width}, found {', '.join(sorted(shapes))}: copy the folder again."
        )
    inner = shapes.get("token/inner/kernel", (count,))
    if inner[0] != count:
        raise InputError(
            f"{folder}: {HEADS} takes {inner[0]} numbers a preference, {ABOUT} has {count} names; "
            "copy the folder again."
        )
