"""A user reward model that is saved, loaded, adapted to users and asked to rank texts."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.errors import InputError
from jaxalign.files import write_json
from jaxalign.mrm import bayes
from jaxalign.mrm.base import base_rewards, effective_weights
from jaxalign.mrm.config import FeatureConfig, MRMConfig
from jaxalign.mrm.inner import adapt_path
from jaxalign.mrm.reduce import Projection
from jaxalign.mrm.user_weights import UserWeights, load_users
from jaxalign.runs.artifact import flatten, subtree
from jaxalign.train.blas import one_blas_thread

FORMAT = 1


@dataclass(frozen=True)
class UserModel:
    """One trained model and all it needs to serve a user.

    Attributes:
        kind: "bayes" (a Gaussian prior over weights), "bt" (the same without spread) or "mrm".
        arrays: the prior's `mean` [D], `cov` [D, D], or the MRM `params`; and `bt` [E], one
            Bradley-Terry model for all on the features themselves, to be judged beside.
        projection: from features to what the model works on.
        features: how texts become features.
        encoder_sha256: of the encoder's weights, empty for given features.
        mrm: the MRM configuration, for kind "mrm".
        strength: inner rate and steps that validation chose, for kind "mrm".
        users: adapted users, if any.
    """

    kind: str
    arrays: dict[str, Any]
    projection: Projection
    features: FeatureConfig = field(default_factory=FeatureConfig)
    encoder_sha256: str = ""
    mrm: MRMConfig | None = None
    strength: tuple[float, int] = (0.0, 0)
    users: UserWeights | None = None

    @property
    def names(self) -> tuple[str, ...] | None:
        """Names of the base rewards, when they are named."""
        return self.projection.names

    def base(self, features: np.ndarray) -> np.ndarray:
        """Base rewards [..., K] of features [..., E]."""
        projected = self.projection.apply(features)
        if self.kind != "mrm":
            return projected
        return np.asarray(base_rewards(self.arrays["params"], jnp.asarray(projected), self.mrm))

    def population(self) -> tuple[np.ndarray, np.ndarray]:
        """Weights [K] and covariance [K, K] of a user of whom nothing is known."""
        if self.kind != "mrm":
            return np.asarray(self.arrays["mean"]), np.asarray(self.arrays["cov"])
        start = jnp.asarray(self.arrays["params"]["weight_init"])
        weights = np.asarray(effective_weights(start, _config(self)))
        return weights, np.zeros((len(weights), len(weights)), weights.dtype)


def _config(model: UserModel) -> MRMConfig:
    assert model.mrm is not None
    return model.mrm


_posterior = jax.jit(bayes.posterior, static_argnames="steps")


@one_blas_thread
def infer(
    model: UserModel, differences: np.ndarray, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and their covariance from choices.

    Args:
        model: the model.
        differences: [U, P, K] base rewards, chosen minus rejected.
        mask: [U, P] bool or weights; a user without choices gets the population's weights.

    Returns:
        mean [U, K], cov [U, K, K] (zeros for kind "mrm").
    """
    pairs, weight = jnp.asarray(differences), jnp.asarray(mask)
    if model.kind != "mrm":
        prior = bayes.Prior(jnp.asarray(model.arrays["mean"]), jnp.asarray(model.arrays["cov"]))
        mean, cov = _posterior(prior, pairs, weight)
        return np.asarray(mean), np.asarray(cov)
    rate, steps = model.strength
    params = jax.tree.map(jnp.asarray, model.arrays["params"])
    rates = jnp.full((steps,), rate, jnp.float32)
    raw = adapt_path(params, pairs, weight, _config(model), rates, "torch")[:, -1]
    mean = np.asarray(effective_weights(raw, _config(model)))
    return mean, np.zeros((*mean.shape, mean.shape[1]), mean.dtype)


def win_probability(mean: np.ndarray, cov: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Probability [N, N] that the row's answer is chosen over the column's, base rewards [N, K]."""
    margin = (base @ mean)[:, None] - (base @ mean)[None, :]
    inner = base @ cov @ base.T
    variance = np.diag(inner)[:, None] + np.diag(inner)[None, :] - 2 * inner
    scaled = margin / np.sqrt(1 + np.pi * np.maximum(variance, 0) / 8)
    return np.exp(-np.logaddexp(0, -scaled))


def save(path: str | Path, model: UserModel) -> None:
    """Write the model to a folder: model.safetensors and, last and so as proof, model.json.

    Args:
        path: a folder, made if needed.
        model: what to write; its users are not part of it (`jaxalign mrm adapt` writes those).
    """
    from safetensors.numpy import save_file

    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    projection = {"matrix": model.projection.matrix, "mean": model.projection.mean}
    arrays = flatten({"model": model.arrays, "projection": projection})
    aside = path / ".model.safetensors.part"
    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, aside)
    aside.replace(path / "model.safetensors")
    described = {
        "format": FORMAT,
        "kind": model.kind,
        "features": asdict(model.features),
        "names": model.names,
        "encoder_sha256": model.encoder_sha256,
        "mrm": asdict(model.mrm) if model.mrm else None,
        "strength": list(model.strength),
    }
    write_json(path / "model.json", described)


def load(path: str | Path) -> UserModel:
    """Read a model folder, or a run folder that holds one under `model/`.

    Users that `jaxalign mrm adapt` left there as users.parquet come along.

    Raises:
        InputError: there is none, or it is of another format version.
    """
    from safetensors.numpy import load_file

    folder = Path(path)
    if (folder / "model" / "model.json").exists():
        folder = folder / "model"
    if not (folder / "model.json").exists():
        raise InputError(
            f"{path} holds no trained model (model.json is missing): give the output folder of a "
            "finished `jaxalign mrm train`"
        )
    described = json.loads((folder / "model.json").read_text())
    if described.get("format") != FORMAT:
        raise InputError(
            f"{folder / 'model.json'} has format {described.get('format')!r}, this version reads "
            f"{FORMAT}: train again or install the jaxalign that wrote it"
        )
    arrays = load_file(folder / "model.safetensors")
    names = tuple(described["names"]) if described["names"] else None
    mrm = described["mrm"]
    if mrm:
        mrm = MRMConfig(**{**mrm, "hidden_sizes": tuple(mrm["hidden_sizes"])})
    rate, steps = described["strength"]
    model = UserModel(
        kind=described["kind"],
        arrays=subtree(arrays, "model"),
        projection=Projection(arrays["projection/matrix"], arrays["projection/mean"], names),
        features=FeatureConfig(**described["features"]),
        encoder_sha256=described["encoder_sha256"],
        mrm=mrm,
        strength=(float(rate), int(steps)),
    )
    adapted = Path(path) / "users.parquet"
    if not adapted.exists():
        return model
    return replace(model, users=load_users(adapted, len(model.population()[0])))
