"""User reward models from a few choices: MRM (arXiv 2601.18731), hierarchical Bayes, baselines."""

from jaxalign.mrm import baselines as baselines
from jaxalign.mrm._fit import FitReport, FitResult, fit
from jaxalign.mrm.adapted_users import UserState, read_state, user_state, weights_of
from jaxalign.mrm.adapting import adapt_users
from jaxalign.mrm.adapting_file import AdaptConfig, AdaptedFile, adapt_file
from jaxalign.mrm.ask import information, next_pair
from jaxalign.mrm.base import base_rewards, effective_weights, init, score
from jaxalign.mrm.bayes import Prior, choice_probability, posterior, predict, rescaled
from jaxalign.mrm.belief import (
    Belief,
    belief_moments,
    infer_beliefs,
    init_belief,
    update_belief,
)
from jaxalign.mrm.checkpoint import from_authors
from jaxalign.mrm.config import BayesConfig, MRMConfig
from jaxalign.mrm.feedback import (
    Feedback,
    FeedbackPosterior,
    FeedbackPrior,
    Levels,
    feedback_posterior,
)
from jaxalign.mrm.feedback_belief import (
    FeedbackBelief,
    feedback_moments,
    init_feedback_belief,
    observe,
)
from jaxalign.mrm.feedback_population import FeedbackPopulation, fit_feedback
from jaxalign.mrm.gains import BestOf, Gains, best_of, best_option, expected_gains
from jaxalign.mrm.hierarchical import HierarchicalBayes
from jaxalign.mrm.inner import adapt
from jaxalign.mrm.meta import MetaRewardModel
from jaxalign.mrm.model import USERS_FILE, UserModel, load, save
from jaxalign.mrm.newton import bradley_terry
from jaxalign.mrm.objective import meta_objective, rpo
from jaxalign.mrm.population import fit_prior
from jaxalign.mrm.registry import (
    METHODS,
    PosteriorMethod,
    RatingsMethod,
    UserRewardMethod,
    WeightsMethod,
    make_method,
    register,
    require,
)
from jaxalign.mrm.serving import Ranked, item_features, rank
from jaxalign.mrm.sites import Sites, posterior_cov
from jaxalign.mrm.support_query import TrainingData
from jaxalign.runs.user_store import open_users

__all__ = [
    "METHODS",
    "USERS_FILE",
    "AdaptConfig",
    "AdaptedFile",
    "BayesConfig",
    "Belief",
    "BestOf",
    "Feedback",
    "FeedbackBelief",
    "FeedbackPopulation",
    "FeedbackPosterior",
    "FeedbackPrior",
    "FitReport",
    "FitResult",
    "Gains",
    "HierarchicalBayes",
    "Levels",
    "MRMConfig",
    "MetaRewardModel",
    "PosteriorMethod",
    "Prior",
    "Ranked",
    "RatingsMethod",
    "Sites",
    "TrainingData",
    "UserModel",
    "UserRewardMethod",
    "UserState",
    "WeightsMethod",
    "adapt",
    "adapt_file",
    "adapt_users",
    "base_rewards",
    "belief_moments",
    "best_of",
    "best_option",
    "bradley_terry",
    "choice_probability",
    "effective_weights",
    "expected_gains",
    "feedback_moments",
    "feedback_posterior",
    "fit",
    "fit_feedback",
    "fit_prior",
    "from_authors",
    "infer_beliefs",
    "information",
    "init",
    "init_belief",
    "init_feedback_belief",
    "item_features",
    "load",
    "make_method",
    "meta_objective",
    "next_pair",
    "observe",
    "open_users",
    "posterior",
    "posterior_cov",
    "predict",
    "rank",
    "read_state",
    "register",
    "require",
    "rescaled",
    "rpo",
    "save",
    "score",
    "update_belief",
    "user_state",
    "weights_of",
]
