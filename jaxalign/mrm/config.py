"""What can be set: the meta-learned model, hierarchical Bayes, and a whole run."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class MRMConfig:
    """Meta reward modelling; the defaults are the authors' recipe for PRISM.

    Attributes:
        hidden_sizes: widths of the base reward network; the last is K. Empty: the features are
            themselves K named base rewards.
        use_bias: biases in the base layers (linear ones cancel in differences).
        activation: between layers; the published form has none.
        input_scale: factor on the features, applied after the first matmul.
        link: "softmax" weights as published, or "signed", which can express a dislike.
        inner_steps: full-batch Adam steps on the support pairs while training.
        inner_lr: their rate; with `learn_inner_lr` only the start of one rate per step.
        eval_steps: inner steps when adapting a user after training.
        learn_inner_lr: learn the inner rates (Meta-SGD, one per step).
        second_order: differentiate through the inner loop; False is first-order MAML.
        rpo_tail: rho, the share of users held to be the hard tail.
        rpo_gamma: gamma, the softness of the tail; 0 or less is the hard form.
        rpo_scope: quantile over the "batch", as published, or over the last known losses of the
            whole "population".
        outer_lr: peak rate of the outer Adam; cosine with 5 % warm-up.
        warmup: share of the outer steps that warm up.
        clip_norm: global norm at which outer gradients are clipped.
        users_per_batch: users in an outer step; what does not fill a batch waits for the next epoch.
        epochs: passes over the users.
        l2: decay of the base kernels towards zero, in the objective.
        query_share: share of a user's groups that serve as query in an epoch.
    """

    hidden_sizes: tuple[int, ...] = (2,)
    use_bias: bool = False
    activation: Literal["linear", "tanh", "gelu"] = "linear"
    input_scale: float = 0.01
    link: Literal["softmax", "signed"] = "softmax"
    inner_steps: int = 1
    inner_lr: float = 1e-3
    eval_steps: int = 1
    learn_inner_lr: bool = False
    second_order: bool = True
    rpo_tail: float = 0.5
    rpo_gamma: float = 0.5
    rpo_scope: Literal["batch", "population"] = "batch"
    outer_lr: float = 1e-3
    warmup: float = 0.05
    clip_norm: float = 1.0
    users_per_batch: int = 2
    epochs: int = 200
    l2: float = 0.0
    query_share: float = 0.9


@dataclass(frozen=True)
class BayesConfig:
    """Hierarchical Bradley-Terry by EM.

    Attributes:
        em_steps: EM iterations; validation may stop earlier on the same trajectory.
        newton_steps: damped Newton steps of each E-step, warm-started from the last.
        posterior_steps: damped Newton steps for a new user.
        rank: rank kept of the covariance, None for all.
        l2: ridge of the Bradley-Terry start, on the scale of the differences.
        user_chunk: users handled at once (bounds memory at chunk * rank^2).
    """

    em_steps: int = 24
    newton_steps: int = 1
    posterior_steps: int = 6
    rank: int | None = None
    l2: float = 1e-3
    user_chunk: int = 256
    ranks: tuple[int, ...] = field(default=())
