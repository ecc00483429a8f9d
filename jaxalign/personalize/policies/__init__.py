"""A policy under a weight: soups, mixing, one given preferences, separate ones, whole models.

Every kind makes policies of weights [W, A] and gives many of them to one decode call. Weights of
zero are the reference, the model alone.
"""

from jaxalign.personalize.policies.adapters import Adapter, StackedAdapters
from jaxalign.personalize.policies.answering import answer_as
from jaxalign.personalize.policies.conditioned import Conditioned, PreferenceConditionedBatch
from jaxalign.personalize.policies.kinds import Kind, adapter_digest, identity
from jaxalign.personalize.policies.mixing import Mixing
from jaxalign.personalize.policies.separate import Separate
from jaxalign.personalize.policies.soups import Soups
from jaxalign.personalize.policies.whole import WholeModels, open_models

__all__ = [
    "Adapter",
    "Conditioned",
    "Kind",
    "Mixing",
    "PreferenceConditionedBatch",
    "Separate",
    "Soups",
    "StackedAdapters",
    "WholeModels",
    "adapter_digest",
    "answer_as",
    "identity",
    "open_models",
]
