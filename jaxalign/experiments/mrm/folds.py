"""Held-out items: known and new users judged on items that were left out of each fold's fits."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from jaxalign.data.preferences import Preferences
from jaxalign.data.splits import learned_from, rows_by_user
from jaxalign.experiments.mrm.adaptation import AdaptationRule
from jaxalign.experiments.mrm.config import GLOBAL_MODELS, MRMRunConfig
from jaxalign.experiments.mrm.data import ExperimentData
from jaxalign.experiments.mrm.fits import FittedMethod, KeepStage, fit_method
from jaxalign.mrm.registry import Candidate, Fitted, UserRewardMethod
from jaxalign.mrm.support_query import SupportQueryData, cut_support_query

REGIMES = ("new_items", "new_users_new_items")
Chosen = dict[str, tuple[Candidate, bool]]
"""Name of a method -> the candidate that validation users chose, and whether it adapts."""
Predictions = dict[str, tuple[np.ndarray, np.ndarray]]
"""Name of a method -> probabilities [..., U, Q] with and without the users' support choices."""


@dataclass(frozen=True)
class JudgedRegime:
    """All predictions of one regime.

    Attributes:
        predictions: of every method.
        mask: [U, Q] bool, the pairs that are judged.
        chosen: [U, Q] numbers of the chosen items.
        rejected: [U, Q].
        losses: name of a method -> validation loss, in nats per choice.
    """

    predictions: Predictions
    mask: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    losses: dict[str, float]


def judge_new_items(
    data: ExperimentData, config: MRMRunConfig, fits: dict[str, FittedMethod], stage: KeepStage
) -> dict[str, JudgedRegime]:
    """Return predictions on held-out items, pooled over folds, for each of `REGIMES`.

    Args:
        data: the data.
        config: the run.
        fits: what was fitted on all items, by name.
        stage: keeps each fold for a resumed run.
    """
    names = [*dict.fromkeys((*GLOBAL_MODELS, *(n for n in config.fold_methods if n in fits)))]
    usable = usable_folds(data, config)
    # A fold is judged with the candidates that validation users chose on the fold before it, so
    # that no candidate has seen the fold's items; the first takes those of the known items.
    candidates = {name: (fits[name].candidates[0], fits[name].adapts) for name in names}
    # The number of pseudo-users is that of the fit to all items: to choose it again in each fold
    # would be most of the work.
    methods = {name: fits[name].method.settled(fits[name].fitted[0]) for name in names}
    folds = []
    for fold in usable:
        kept = stage(f"fold{fold:02d}", partial(_one_fold, data, config, fold, candidates, methods))
        candidates = json.loads(str(kept["candidates"]))
        folds.append(kept)
    regimes = {where: _pooled(folds, where, names) for where in REGIMES if folds}
    return {where: regime for where, regime in regimes.items() if regime.mask.any()}


def usable_folds(data: ExperimentData, config: MRMRunConfig) -> list[int]:
    """Return the folds that can be judged, which is known before anything is fitted.

    Without a fold's items there must be choices to train on, and a validation user who chooses
    the candidate; within it there must be a training or test user to judge.
    """
    if data.start is not None:
        return []  # what was learned before has seen their items
    count = config.split.item_folds
    return [fold for fold in range(count if count > 1 else 0) if _usable(data, config, fold)]


def _usable(data: ExperimentData, config: MRMRunConfig, fold: int) -> bool:
    split = data.split
    trained = np.concatenate(learned_from(data.choices, split.train))
    if (touching(data, fold) | data.choices.rating)[trained].all():
        return False
    return bool(enough_choices(data, config, split.validation, fold, seen=False).any()) and (
        bool(enough_choices(data, config, split.train, fold, seen=True).any())
        or bool(enough_choices(data, config, split.test, fold, seen=False).any())
    )


def enough_choices(
    data: ExperimentData, config: MRMRunConfig, users: tuple[str, ...], fold: int, seen: bool
) -> np.ndarray:
    """Return [U] bool: who has choices enough without a fold's items, and one within it."""
    learned = ~touching(data, fold)
    if data.choices.held_out is not None:
        learned &= ~data.choices.held_out
    most = _most_support(config, seen) or len(learned)
    known = _count(data.choices, users, learned)
    return (np.minimum(known, most) >= config.split.min_support) & (
        _count(data.queries, users, _query_rows(data, fold)) > 0
    )


def _count(table: Preferences, users: tuple[str, ...], rows: np.ndarray) -> np.ndarray:
    """Number of each user's rows [U] among some of a table, [N] bool."""
    counts = np.bincount(table.user[rows], minlength=len(table.users))
    number = dict(zip(table.users, counts.tolist(), strict=True))
    return np.array([number.get(user, 0) for user in users], int)


def _most_support(config: MRMRunConfig, seen: bool) -> int:
    """Most choices that a user is adapted on, 0 for all."""
    return config.data.max_pairs if seen else config.split.support_pairs


def _query_rows(data: ExperimentData, fold: int) -> np.ndarray:
    """Rows of the queries [N] bool that a fold may be judged on."""
    rows = _within(data, fold) & data.queries.strict
    return rows if data.queries.held_out is None else rows & data.queries.held_out


def _pooled(folds: list[Fitted], where: str, names: list[str]) -> JudgedRegime:
    parts = [fold[where] for fold in folds]

    def joined(key: str) -> np.ndarray:
        return np.concatenate([part[key] for part in parts], axis=1)

    def predicted(kind: str, name: str) -> np.ndarray:
        return np.concatenate([part[kind][name] for part in parts], axis=-1)

    return JudgedRegime(
        {name: (predicted("adapted", name), predicted("unadapted", name)) for name in names},
        joined("weight") > 0,
        joined("chosen"),
        joined("rejected"),
        {name: float(np.mean([fold["losses"][name] for fold in folds])) for name in names},
    )


def _one_fold(
    data: ExperimentData,
    config: MRMRunConfig,
    fold: int,
    candidates: Chosen,
    methods: dict[str, UserRewardMethod],
) -> Fitted:
    """Fit without the fold's items; predict on them with given candidates; choose the next."""
    training = data.training(config.data, ~touching(data, fold))
    wheres = {
        "new_items": fold_regime(data, config, data.split.train, fold, seen=True),
        "new_users_new_items": fold_regime(data, config, data.split.test, fold, seen=False),
    }
    validation, enough = fold_regime(data, config, data.split.validation, fold, seen=False)
    validation = judged_only(validation, enough)
    result: Fitted = {"losses": {}}
    for where, (regime, usable) in wheres.items():
        query = regime.query.padded
        result[where] = {
            "weight": query.weight * usable[:, None],
            "chosen": query.chosen,
            "rejected": query.rejected,
            "adapted": {},
            "unadapted": {},
        }
    following = {}
    rule = AdaptationRule(data, config, validation, _compute, lambda text: None, refit=False)
    for name, (candidate, adapts) in candidates.items():
        fit = fit_method(methods[name], training, 1, _compute)
        rule.decide(fit, common=name in GLOBAL_MODELS)
        result["losses"][name] = np.asarray(fit.loss)
        following[name] = fit.candidates[0], fit.adapts
        fit.candidates, fit.adapts = [candidate], adapts
        for where, (regime, _) in wheres.items():
            result[where]["adapted"][name] = fit.predict(regime)[0]
            result[where]["unadapted"][name] = fit.predict(regime, adapted=False)[0]
    return {**result, "candidates": np.asarray(json.dumps(following))}


def _compute(name: str, compute: Callable[[], Fitted]) -> Fitted:
    """A part of a fold, which is kept as a whole."""
    return compute()


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
    widest = _most_support(config, seen)
    width_of_query = config.split.query_pairs or 64
    support, query = [], []
    table = zip(
        users, learned_from(data.choices, users), rows_by_user(data.queries, users), strict=True
    )
    within = _query_rows(data, fold)
    for user, rows, candidates in table:
        rng = np.random.default_rng([config.split.seed, fold, *user.encode()])
        support.append(rng.permutation(rows[~touched[rows]])[: widest or None])
        query.append(rng.permutation(candidates[within[candidates]])[:width_of_query])
    # Bounds that are the same in every fold, so that no fold is of another shape and compiled anew.
    ties = 1 + int(data.choices.tie.any())
    most = np.array([*map(len, rows_by_user(data.choices, users))])
    bounds = (
        ties * (np.minimum(widest, most) if widest else most),
        np.full(len(users), width_of_query),
    )
    regime = cut_support_query((data.choices, data.queries), (support, query), bounds)
    return regime, enough_choices(data, config, users, fold, seen)


def judged_only(regime: SupportQueryData, enough: np.ndarray) -> SupportQueryData:
    """The same regime, with nothing to judge for users who have not `enough` [U]."""
    query = regime.query.reweighted(lambda users, weight: weight * enough[users, None])
    return SupportQueryData(regime.support, query)


def touching(data: ExperimentData, fold: int) -> np.ndarray:
    """Rows of the table [N] bool with an item of the fold."""
    folds = data.fold_of_item
    table = data.choices
    return (folds[table.chosen] == fold) | (folds[table.rejected] == fold)


def _within(data: ExperimentData, fold: int) -> np.ndarray:
    folds, table = data.fold_of_item, data.queries
    return (folds[table.chosen] == fold) & (folds[table.rejected] == fold)
