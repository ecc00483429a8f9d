"""Reward functions: rules on texts, named and on one scale, and models trained on choices."""

from jaxalign.rewards import normalise, rules
from jaxalign.rewards.normalise import Standardiser
from jaxalign.rewards.reward_model import load_reward_model, score
from jaxalign.rewards.rules import TRAITS, measure

__all__ = [
    "TRAITS",
    "Standardiser",
    "load_reward_model",
    "measure",
    "normalise",
    "rules",
    "score",
]
