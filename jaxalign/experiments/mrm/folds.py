"""Held-out items: known and new users judged on items that no method was fitted on."""

import json
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import pad_pairs
from jaxalign.data.splits import rows_by_user
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.experiments.mrm.fits import FittedMethod, fit_method
from jaxalign.mrm.config import MRMRunConfig
from jaxalign.mrm.support_query import SupportQueryData, on_device, training_choices


def judge_new_items(
    data: ExperimentData, config: MRMRunConfig, fits: dict[str, FittedMethod], stage: Any
) -> dict[str, Any]:
    """Predictions on held-out items, pooled over folds: regime -> arrays."""
    names = ["bt", *(name for name in config.fold_methods if name in fits)]
    # A fold is served with the settings that validation users chose on the fold before it, so
    # that no setting has seen the fold's items; the first takes those of the known items.
    settings = {name: fits[name].settings[:1] for name in names}
    folds = []
    for fold in range(config.split.item_folds):
        kept = stage(
            f"fold{fold:02d}",
            lambda fold=fold, settings=settings: _one_fold(data, config, fold, settings),
        )
        settings = json.loads(str(kept["settings"]))
        folds.append(kept)
    pooled: dict[str, Any] = {"names": names}
    for where in ("new_items", "new_users_new_items"):
        parts = [fold[where] for fold in folds]
        weight = np.concatenate([part["weight"] for part in parts], axis=1)
        pooled[where] = {
            "mask": weight > 0,
            "chosen": np.concatenate([part["chosen"] for part in parts], axis=1),
            "rejected": np.concatenate([part["rejected"] for part in parts], axis=1),
            "predictions": {
                name: tuple(
                    np.concatenate([part[kind][name] for part in parts], axis=-1)
                    for kind in ("adapted", "unadapted")
                )
                for name in names
            },
            "losses": {
                name: float(np.mean([fold["losses"][name] for fold in folds])) for name in names
            },
        }
    return pooled


def _one_fold(
    data: ExperimentData, config: MRMRunConfig, fold: int, settings: dict[str, list[Any]]
) -> dict[str, Any]:
    """Fit without the fold's items; predict on them with the given settings; choose the next."""
    training = training_choices(
        data.choices, data.split.train, config.data, config.split.seed, ~touching(data, fold)
    )
    wheres = {
        "new_items": fold_regime(data, config, data.split.train, fold, seen=True),
        "new_users_new_items": fold_regime(data, config, data.split.test, fold, seen=False),
    }
    validation, enough = fold_regime(data, config, data.split.validation, fold, seen=False)
    validation = judged_only(validation, enough)
    result: dict[str, Any] = {"losses": {}}
    for where, (regime, usable) in wheres.items():
        result[where] = {
            "weight": np.asarray(regime.query.weight) * usable[:, None],
            "chosen": np.asarray(regime.query.chosen),
            "rejected": np.asarray(regime.query.rejected),
            "adapted": {},
            "unadapted": {},
        }
    following = {}
    for name, given in settings.items():
        fit = fit_method(name, data, training, config, 1, lambda _, compute: compute())
        fit.choose(validation)
        result["losses"][name] = np.asarray(fit.loss)
        following[name], fit.settings = fit.settings, given
        for where, (regime, _) in wheres.items():
            result[where]["adapted"][name] = fit.predict(regime)[0]
            result[where]["unadapted"][name] = fit.predict(regime, adapted=False)[0]
    return {**result, "settings": np.asarray(json.dumps(following))}


def fold_regime(
    data: ExperimentData, config: MRMRunConfig, users: tuple[str, ...], fold: int, seen: bool
) -> tuple[SupportQueryData, np.ndarray]:
    """Users adapted on choices without items of a fold, judged on choices within it.

    Args:
        data: the data.
        config: caps.
        users: whom.
        fold: the held-out fold.
        seen: known users are adapted on all their known choices, unseen ones on `support_pairs`.

    Returns:
        The regime of all `users`, and [U] bool: who has enough choices on both sides.
    """
    touched = touching(data, fold)
    widest = max(config.data.max_pairs or 10**9, 1) if seen else config.split.support_pairs
    width_of_query = config.split.query_pairs or 64
    support, query = [], []
    table = zip(
        users, rows_by_user(data.choices, users), rows_by_user(data.queries, users), strict=True
    )
    within = _within(data, fold) & ~data.queries.tie
    for user, rows, candidates in table:
        rng = np.random.default_rng([config.split.seed, fold, *user.encode()])
        support.append(rng.permutation(rows[~touched[rows]])[: widest or None])
        query.append(rng.permutation(candidates[within[candidates]])[:width_of_query])
    least = config.split.min_support
    enough = np.array([len(s) >= least and len(q) > 0 for s, q in zip(support, query, strict=True)])
    ties = 2 if bool(data.choices.tie.any()) else 1
    most = max(map(len, rows_by_user(data.choices, users)))
    width = ties * min(widest or most, most)
    return (
        SupportQueryData(
            on_device(pad_pairs(data.choices, support, width)),
            on_device(pad_pairs(data.queries, query, width_of_query)),
        ),
        enough,
    )


def judged_only(regime: SupportQueryData, enough: np.ndarray) -> SupportQueryData:
    """The same regime, with nothing to judge for users who have not `enough` [U]."""
    weight = jnp.where(jnp.asarray(enough)[:, None], regime.query.weight, 0)
    return SupportQueryData(regime.support, regime.query._replace(weight=weight))


def touching(data: ExperimentData, fold: int) -> np.ndarray:
    """Rows of the table [N] bool with an item of the fold."""
    folds = data.fold_of_item
    table = data.choices
    return (folds[table.chosen] == fold) | (folds[table.rejected] == fold)


def _within(data: ExperimentData, fold: int) -> np.ndarray:
    folds, table = data.fold_of_item, data.queries
    return (folds[table.chosen] == fold) & (folds[table.rejected] == fold)
