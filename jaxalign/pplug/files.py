"""A plug on disk: the trained parameters and what they belong to, never the frozen models."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.embed import Encoder, load_encoder
from jaxalign.models.language import LanguageModel, load_language_model
from jaxalign.models.resolve import stated_name
from jaxalign.pplug.config import PersonaConfig, TextConfig
from jaxalign.pplug.model import PPlug, init_trained
from jaxalign.runs.artifact import load_artifact, save_artifact, unflatten

CENTRE = "centre"
KIND, REMEDY = "persona plug", "train it with `jaxalign pplug train`"


@dataclass(frozen=True)
class FrozenModel:
    """A frozen model that a plug was trained with: its name and the digest of its weights."""

    name: str
    sha256: str


@dataclass(frozen=True)
class AboutPlug:
    """What a plug's parameters belong to."""

    persona: PersonaConfig
    text: TextConfig
    model: FrozenModel
    encoder: FrozenModel


def save(path: str | Path, plug: PPlug) -> None:
    """Write the trained parameters of a plug as one safetensors file.

    Args:
        path: File to write; an older one is replaced once the new one is complete.
        plug: The plug. The language model and the history encoder are named, not copied.
    """
    arrays = {**jax.tree.map(np.asarray, plug.trained)}
    if plug.centre is not None:
        arrays[CENTRE] = plug.centre
    about = AboutPlug(
        plug.persona,
        plug.text,
        FrozenModel(stated_name(plug.model.name), plug.model.sha256),
        FrozenModel(stated_name(plug.encoder.name), plug.encoder.sha256),
    )
    save_artifact(path, KIND, about, arrays)


def load(
    path: str | Path,
    model: LanguageModel | None = None,
    encoder: Encoder | None = None,
    dtype: str = "float32",
) -> PPlug:
    """Read a plug that `save` wrote.

    Args:
        path: The file.
        model: Its language model if it is loaded already; None loads the one named in the file.
        encoder: Its history encoder, likewise.
        dtype: Data type in which a language model is loaded.

    Raises:
        InputError: The file is missing, damaged or of an older format, or a model is not the one
            that the plug was trained with.
    """
    found = load_artifact(path, KIND, AboutPlug, REMEDY)
    about = found.about
    model = model or load_language_model(about.model.name, dtype)
    encoder = encoder or load_encoder(about.encoder.name)
    _check_model(path, "model", about.model, model)
    _check_model(path, "encoder", about.encoder, encoder)
    width = model.config.width
    trained_shapes = jax.eval_shape(
        partial(init_trained, encoder=encoder, persona=about.persona, width=width, norm=1.0),
        jax.random.key(0),
    )
    like: dict[str, object] = {**trained_shapes}
    if about.persona.centred:
        like[CENTRE] = jax.ShapeDtypeStruct((encoder.config.width,), np.float32)
    _check_shapes(path, found.arrays, like)
    arrays = dict(found.arrays)
    centre = arrays.pop(CENTRE, None)
    trained = jax.tree.map(jnp.asarray, unflatten(arrays))
    return PPlug(model, encoder, about.persona, about.text, trained, centre)


def _check_model(
    path: str | Path, kind: str, expected: FrozenModel, found: LanguageModel | Encoder
) -> None:
    if found.sha256 != expected.sha256:
        raise InputError(
            f"{path}: the plug was trained with the {kind} {expected.name}, weights "
            f"{expected.sha256:.12}..; found {found.name} with {found.sha256:.12}..: give the one "
            "it was trained with."
        )


def _check_shapes(path: str | Path, arrays: dict[str, np.ndarray], like: object) -> None:
    """Refuse tensors that are missing, superfluous or of another shape."""
    found = {name: array.shape for name, array in arrays.items()}
    wanted = {
        jax.tree_util.keystr(place, simple=True, separator="/"): tuple(leaf.shape)
        for place, leaf in jax.tree_util.tree_flatten_with_path(like)[0]
    }
    for name in (*wanted, *found):
        if found.get(name) != wanted.get(name):
            raise InputError(
                f"{path}: {name!r} has shape {found.get(name)}; expected {wanted.get(name)}, as "
                f"the file's settings and the models say: {REMEDY}."
            )
