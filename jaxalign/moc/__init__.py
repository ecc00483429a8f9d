"""MOC: one policy told the preference in its prompt (arXiv 2604.04497), reconstructed.

`combine`, `min_norm` and `train` are functions; the modules of these names are reached by
`from jaxalign.moc._train import ...`.
"""

from jaxalign.moc._train import MocTrainResult, train
from jaxalign.moc.combination import (
    CombineConfig,
    combine,
    policy_directions,
    similarity_direction,
    similarity_directions,
    similarity_error,
)
from jaxalign.moc.config import KLConfig, MocConfig
from jaxalign.moc.files import load, save
from jaxalign.moc.min_norm_solver import frank_wolfe, min_norm
from jaxalign.moc.policy import (
    ConditionedPolicy,
    init_policy,
)
from jaxalign.moc.preferences import (
    PreferenceConfig,
    evaluation_points,
    insert_preference_tag,
    parse_preference,
    preference_tag,
    sample_preferences,
    strip_preference_tags,
)
from jaxalign.moc.step import make_train

__all__ = [
    "CombineConfig",
    "ConditionedPolicy",
    "KLConfig",
    "MocConfig",
    "MocTrainResult",
    "PreferenceConfig",
    "combine",
    "evaluation_points",
    "frank_wolfe",
    "init_policy",
    "insert_preference_tag",
    "load",
    "make_train",
    "min_norm",
    "parse_preference",
    "policy_directions",
    "preference_tag",
    "sample_preferences",
    "save",
    "similarity_direction",
    "similarity_directions",
    "similarity_error",
    "strip_preference_tags",
    "train",
]
