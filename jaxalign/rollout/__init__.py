"""Prompts in; completions, their log-probabilities and their rewards out.

`sample_and_score` does this for one batch: a training step of MOC calls it, traced or with rewards
on the host, and `rollout_policies` calls it batch by batch for everything that judges policies.
"""

from jaxalign.rollout.batch import Rollout, completion_texts, sample_and_score, token_rewards
from jaxalign.rollout.checks import check_untruncated
from jaxalign.rollout.judging import PolicyRollouts, rollout_policies
from jaxalign.rollout.policies import (
    GenerationArguments,
    PolicyBatch,
    PolicyFamily,
    ReferencePolicy,
)

__all__ = [
    "GenerationArguments",
    "PolicyBatch",
    "PolicyFamily",
    "PolicyRollouts",
    "ReferencePolicy",
    "Rollout",
    "check_untruncated",
    "completion_texts",
    "rollout_policies",
    "sample_and_score",
    "token_rewards",
]
