"""A plug on disk: what was trained and what it belongs to, never the frozen models."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import write_folder_aside, write_json
from jaxalign.models.embed import Encoder, load_encoder
from jaxalign.models.encoder_files import read_json
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.weights.safetensors import open_tensors
from jaxalign.models.weights.save import write_tensors
from jaxalign.pplug.config import PersonaConfig, TextConfig
from jaxalign.pplug.model import PPlug, fresh
from jaxalign.pplug.rows import check_encoder
from jaxalign.runs.artifact import flatten, unflatten

FORMAT = 1
ABOUT, TRAINED = "pplug.json", "pplug.safetensors"


def save(folder: str | Path, plug: PPlug) -> None:
    """Write what was trained of a plug.

    Args:
        folder: new, or one whose plug is replaced once the new one is whole.
        plug: what to write; language model and history encoder are named, not copied.
    """
    flat = {name: np.asarray(leaf, np.float32) for name, leaf in flatten(plug.trained).items()}
    about = {
        "format": FORMAT,
        "persona": asdict(plug.persona),
        "text": asdict(plug.text),
        "model": {"name": plug.model.name, "sha256": plug.model.sha256},
        "encoder": {"name": plug.encoder.name, "sha256": plug.encoder.sha256},
    }
    headers = [(name, "F32", leaf.shape, leaf.nbytes) for name, leaf in flat.items()]
    with write_folder_aside(folder) as aside:
        with (aside / TRAINED).open("wb") as handle:
            write_tensors(handle, headers, iter(flat.values()))
        write_json(aside / ABOUT, about)


def load(
    folder: str | Path,
    model: LanguageModel | None = None,
    encoder: Encoder | None = None,
    dtype: str = "float32",
) -> PPlug:
    """Read what `save` wrote.

    Args:
        folder: of the plug.
        model: its language model, loaded already; None loads the one named in the folder.
        encoder: likewise of histories.
        dtype: that a language model is loaded in.

    Raises:
        InputError: a file is missing, damaged or of another version, or a model is another one.
    """
    folder = Path(folder).expanduser()
    about = _about(folder)
    model = model or load_language_model(about["model"]["name"], dtype)
    encoder = encoder or load_encoder(about["encoder"]["name"])
    for kind, found in (("model", model), ("encoder", encoder)):
        if found.sha256 != about[kind]["sha256"]:
            raise InputError(
                f"{folder}: the plug was trained with the {kind} {about[kind]['name']}, weights "
                f"{about[kind]['sha256']:.12}..; found {found.name} with {found.sha256:.12}..: "
                "give the one it was trained with."
            )
    check_encoder(encoder)
    persona = _settings(folder, about, "persona", PersonaConfig)
    text = _settings(folder, about, "text", TextConfig)
    with open_tensors([folder / TRAINED]) as tensors:
        trained = unflatten({name: tensors.read(name) for name in tensors.shapes})
    like = jax.eval_shape(
        partial(fresh, encoder=encoder, persona=persona, width=model.config.width, norm=1.0),
        jax.random.key(0),
    )
    _compare(folder, trained, like)
    return PPlug(model, encoder, persona, text, jax.tree.map(jnp.asarray, trained))


def _about(folder: Path) -> dict[str, Any]:
    path = folder / ABOUT
    about = read_json(path, required=True, version=FORMAT)
    for kind in ("model", "encoder"):
        named = about.get(kind)
        if not isinstance(named, Mapping) or not all(
            isinstance(named.get(key), str) for key in ("name", "sha256")
        ):
            raise InputError(
                f"{path}: `{kind}` is {named!r}; expected name and sha256: copy the folder again."
            )
    return about


def _settings(folder: Path, about: Mapping[str, Any], name: str, kind: type) -> Any:
    from pydantic import TypeAdapter, ValidationError  # a plug in memory needs neither

    try:
        text = json.dumps(about.get(name))
        return TypeAdapter(kind).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(
            f"{folder / ABOUT}: `{name}` cannot be used ({first['msg']}): copy the folder again."
        ) from None


def _compare(folder: Path, trained: dict[str, Any], like: Any) -> None:
    """Refuses tensors that are missing, spare or of another shape."""
    found, wanted = (
        {
            jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]
        }
        for tree in (trained, like)
    )
    for name in (*wanted, *found):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{folder / TRAINED}: {name!r} has shape {found.get(name)}; expected "
                f"{wanted.get(name)}, as {ABOUT} and the models say: copy the folder again."
            )
