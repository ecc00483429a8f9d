"""MOC: one policy conditioned on a preference over rewards (arXiv 2604.04497), reconstructed.

One language model is trained, by PPO with several objectives, to achieve rewards in the proportions
of any preference p on the simplex. What is trained is one adapter, or one for each reward that p
mixes. Words and letters that the files share:

- row: one prompt with its completion; B in a step. [B, M] has M tokens of each completion, [B, T]
  has T tokens of each prompt.
- group: the rows of a step under one preference, each of another prompt, unlike the groups of GRPO;
  G in a step.
- level: a reward on its `RewardScale`, 0 at the low end and 1 at the high one; the reward as it is
  where there is no scale. Levels are what a preference is compared with.
- objective: what the policy is to raise, with a value head and a weight c of its own: the levels of
  the R rewards, or a single reward that is computed from all of them; K of them.
- similarity to the preference: minus the squared error between p and the mean levels of a group, or
  their shares. It has no reward of its own: its advantages are sums of the objectives'.
- stream: advantages [B, M] with a clipped policy loss of their own; one for each objective, one for
  the similarity, one for the KL to the reference.

Read the files in this order:

1. `config`: every setting of a run.
2. `preferences`: how preferences are sampled, written as tags, and read.
3. `policy`: the model, what of it is trained, and how a preference conditions it (tags in the
   prompt, a soft token, or a mixture of adapters).
4. `prompt_sampler`: the prompts and preferences of each step.
5. `step`: one training step as pure functions: sample, score, compute rewards, learn.
6. `experience`: from rewards and log-probabilities to advantages, per objective, for the similarity
   to the preference, and for the KL.
7. `combination` and `min_norm_solver`: the weights of the objectives from a Gram matrix of
   policy-level directions; this is the paper's multi-objective step.
8. `loss` and `ppo`: the clipped PPO losses under these weights, GAE, the adaptive KL coefficient.
9. `_train` and `monitor`: the loop, checkpoints and metrics, and what stops a run or is warned of.
10. `files` and `value_table`: a policy on disk, and the rewards it achieves under each preference.
11. `likelihood` and `fine_tuning`: log-probabilities of completions that exist already, and how a
    policy is trained on them; `warm_start` and `modpo`, the losses of RiC and MODPO.

`jaxalign.rollout` samples and scores, `jaxalign.personalize.policies` serves policies under
weights, and `jaxalign.experiments.moc` runs, judges and reports.
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
from jaxalign.moc.files import load, save, save_preference
from jaxalign.moc.min_norm_solver import min_norm
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
from jaxalign.moc.step import make_programs, make_step

__all__ = [
    "CombineConfig",
    "ConditionedPolicy",
    "KLConfig",
    "MocConfig",
    "MocTrainResult",
    "PreferenceConfig",
    "combine",
    "evaluation_points",
    "init_policy",
    "insert_preference_tag",
    "load",
    "make_programs",
    "make_step",
    "min_norm",
    "parse_preference",
    "policy_directions",
    "preference_tag",
    "sample_preferences",
    "save",
    "save_preference",
    "similarity_direction",
    "similarity_directions",
    "similarity_error",
    "strip_preference_tags",
    "train",
]
