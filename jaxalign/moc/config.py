"""Settings of training one policy for every preference."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_type_hints

from jaxalign.config import on_resume
from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.moc.combination import CombineConfig
from jaxalign.moc.preferences import PreferenceConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.models.sampling import Sampling
from jaxalign.runs.log import Tracker
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import TrunkConfig

Conditioning = Literal["tags", "token", "adapters", "none"]
AdvantageBaseline = Literal["values", "group"]
HORIZON_STEPS = 100
"""Steps over which an adaptive KL coefficient should take to change by a fifth."""


@dataclass(frozen=True)
@checks_fields
class KLConfig:
    """Penalty on the KL to the reference: the model without the adapter, on the plain prompt.

    The reference reads the prompt without the preference, so a tag or a soft token moves the KL by
    itself. The KL of a completion is the sum over its tokens of log pi - log pi_ref, in nats, with
    the dropout of the updates.

    Attributes:
        coef: KL coefficient, at least 0; where it is adaptive, its first value. A nat counts as
            much as `coef` standard deviations of an objective's advantages, since these are
            whitened and those of the KL are not. 0.2 is usual; 0, which stays 0 where it is
            adaptive too, lets a policy degenerate.
        adaptive: raise the coefficient while the KL is above the target, and lower it while the KL
            is below (Ziegler et al.); false keeps it.
        target: mean KL of a completion to aim at, nats, positive. 3 to 6 is usual for 128 tokens.
        horizon: completions over which the coefficient can change by a fifth, positive; where it is
            adaptive, at least the completions of a step. Set it to about 100 steps or more.
        stop: early stopping, positive: the remaining updates of a step are skipped once the KL to
            the policy that sampled the completions, not to the reference, exceeds `stop` times
            `target`.
    """

    coef: float = 0.2
    adaptive: bool = True
    target: float = 3.0
    horizon: float = 10_000.0
    stop: float = 1.5

    def __post_init__(self) -> None:
        _check_least("kl.coef", self.coef, 0.0)
        for name in ("target", "horizon", "stop"):
            _check_above(f"kl.{name}", getattr(self, name))


@dataclass(frozen=True)
@checks_fields
class MocConfig:
    """Training of one policy for every preference, by multi-objective PPO.

    A step samples `groups` x `rows` completions, then makes `epochs` x `minibatches` updates.

    Attributes:
        steps: training steps, each a rollout and its updates. More of them, with --resume, make a
            run longer, finished or not.
        groups: preferences sampled for each step; a multiple of minibatches x micro_batches.
        rows: completions for each preference, each of another prompt. 2 or more for the rewards
            "vector", unless the rule is "linear", and for the advantage_baseline "group". 8
            estimates a group's mean reward well.
        prompt_tokens: longest prompt in tokens, the preference in it included; longer prompts are
            left out.
        answer_tokens: longest completion in tokens. Memory and time grow with it.
        temperature: sampling temperature, above 0; log-probabilities are taken at it as well. 0.7
            to 1.
        epochs: passes over the completions of a step, 1 to 4. More passes reuse a rollout more and
            are stopped earlier by `kl.stop`.
        minibatches: updates in each pass. More of them are more, noisier updates.
        micro_batches: parts of an update that are computed one after another (gradient
            accumulation), each of whole groups. Raise it, in a new folder, if memory runs out: the
            update stays the same but for rounding and for what is drawn while training, such as
            dropout.
        advantage_baseline: what is subtracted from a reward to give its advantage: "values" of
            heads that are trained beside the policy, by GAE; or the "group", the mean reward of a
            preference's other completions (leave-one-out), which needs no heads and gives every
            token of a completion the same advantage.
        gamma: discount per token, between 0 and 1. 1 for a reward at the end of a completion; not
            used with the advantage_baseline "group".
        lam: lambda of GAE, between 0 and 1. 1 uses returns less values; 0.95 favours tokens near
            the end as long as the values are poor. Not used with the advantage_baseline "group".
        clip: clip range of the policy's ratio (PPO), above 0; 0.1 to 0.3.
        value_clip: value-function clip range (PPO2), above 0, in levels; the head of the KL counts
            nats times the KL coefficient.
        value_coef: weight of the value losses, summed over the heads, beside the policy losses, at
            least 0.
        value_dropout: share of the hidden states that is dropped before the value heads, at least 0
            and below 1.
        kl: penalty on the KL to the reference.
        combine: how the objectives and the similarity to the preference are combined.
        preferences: which preferences are sampled.
        conditioning: how the policy is given the preference: "tags" in the text of the prompt, one
            soft "token" before it, "adapters", one adapter for each reward, mixed by the
            preference, or "none". With "adapters" the prompts stay as they are, a preference can be
            written as one LoRA adapter, and memory for adapters grows with the rewards.
        reward: "vector", where every reward is an objective; "weighted", the single objective
            sum_j p_j r_j of plain RLHF; or "closeness", the single objective
            -mean_j (r_j - p_j)^2, an ablation. A single objective has weight 1, and `combine` is
            not used.
        trunk: adapter, precision, memory and devices of the language model.
        optimiser: learning rate, schedule and gradient clipping. A schedule spans all updates,
            those that `kl.stop` skips included.
        seed: random seed of prompts, preferences, completions, new parameters and dropout, at
            least 0.
        checkpoint_every: steps between two checkpoints.
        samples_every: steps between two looks at sampled completions on the terminal, with their
            preferences and levels, for rewards of text; null shows none.
        trackers: where metrics are sent beside metrics.jsonl: "tensorboard", "trackio" or "wandb",
            each installed separately; empty for nowhere else.
    """

    steps: int = on_resume("more", 1000)
    groups: int = 8
    rows: int = 8
    prompt_tokens: int = 256
    answer_tokens: int = 128
    temperature: float = 0.7
    epochs: int = 4
    minibatches: int = 1
    micro_batches: int = 8
    advantage_baseline: AdvantageBaseline = "values"
    gamma: float = 1.0
    lam: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_coef: float = 0.1
    value_dropout: float = 0.1
    kl: KLConfig = field(default_factory=KLConfig)
    combine: CombineConfig = field(default_factory=CombineConfig)
    preferences: PreferenceConfig = field(default_factory=PreferenceConfig)
    conditioning: Conditioning = "tags"
    reward: Literal["vector", "weighted", "closeness"] = "vector"
    trunk: TrunkConfig = field(
        default_factory=lambda: TrunkConfig(
            lora=LoraConfig(rank=64, alpha=128.0, dropout=0.05),
            weights="bfloat16",
            compute="bfloat16",
            remat="nothing_saveable",
        )
    )
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(
            rate=1e-5, schedule="constant", warmup=0.0, clip_norm=0.5
        )
    )
    seed: int = 0
    checkpoint_every: int = on_resume("any", 50)
    samples_every: int | None = on_resume("any", 10)
    trackers: tuple[Tracker, ...] = on_resume("any", ())

    def __post_init__(self) -> None:
        # Not `fields(self)`, whose types are texts where annotations are postponed.
        for name in (name for name, kind in get_type_hints(MocConfig).items() if kind is int):
            _check_least(name, getattr(self, name), 0 if name == "seed" else 1)
        if self.samples_every is not None:
            _check_least("samples_every", self.samples_every, 1)
        for name in ("temperature", "clip", "value_clip"):
            _check_above(name, getattr(self, name))
        _check_least("value_coef", self.value_coef, 0.0)
        for name in ("gamma", "lam", "value_dropout"):
            value = getattr(self, name)
            if not 0 <= value <= 1 or (name == "value_dropout" and value == 1):
                raise InputError(f"{name}: found {value}, expected a number in [0, 1]; correct it.")
        if self.groups % (self.minibatches * self.micro_batches):
            raise InputError(
                f"groups: found {self.groups}, which do not split into {self.minibatches} "
                f"minibatches of {self.micro_batches} micro_batches; expected a multiple, so that "
                "each has whole groups: change one of the three."
            )
        if self.rows == 1 and self.reward == "vector" and self.combine.rule != "linear":
            raise InputError(
                f"rows: found 1, which the rule {self.combine.rule!r} cannot work with: similarity "
                "is that of a group's mean; expected 2 or more completions for each preference."
            )
        if self.rows == 1 and self.advantage_baseline == "group":
            raise InputError(
                "rows: found 1, whose group has no others to count its advantage from; expected 2 "
                'or more completions for each preference, or the advantage_baseline "values".'
            )
        if self.kl.adaptive and self.kl.horizon < self.batch:
            raise InputError(
                f"kl.horizon: found {self.kl.horizon:g}, expected at least the {self.batch} "
                "completions of a step, or the adaptive coefficient changes by more than a fifth "
                "in one step and may turn negative: raise it to about "
                f"{HORIZON_STEPS * self.batch:,}."
            )
        if self.trunk.method != "lora":
            raise InputError(
                f"trunk.method: found {self.trunk.method!r}, expected 'lora': the reference is the "
                "model without its adapter."
            )

    @property
    def batch(self) -> int:
        """B, the number of completions of a step."""
        return self.groups * self.rows

    def sampling(self, stop_ids: tuple[int, ...]) -> Sampling:
        """Return how completions are sampled: nothing cut off, and no stop id first."""
        return Sampling(
            max_tokens=self.answer_tokens,
            min_tokens=1,
            temperature=self.temperature,
            stop_ids=stop_ids,
        )


def _check_least(name: str, value: float, least: float) -> None:
    if not least <= value < math.inf:
        raise InputError(
            f"{name}: found {value}, expected a number of at least {least:g}; correct it."
        )


def _check_above(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise InputError(f"{name}: found {value}, expected a positive number; correct it.")
