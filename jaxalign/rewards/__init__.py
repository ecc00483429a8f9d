"""Reward functions of text: registered by name, classifiers, and models trained on choices.

A new reward is one file here and one line below: see "Adding things" in CONTRIBUTING.md.
"""

from jaxalign.rewards.registry import register_reward, registered_rewards, rule_rewards
from jaxalign.rewards.reward_model import load_reward_model, score
from jaxalign.rewards.reward_scale import RewardIds, RewardScale, fit_scale
from jaxalign.rewards.rules import TRAITS, measure_traits
from jaxalign.rewards.spec import RewardSpec, build_rewards, known_levels
from jaxalign.rewards.vector import (
    TextReward,
    TokenReward,
    check_rewards,
    classifier_reward,
    compute_rewards,
    concatenate_rewards,
)

__all__ = [
    "TRAITS",
    "RewardIds",
    "RewardScale",
    "RewardSpec",
    "TextReward",
    "TokenReward",
    "build_rewards",
    "check_rewards",
    "classifier_reward",
    "compute_rewards",
    "concatenate_rewards",
    "fit_scale",
    "known_levels",
    "load_reward_model",
    "measure_traits",
    "register_reward",
    "registered_rewards",
    "rule_rewards",
    "score",
]
