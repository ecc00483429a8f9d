"""A portfolio for benchmarks of the service: random adapters, and rewards that are stated."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np

from jaxalign import palm
from jaxalign.demo.answers import read_answers
from jaxalign.models import LanguageModel, lora
from jaxalign.personalize import Serving
from jaxalign.personalize.policies import Adapter, Soups

SPREAD = 0.02  # of the factors of the adapters: enough that answers change
WEIGHTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 0.5]])
"""Of the members: the reference, an adapter, and the soup of both adapters."""
STATED = {"brevity": (1.0, -1.0), "structure": (-1.0, 1.0)}
"""Rewards of the adapter and of the soup over the reference, in standard deviations."""


def save_members(folder: Path, model: LanguageModel) -> None:
    """Write a portfolio of three members over a model."""
    Serving(_portfolio(), Soups(_adapters(model)), model, ("one", "two")).save(folder)


def _adapters(model: LanguageModel) -> tuple[Adapter, ...]:
    """Two adapters away from their start, as if they had been trained."""
    found = []
    for seed in (0, 1):
        config = lora.LoraConfig(8, 16.0, targets=("query", "value", "up", "down"))
        tree = lora.init(jax.random.key(seed), config, model.params)
        rng = np.random.default_rng(seed)
        moved = jax.tree.map(lambda x, r=rng: x + r.normal(0, SPREAD, x.shape).astype("f"), tree)
        found.append((config, moved))
    return tuple(found)


def _portfolio() -> palm.Portfolio:
    """A portfolio of three members whose rewards are stated, and not measured."""
    scale = read_answers().scale
    rewards = np.random.default_rng(0).random((4, 3, len(scale.names)))
    config = palm.PalmConfig(weights="signed", size=2, max_calls=12)
    built = palm.build(palm.ClosedForm(rewards, None, beta=0.1), config, scale=scale)
    beyond = np.zeros((len(WEIGHTS), len(scale.names)))
    for name, values in STATED.items():
        beyond[1:, scale.names.index(name)] = values
    levels = scale.levels(scale.mean[None, :] + beyond * scale.std[None, :])
    members = palm.Policies(levels, np.zeros(len(WEIGHTS)), {"weight": WEIGHTS})
    return replace(built, members=members)
