"""Checkpoints of MRM's authors as user models."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jaxalign.data import read_authors_checkpoint
from jaxalign.mrm.config import FeatureConfig, MRMConfig
from jaxalign.mrm.model import UserModel
from jaxalign.mrm.reduce import identity
from jaxalign.mrm.registry import make_method


def from_authors(path: str | Path, config: MRMConfig | None = None) -> UserModel:
    """Return a checkpoint of the authors' MRM code as a user model.

    The model reads features of the encoder that the checkpoint was trained on, which users are
    adapted with (`jaxalign mrm adapt --features`). It has no users, and no baseline to be
    evaluated against.

    Args:
        path: of the .pt file, as `jaxalign.data.read_authors_checkpoint` takes it.
        config: inner rate and steps; None for those that were published. Sizes and biases are read
            from the file.

    Returns:
        UserModel of the method `mrm_published`.

    Raises:
        InputError: the file is no such checkpoint.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.mrm import from_authors
        >>> try:
        ...     from_authors("nowhere.pt")
        ... except InputError as error:
        ...     print("nowhere.pt" in str(error))
        True
    """
    params = read_authors_checkpoint(path)
    layers = [params["base"][f"layer{index}"] for index in range(len(params["base"]))]
    settings = replace(
        config or MRMConfig(),
        hidden_sizes=tuple(layer["kernel"].shape[1] for layer in layers),
        use_bias=any("bias" in layer for layer in layers),
    )
    width = layers[0]["kernel"].shape[0]
    one = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32)[None], params)
    candidate = {"snapshot": 0, "rate": settings.inner_lr, "steps": settings.eval_steps}
    return UserModel(
        make_method("mrm_published", settings),
        {"params": one},
        candidate,
        np.zeros(width, np.float32),
        identity(width),
        FeatureConfig(path=str(path)),
    )
