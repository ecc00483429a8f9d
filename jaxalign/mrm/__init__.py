"""User reward models from a few choices: MRM (arXiv 2601.18731) and hierarchical Bayes."""

from jaxalign.mrm._fit import FitResult, fit
from jaxalign.mrm.ask import Belief, information, init_belief, next_pair, update_belief
from jaxalign.mrm.base import base_rewards, effective_weights, init, score
from jaxalign.mrm.bayes import (
    Prior,
    bradley_terry,
    choice_probability,
    fit_prior,
    posterior,
    predict,
)
from jaxalign.mrm.config import BayesConfig, MRMConfig, MRMRunConfig
from jaxalign.mrm.inner import adapt
from jaxalign.mrm.model import UserModel, load, save
from jaxalign.mrm.objective import meta_objective, rpo
from jaxalign.mrm.use import adapt_users, rank
from jaxalign.mrm.user_weights import UserWeights, load_users, save_users

__all__ = [
    "BayesConfig",
    "Belief",
    "FitResult",
    "MRMConfig",
    "MRMRunConfig",
    "Prior",
    "UserModel",
    "UserWeights",
    "adapt",
    "adapt_users",
    "base_rewards",
    "bradley_terry",
    "choice_probability",
    "effective_weights",
    "fit",
    "fit_prior",
    "information",
    "init",
    "init_belief",
    "load",
    "load_users",
    "meta_objective",
    "next_pair",
    "posterior",
    "predict",
    "rank",
    "rpo",
    "save",
    "save_users",
    "score",
    "update_belief",
]
