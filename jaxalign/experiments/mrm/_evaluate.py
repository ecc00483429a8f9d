"""A saved model judged again, on the test users of its own run."""

import json
from pathlib import Path

import jax
import numpy as np

from jaxalign.data import load_features
from jaxalign.data.ratings import on_scales
from jaxalign.data.splits import UserSplit
from jaxalign.errors import InputError
from jaxalign.experiments.mrm.config import MRMRunConfig
from jaxalign.experiments.mrm.data import open_source
from jaxalign.experiments.mrm.gates import gate_figures
from jaxalign.files import expand_user, read_json
from jaxalign.metrics import users
from jaxalign.mrm.adaptation import expected_gain
from jaxalign.mrm.calibrated import KEY, Calibrated
from jaxalign.mrm.feedback_rows import vectors_of
from jaxalign.mrm.known_items import effects_of
from jaxalign.mrm.model import REMEDY, UserModel, load
from jaxalign.mrm.registry import RatingsMethod
from jaxalign.mrm.selection import predict
from jaxalign.mrm.serving import item_features
from jaxalign.mrm.support_query import (
    UserPairs,
    cut_episodes,
    on_device,
    support_query,
    without_choices,
)


def evaluate(folder: str | Path, source: str) -> dict[str, float | str]:
    """Judge the model of a finished run on its test users' choices.

    Args:
        folder: of the run: its model, its settings and its splits are read.
        source: the choices, as the run had them, or newer ones of the same users.

    Returns:
        `method`, the figures of `metrics.users.judge` against one Bradley-Terry model for all, and
        those behind the model's gate on the pairs that are judged. Of a model that reads ratings
        also `ratings`, how many of the test users' are held out, and their negative log-likelihood
        in nats per rating, `rating_nll`, and without anything else of the user,
        `rating_nll_unadapted`.

    Raises:
        InputError: no finished run, or none of its test users in the choices.
    """
    folder = expand_user(folder)
    model, config = load(folder, with_users=False), read_config(folder)
    split = UserSplit.load(folder / "splits.json")
    opened, given = open_source(config, source)
    choices = opened.choices
    if model.scales is not None:
        choices = on_scales(choices, model.scales)
    cut = cut_episodes(choices, config.split, split.test)
    if not cut.users:
        raise InputError(
            f"{source}: none of the run's {len(split.test)} test users has enough choices here."
        )
    table = load_features(config.features.path) if config.features.path else given
    features = item_features(model, choices.items, choices.texts, table)
    test, inputs = support_query(choices, cut), model.inputs(features)
    effects = effects_of(model.item_effects, choices.texts, choices.items)
    method, candidate = Calibrated(model.method, effects), {**model.candidate, KEY: 1.0}
    adapts = model.gate.adapts
    adapted, unadapted = (
        predict(method, model.fitted, candidate, inputs, test, known) for known in (adapts, False)
    )
    query = test.query.padded
    chosen, rejected, mask = query.chosen, query.rejected, query.weight > 0
    common = features @ model.baseline
    baseline = np.exp(-np.logaddexp(0, common[rejected] - common[chosen]))
    judged = users.judge(adapted, unadapted, baseline, mask, chosen, rejected, draws=config.draws)
    if adapts:
        gain = expected_gain(adapted, unadapted, np.asarray(query.weight))
        through = {"pairs": (gain >= model.gate.pairs)[None]}
        judged |= gate_figures((adapted[None], unadapted), baseline, mask, through)
    return {"method": model.method.name, **judged, **_judged_ratings(model, inputs, test.support)}


def _judged_ratings(
    model: UserModel, features: jax.Array, support: UserPairs
) -> dict[str, float | str]:
    """How well held-out ratings of the test users are predicted; nothing where there are none.

    Of each user every other rating is held out, and predicted from all other support rows.
    """
    if model.scales is None or not isinstance(model.method, RatingsMethod) or not support.details:
        return {}
    sums = np.zeros(3)
    for part, details in zip(support.parts, support.details, strict=True):
        rated = (np.asarray(details.scale) >= 0) & (np.asarray(details.weight) > 0)
        held = rated & (np.cumsum(rated, axis=1) % 2 == 0)
        known = details._replace(weight=np.where(held, 0, details.weight))
        # Every held-out rating counts once, as every held-out choice does in `users.judge`.
        wanted = details._replace(weight=np.where(held, 1.0, 0.0))
        vectors, nothing = vectors_of(features, on_device(part), details), without_choices(known)
        found = [
            model.method.rating_log_likelihood(model.fitted, model.candidate, vectors, rows, wanted)
            for rows in (known if model.gate.adapts else nothing, nothing)
        ]
        weight = np.asarray(wanted.weight, np.float64)
        sums += [np.sum(weight), *(np.sum(weight * one) for one in found)]
    if not sums[0]:
        return {}
    return {
        "ratings": float(sums[0]),
        "rating_nll": float(-sums[1] / sums[0]),
        "rating_nll_unadapted": float(-sums[2] / sums[0]),
    }


def read_config(folder: Path) -> MRMRunConfig:
    """Return the config of a run.

    Raises:
        InputError: the folder holds no run, or one whose settings this version cannot read.
    """
    from pydantic import TypeAdapter, ValidationError  # which training does not need

    stored = read_json(folder / "run.json", "the settings of a run", REMEDY)
    try:
        return TypeAdapter(MRMRunConfig).validate_json(json.dumps(stored.get("config")))
    except ValidationError as error:
        raise InputError(f"{folder}/run.json: {error.errors()[0]['msg']}: {REMEDY} anew.") from None
