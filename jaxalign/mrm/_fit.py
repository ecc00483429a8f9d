"""MRM in one call: choices and features in, parameters and the adaptation strength out."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Features, Preferences, lookup
from jaxalign.data.splits import split_users
from jaxalign.metrics import users
from jaxalign.mrm import methods as M
from jaxalign.mrm.base import Params
from jaxalign.mrm.config import MRMConfig, MRMRunConfig
from jaxalign.mrm.support_query import cut_episodes, support_query, training_choices
from jaxalign.mrm.train import fit_mrm, one_seed


@dataclass(frozen=True)
class FitResult:
    """What `fit` gives.

    Attributes:
        params: of the epoch that validation users preferred, as from `mrm.init`.
        history: `losses` [epochs], mean query loss of each.
        report: the setting chosen (`epoch`, `rate`, `steps`; 0 steps is no adaptation), validation
            loss and accuracy with and without adaptation, the share of predictions it flips.
    """

    params: Params
    history: dict[str, np.ndarray]
    report: dict[str, Any]


def fit(
    preferences: Preferences,
    features: np.ndarray | Features,
    config: MRMConfig | None = None,
    run: MRMRunConfig | None = None,
    seed: int = 0,
) -> FitResult:
    """Train MRM on most users and let the others choose epoch and adaptation strength.

    Args:
        preferences: the choices.
        features: [I, E], a row for each of `preferences.items`, or features by id.
        config: the model; MRM regularised by default.
        run: splits, snapshots and inner rates to choose from; its `mrm` is replaced by `config`.
        seed: of the parameters and the order of users.

    Returns:
        FitResult.

    Raises:
        InputError: too few users or choices, or training diverged.
    """
    run = run or MRMRunConfig()
    run = replace(run, mrm=config or run.mrm)
    if isinstance(features, Features):
        features = lookup(features, preferences.items)
    share = run.split.validation_share
    split = split_users(preferences.users, run.split.seed, 0.0, share)
    values = jnp.asarray(features)
    training = training_choices(preferences, split.train, run.data, run.split.seed)
    fitted = fit_mrm(values, training.pairs, run.mrm, (seed,), run.snapshots)
    method, mine = M.mrm_method(run.mrm, run.rates), one_seed(fitted, 0)
    users_ = support_query(preferences, cut_episodes(preferences, run.split, split.validation))
    pairs = (users_.support, users_.query)
    setting, _ = M.choose(method, mine, values, *pairs)
    adapted, start = (
        method.predict(mine, [chosen], values, *pairs)[0]
        for chosen in (setting, method.unadapted(setting))
    )
    mask = np.asarray(users_.query.weight) > 0
    snapshot = setting["snapshot"]
    report = {
        "epoch": round(run.mrm.epochs * (snapshot + 1) / run.snapshots),
        "rate": setting["rate"],
        "steps": setting["steps"],
        "nll": users.nll(adapted, mask),
        "nll_unadapted": users.nll(start, mask),
        "accuracy": users.accuracy(adapted, mask),
        "accuracy_unadapted": users.accuracy(start, mask),
        "flipped": users.flipped(adapted, start, mask),
    }
    params = jax.tree.map(lambda leaf: leaf[snapshot], mine["params"])
    return FitResult(params, {"losses": fitted["losses"][0]}, report)
