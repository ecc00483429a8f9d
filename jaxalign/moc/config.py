"""Settings of training one policy for every preference."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_type_hints

from jaxalign.errors import InputError
from jaxalign.moc.combination import CombineConfig
from jaxalign.moc.preferences import PreferenceConfig
from jaxalign.models.lora import LoraConfig
from jaxalign.models.sampling import Sampling
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.trunk import TrunkConfig

Conditioning = Literal["tags", "token", "none"]


@dataclass(frozen=True)
class KLConfig:
    """Price of leaving the reference.

    Attributes:
        coef: of each token's log-ratio to the reference, in units of scaled reward a nat; the
            first one where it adapts.
        adaptive: raise it while the KL of an answer lies above the target, lower it below.
        target: KL of an answer, nats.
        horizon: answers over which the coefficient may change by a fifth of itself.
        stop: the rest of a step's updates is left out once the policy is further from the one
            that drew the answers than this many targets.
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
class MocConfig:
    """A run of MOC.

    Attributes:
        steps: of rollout and update.
        groups: preferences drawn for a step.
        rows: answers to each preference, every one to another prompt.
        prompt_tokens: most tokens of a prompt, the preference in it included; longer ones are
            left out.
        answer_tokens: most tokens of an answer.
        temperature: of drawing answers; their log-probabilities are taken at it too.
        epochs: passes over the answers of a step.
        minibatches: updates of a pass.
        micro_batches: parts of an update held in memory one after another; a part has whole
            groups.
        gamma: discount a token.
        lam: decay of the advantages.
        clip: of the policy's ratio.
        value_clip: most that a value may profit from moving in a step, in scaled reward.
        value_coef: weight of the values' loss.
        value_dropout: share of the states that the value heads do not see.
        kl: price of leaving the reference.
        combine: how objectives and similarity are brought together.
        preferences: which are drawn.
        conditioning: how the policy is told the preference: in the prompt's text, by one soft
            token before it, or not at all.
        reward: "vector", every reward an objective; "weighted", the one objective sum_j p_j r_j of
            each answer, as plain RLHF has it; or "closeness", the one objective
            -mean_j (r_j - p_j)^2, an ablation.
        trunk: the adapter, precision, memory and devices.
        optimiser: rate, schedule and clipping.
        unstack_layers: copy the layers out of their stack for the rollout. Faster on a GPU; takes
            as much memory again as the model.
        seed: of prompts, preferences, answers, fresh parameters and dropout.
        checkpoint_every: steps between two states on disk.
        tensorboard: write the metrics for TensorBoard too.
    """

    steps: int = 1000
    groups: int = 8
    rows: int = 8
    prompt_tokens: int = 256
    answer_tokens: int = 128
    temperature: float = 0.7
    epochs: int = 4
    minibatches: int = 1
    micro_batches: int = 8
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
    unstack_layers: bool = False
    seed: int = 0
    checkpoint_every: int = 50
    tensorboard: bool = False

    def __post_init__(self) -> None:
        # Not `fields(self)`, whose types are texts where annotations are postponed.
        for name in (name for name, kind in get_type_hints(MocConfig).items() if kind is int):
            _check_least(name, getattr(self, name), 0 if name == "seed" else 1)
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
                "is that of a group's mean; expected 2 or more answers to a preference."
            )
        if self.trunk.method != "lora":
            raise InputError(
                f"trunk.method: found {self.trunk.method!r}, expected 'lora': the reference is the "
                "model without its adapter."
            )

    @property
    def batch(self) -> int:
        """B, the answers of a step."""
        return self.groups * self.rows

    def sampling(self, stop_ids: tuple[int, ...]) -> Sampling:
        """How answers are drawn: nothing cut off, and no stop id first."""
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
