"""Every method by its name: fitted on training choices, with the settings validation chose."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.errors import InputError
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.mrm import methods as M
from jaxalign.mrm.baselines import episodes, gpo, vpl
from jaxalign.mrm.baselines.lore import fit_lore, lore_method
from jaxalign.mrm.baselines.mixture import MIXTURE, fit_mixture
from jaxalign.mrm.baselines.neighbours import fit_neighbours, neighbours_method
from jaxalign.mrm.baselines.pal import fit_pal, pal_method
from jaxalign.mrm.config import MRMRunConfig
from jaxalign.mrm.support_query import SupportQueryData, TrainingChoices
from jaxalign.mrm.train import fit_mrm, one_seed

# What a run can save and serve; the others are fitted to be compared with.
SELECTABLE = ("bt", "bayes", "mrm", "mrm_published")

Stage = Callable[[str, Callable[[], M.Fitted]], M.Fitted]


class FittedMethod:
    """A method fitted on a set of training choices, once a seed, behind the shape of `Method`."""

    def __init__(self, method: M.Method, fitted: list[M.Fitted], features: jax.Array) -> None:
        self.method = method
        self.fitted = fitted
        self.features = features
        self.settings: list[M.Setting] = []
        self.loss = float("nan")

    def choose(self, users: SupportQueryData) -> "FittedMethod":
        """Let validation users choose each seed's setting."""
        chosen = [
            M.choose(self.method, fitted, self.features, users.support, users.query)
            for fitted in self.fitted
        ]
        self.settings = [setting for setting, _ in chosen]
        self.loss = float(np.mean([loss for _, loss in chosen]))
        return self

    def predict(self, users: SupportQueryData, adapted: bool = True) -> np.ndarray:
        """Probabilities [S, U, Q] under the chosen settings."""
        rows = []
        for fitted, setting in zip(self.fitted, self.settings, strict=True):
            used = setting if adapted else self.method.unadapted(setting)
            rows.append(
                self.method.predict(fitted, [used], self.features, users.support, users.query)[0]
            )
        return np.stack(rows)


def _item_table(data: ExperimentData, pairs: Pairs, most: int = 256) -> jax.Array | None:
    """One-hot items [I, I]; items without a training choice are zero: nothing is known of them."""
    count = data.features.shape[0]
    if count > most:
        return None
    weight = np.asarray(pairs.weight) > 0
    known = np.zeros(count, np.float32)
    known[np.asarray(pairs.chosen)[weight]] = 1
    known[np.asarray(pairs.rejected)[weight]] = 1
    return jnp.asarray(np.diag(known))


class Baseline(NamedTuple):
    """A method that is compared with: how it predicts, and its fit from one seed."""

    method: M.Method
    fit: Callable[[int], M.Fitted]


def _baselines(
    data: ExperimentData, training: TrainingChoices, config: MRMRunConfig
) -> dict[str, Baseline]:
    def seeded(fit: Callable[..., M.Fitted], settings: Any) -> Callable[[int], M.Fitted]:
        return functools.partial(fit, data.features, training.buckets, settings)

    def network(model: Any, loss: episodes.Loss, probability: episodes.Probability) -> Baseline:
        fit = functools.partial(episodes.fit, model, loss, data.features, training.pairs)
        return Baseline(episodes.method(model, probability), fit)

    lore, published = config.lore, config.lore_published
    return {
        "mixture": Baseline(MIXTURE, seeded(fit_mixture, config.mixture)),
        "lore": Baseline(lore_method(lore), seeded(fit_lore, lore)),
        "lore_published": Baseline(lore_method(published), seeded(fit_lore, published)),
        "pal": Baseline(pal_method(config.pal), seeded(fit_pal, config.pal)),
        "vpl": network(vpl.VPL(config.vpl), vpl.negative_elbo, vpl.probability),
        "gpo": network(gpo.GPO(config.gpo), gpo.choice_loss, gpo.probability),
    }


def fit_method(
    name: str,
    data: ExperimentData,
    training: TrainingChoices,
    config: MRMRunConfig,
    seeds: int,
    stage: Stage,
    checkpoint: Any = None,
    say: Callable[[str], None] = lambda text: None,
) -> FittedMethod:
    """FittedMethod one method by name; `stage(name, compute)` keeps what is fitted for a resume.

    Raises:
        InputError: a name that is no method.
    """
    features = data.features
    if name == "bt":
        fitted = stage(name, functools.partial(M.fit_bt, features, training.buckets))
        return FittedMethod(M.BT, [fitted], features)
    if name == "bt_per_user":
        return FittedMethod(M.PER_USER, [{}], features)
    if name == "bayes":
        fitted = stage(name, functools.partial(M.fit_bayes, features, training.buckets, config))
        return FittedMethod(M.BAYES, [fitted], features)
    if name == "item_ids":
        items = _item_table(data, training.pairs)
        if items is None:
            raise InputError("item_ids is for at most 256 items: take it out of methods")
        fitted = stage(name, functools.partial(M.fit_bayes, items, training.buckets, config))
        return FittedMethod(M.BAYES, [fitted], items)
    if name == "neighbours":
        chosen = config.neighbours
        fitted = stage(name, functools.partial(fit_neighbours, features, training.buckets, chosen))
        return FittedMethod(neighbours_method(chosen), [fitted], features)
    baselines = _baselines(data, training, config)
    if name in baselines:
        baseline = baselines[name]
        fitted = stage(name, lambda: {f"{seed}": baseline.fit(seed) for seed in range(seeds)})
        return FittedMethod(baseline.method, [fitted[f"{seed}"] for seed in range(seeds)], features)
    recipes = {
        "mrm": (config.mrm, M.mrm_method(config.mrm, config.rates)),
        "mrm_published": (config.published, M.published_method(config.published)),
    }
    if name not in recipes:
        simple = ["bt_per_user", "item_ids", "bayes", "neighbours"]
        known = ", ".join([*simple, *baselines, *recipes])
        raise InputError(f"methods: {name!r} is not a method; there are {known}")
    recipe, method = recipes[name]
    if name == "mrm_published":
        features = data.raw
    fitted = stage(
        name,
        functools.partial(
            fit_mrm,
            features,
            training.pairs,
            recipe,
            range(seeds),
            config.snapshots,
            checkpoint,
            say,
        ),
    )
    return FittedMethod(method, [one_seed(fitted, seed) for seed in range(seeds)], features)
