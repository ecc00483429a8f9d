"""User reward models from a few choices: MRM (arXiv 2601.18731) and hierarchical Bayes."""

from jaxalign.mrm.base import base_rewards, effective_weights, init, score
from jaxalign.mrm.config import BayesConfig, MRMConfig
from jaxalign.mrm.inner import adapt
from jaxalign.mrm.objective import meta_objective, rpo

__all__ = [
    "BayesConfig",
    "MRMConfig",
    "adapt",
    "base_rewards",
    "effective_weights",
    "init",
    "meta_objective",
    "rpo",
    "score",
]
