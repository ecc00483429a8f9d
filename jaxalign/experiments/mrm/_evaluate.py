"""A saved model judged again, on the test users of its own run."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data import load_features
from jaxalign.data.batching import pad_pairs
from jaxalign.data.splits import UserSplit, episodes
from jaxalign.errors import InputError
from jaxalign.experiments.mrm.data import open_source
from jaxalign.metrics import users
from jaxalign.mrm.config import MRMRunConfig
from jaxalign.mrm.model import infer, load
from jaxalign.mrm.use import item_features


def evaluate(folder: str | Path, source: str) -> dict[str, Any]:
    """Judge the model of a finished run on its test users' choices.

    Args:
        folder: of the run: its model, its settings and its splits are read.
        source: the choices, as the run had them, or newer ones of the same users.

    Returns:
        `kind`, and the figures of `metrics.users.judge` against one Bradley-Terry model for all.

    Raises:
        InputError: no finished run, or none of its test users in the choices.
    """
    from pydantic import TypeAdapter  # which training, on whatever machine, does not need

    folder = Path(folder)
    model = load(folder)
    if not (folder / "run.json").exists():
        raise InputError(f"{folder} holds no run.json: give the folder of a run, not of a model")
    stored = json.loads((folder / "run.json").read_text())
    config = TypeAdapter(MRMRunConfig).validate_json(json.dumps(stored["config"]))
    split = UserSplit.load(folder / "splits.json")
    opened, given = open_source(config, source)
    choices = opened.choices
    cut = episodes(
        choices, split.test, config.split.seed, config.split.support_pairs,
        config.split.query_pairs, config.split.query_share, config.split.min_support,
        config.split.min_query,
    )  # fmt: skip
    if not cut.users:
        raise InputError(
            f"{source}: none of the run's {len(split.test)} test users has enough choices here"
        )
    table = load_features(config.features.path) if config.features.path else given
    features = item_features(model, choices.items, choices.texts, table)
    base = model.base(features)
    support, query = pad_pairs(choices, cut.support), pad_pairs(choices, cut.query)
    mean, cov = infer(model, base[support.chosen] - base[support.rejected], support.weight)
    asked = base[query.chosen] - base[query.rejected]
    adapted = _probability(asked, mean, cov)
    start, spread = model.population()
    count = len(cut.users)
    unadapted = _probability(
        asked,
        np.broadcast_to(start, (count, *start.shape)),
        np.broadcast_to(spread, (count, *spread.shape)),
    )
    common = features @ model.arrays["bt"]
    baseline = _expit(common[query.chosen] - common[query.rejected])
    mask = query.weight > 0
    items = (query.chosen, query.rejected)
    judged = users.judge(adapted, unadapted, baseline, mask, *items, draws=config.draws)
    return {"kind": model.kind, **judged}


def _probability(asked: np.ndarray, mean: np.ndarray, cov: np.ndarray) -> np.ndarray:
    margin = np.einsum("UQK,UK->UQ", asked, mean)
    variance = np.einsum("UQi,Uij,UQj->UQ", asked, cov, asked, optimize=True)
    return _expit(margin / np.sqrt(1 + np.pi * np.maximum(variance, 0) / 8))


def _expit(values: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -values))
