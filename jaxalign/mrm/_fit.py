"""MRM in one call: choices and features in, parameters and the adaptation strength out."""

from dataclasses import dataclass
from typing import TypedDict

import jax
import numpy as np

from jaxalign.arrays import Sizes, check_array
from jaxalign.data import Features, Preferences, lookup
from jaxalign.data.splits import split_users
from jaxalign.errors import InputError
from jaxalign.metrics import users
from jaxalign.mrm.base import Params
from jaxalign.mrm.config import REGULARISED, ChoiceDataConfig, MRMConfig, SplitConfig
from jaxalign.mrm.meta import MetaRewardModel
from jaxalign.mrm.selection import predict, select
from jaxalign.mrm.support_query import (
    TrainingData,
    cut_episodes,
    support_query,
    training_choices,
)


class FitReport(TypedDict):
    """What validation users chose, and how they fare with it.

    Attributes:
        epoch: of the parameters.
        rate: inner rate.
        steps: inner steps, 0 for no adaptation.
        nll: negative log-likelihood per choice of the validation users, in nats.
        nll_unadapted: the same without their support choices.
        accuracy: mean user accuracy.
        accuracy_unadapted: the same without their support choices.
        flipped: share of the predictions that adaptation flips.
    """

    epoch: int
    rate: float
    steps: int
    nll: float
    nll_unadapted: float
    accuracy: float
    accuracy_unadapted: float
    flipped: float


@dataclass(frozen=True)
class FitResult:
    """What `fit` returns.

    Attributes:
        params: of the epoch that validation users preferred, as from `mrm.init`.
        losses: [epochs] mean query loss of each epoch.
        report: what validation users chose.
    """

    params: Params
    losses: np.ndarray
    report: FitReport


def fit(
    preferences: Preferences,
    features: np.ndarray | Features,
    config: MRMConfig | None = None,
    split: SplitConfig | None = None,
    data: ChoiceDataConfig | None = None,
    seed: int = 0,
) -> FitResult:
    """Train MRM on most users and let the others choose epoch and adaptation strength.

    Args:
        preferences: the choices; rows that their source holds out are not trained on.
        features: [I, E], a row for each of `preferences.items`, or features by id.
        config: the model; MRM regularised by default.
        split: share of the validation users, and how their choices are cut.
        data: whether ties are used, and the most choices per user.
        seed: of the parameters and the order of users.

    Returns:
        FitResult.

    Raises:
        InputError: too few users or choices, features of another shape or that are not finite, or
            training diverged.
    """
    config, split, data = config or REGULARISED, split or SplitConfig(), data or ChoiceDataConfig()
    if isinstance(features, Features):
        features = lookup(features, preferences.items, preferences.texts)
    sizes = Sizes(I=(len(preferences.items), "the items"))
    values = check_array("features", features, "I E", sizes)
    roles = split_users(preferences.users, split.seed, 0.0, split.validation_share)
    choices = training_choices(preferences, roles.train, data, split.seed)
    method = MetaRewardModel(config, "mrm")
    validation = support_query(preferences, cut_episodes(preferences, split, roles.validation))
    if not len(validation.query.padded.weight):
        raise InputError(
            f"preferences: found no validation user with {split.min_support} choices to adapt on "
            f"and {split.min_query} to be judged on, expected one or more; give more choices, or "
            "lower the split's min_support and min_query."
        )
    fitted = method.fit(TrainingData(values, values, choices), seed)
    candidate, _ = select(method, fitted, values, validation)
    adapted, start = (
        predict(method, fitted, candidate, values, validation, known) for known in (True, False)
    )
    mask = validation.query.padded.weight > 0
    snapshot = candidate["snapshot"]
    report = FitReport(
        epoch=int(fitted["moments"][snapshot]),
        rate=candidate["rate"],
        steps=candidate["steps"],
        nll=users.nll(adapted, mask),
        nll_unadapted=users.nll(start, mask),
        accuracy=users.accuracy(adapted, mask),
        accuracy_unadapted=users.accuracy(start, mask),
        flipped=users.flipped(adapted, start, mask),
    )
    params = jax.tree.map(lambda leaf: leaf[snapshot], fitted["params"])
    return FitResult(params, fitted["losses"], report)
