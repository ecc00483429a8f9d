"""The best one model for all users: Bradley-Terry on features, with effects of known items."""

import functools
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.config_fields import checks_fields
from jaxalign.mrm.baselines.bradley_terry import GlobalModel
from jaxalign.mrm.config import check_range
from jaxalign.mrm.item_effects import CountedPairs, OneModel, count_pairs, fit_one_model
from jaxalign.mrm.registry import Candidate, Fitted, register
from jaxalign.mrm.support_query import TrainingData
from jaxalign.train.blas import one_blas_thread


@dataclass(frozen=True)
@checks_fields
class OneModelItemsConfig:
    """One Bradley-Terry model for all users, with effects of the items that training has seen.

    Attributes:
        ridges: ridges that validation chooses from, relative to the mean squared difference, each
            above 0.
        taus: standard deviations of the item effects that validation chooses from, in logits, each
            0 or more; 0 is no effect.
        all_directions: whether all principal directions of the features are tried beside the
            `features.max_dims` that other methods see.
    """

    ridges: tuple[float, ...] = (1e-2, 1e-3, 1e-4, 1e-5)
    taus: tuple[float, ...] = (0.0, 0.2, 0.4, 0.8, 1.6)
    all_directions: bool = True

    def __post_init__(self) -> None:
        check_range(self, "ridges", 0, above=True)
        check_range(self, "taus", 0)


@functools.partial(jax.jit, static_argnames="grid")
def _fit_grid(
    features: jax.Array, pairs: CountedPairs, grid: tuple[tuple[float, float], ...]
) -> OneModel:
    """Return the models of all ridges and standard deviations, theta [G, D] and effects [G, I]."""
    return jax.lax.map(lambda one: fit_one_model(features, pairs, *one), jnp.asarray(grid))


@register("bt_items", OneModelItemsConfig())
class OneModelWithItemEffects(GlobalModel[OneModelItemsConfig]):
    """The best one model for all users, with which every personal model is compared too."""

    inputs = "directions"
    row = "model"

    @one_blas_thread
    def fit(self, data: TrainingData, seed: int = 0) -> Fitted:
        """Return a model for each candidate: "theta" [C, A], "effects" [C, I], "grid" [C, 3]."""
        table, kept = data.inputs(self.inputs), data.features.shape[1]
        widths = {kept, table.shape[1]} if self.settings.all_directions else {kept}
        pairs = count_pairs(data.choices.parts, len(table))
        grid = tuple(itertools.product(self.settings.ridges, self.settings.taus))
        theta, effects, rows = [], [], []
        for width in sorted(widths):
            # Columns of zeros in place of fewer columns: one shape, compiled once.
            some = jnp.where(jnp.arange(table.shape[1]) < width, table, 0)
            found = _fit_grid(some, pairs, grid)
            theta.append(np.asarray(found.theta))
            effects.append(np.asarray(found.effects))
            rows += [(*one, width) for one in grid]
        return {
            "theta": np.concatenate(theta),
            "effects": np.concatenate(effects),
            "grid": np.array(rows, np.float64),
        }

    def candidates(self, fitted: Fitted) -> list[Candidate]:
        """Return the models by number, with what they were fitted with."""
        return [
            {"model": model, "ridge": float(ridge), "tau": float(tau), "directions": int(width)}
            for model, (ridge, tau, width) in enumerate(np.asarray(fitted["grid"]))
        ]

    def item_effects(self, fitted: Fitted, candidate: Candidate) -> np.ndarray | None:
        """Return the effects [I] of the items; None once saved, as a `UserModel` keeps them."""
        if "effects" not in fitted:
            return None
        return np.asarray(fitted["effects"][candidate["model"]])
