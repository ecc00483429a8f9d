"""Reward functions: rules on texts, named and on one scale, and models trained on choices."""

from jaxalign.rewards.reward_model import load_reward_model, score
from jaxalign.rewards.reward_scale import RewardIds, RewardScale, fit_scale
from jaxalign.rewards.rules import TRAITS, measure_traits

__all__ = [
    "TRAITS",
    "RewardIds",
    "RewardScale",
    "fit_scale",
    "load_reward_model",
    "measure_traits",
    "score",
]
