"""User reward models from a few choices: MRM (arXiv 2601.18731), hierarchical Bayes, baselines."""

from jaxalign.mrm import baselines as baselines
from jaxalign.mrm._fit import FitReport, FitResult, fit
from jaxalign.mrm.adapted_users import UserSupports, UserWeights, load_users, save_users
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
from jaxalign.mrm.config import BayesConfig, MRMConfig
from jaxalign.mrm.gains import BestOf, Gains, best_of, best_option, expected_gains
from jaxalign.mrm.hierarchical import HierarchicalBayes
from jaxalign.mrm.inner import adapt
from jaxalign.mrm.meta import MetaRewardModel
from jaxalign.mrm.model import UserModel, load, save
from jaxalign.mrm.objective import meta_objective, rpo
from jaxalign.mrm.registry import (
    METHODS,
    UserRewardMethod,
    WeightsMethod,
    make_method,
    register,
    require,
)
from jaxalign.mrm.serving import Ranked, adapt_users, item_features, rank
from jaxalign.mrm.support_query import TrainingData

__all__ = [
    "METHODS",
    "BayesConfig",
    "Belief",
    "BestOf",
    "FitReport",
    "FitResult",
    "Gains",
    "HierarchicalBayes",
    "MRMConfig",
    "MetaRewardModel",
    "Prior",
    "Ranked",
    "TrainingData",
    "UserModel",
    "UserRewardMethod",
    "UserSupports",
    "UserWeights",
    "WeightsMethod",
    "adapt",
    "adapt_users",
    "base_rewards",
    "best_of",
    "best_option",
    "bradley_terry",
    "choice_probability",
    "effective_weights",
    "expected_gains",
    "fit",
    "fit_prior",
    "information",
    "init",
    "init_belief",
    "item_features",
    "load",
    "load_users",
    "make_method",
    "meta_objective",
    "next_pair",
    "posterior",
    "predict",
    "rank",
    "register",
    "require",
    "rpo",
    "save",
    "save_users",
    "score",
    "update_belief",
]
