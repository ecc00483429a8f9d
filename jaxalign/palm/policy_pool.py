"""Which trained policies a portfolio is chosen from, and how they are sampled."""

from dataclasses import dataclass, field
from typing import Literal

from jaxalign.config import on_resume
from jaxalign.config_fields import checks_fields
from jaxalign.data.prompts import PromptConfig
from jaxalign.errors import InputError
from jaxalign.rewards.spec import RewardSpec

ANSWER_TOKENS = 128
"""Most tokens of an answer, unless the config or the run of a MOC policy states another number."""
PoolKind = Literal["auto", "separate", "soups", "mixing", "conditioned"]


@dataclass(frozen=True)
@checks_fields
class PolicyPoolConfig:
    """Which policies are made of the folders of `--policies`, and how their answers are sampled.

    Attributes:
        kind: what is made of several adapters. `soups`: models with weighted sums of the adapters,
            the adapters themselves among them; `mixing`: adapters that draw each token together,
            which costs a pass per adapter; `separate`: the adapters and nothing between them.
            `auto` takes `soups` for adapters, and `conditioned` for the folder of a MOC policy.
            Whole models are loaded one at a time, so that `mixing` is not possible among them;
            their soups are weighted sums of all parameters.
        steps: steps between two adapters on the grid of weights, 1 or more. 4 gives 0, 0.25, 0.5,
            0.75 and 1: 15 policies for 3 adapters. A MOC policy is taken under the preferences that
            `moc evaluate` reports: 11 for two rewards, 13 for three.
        rewards: the rewards of the answers, as in a config of `moc train`. Empty for the registered
            rewards that `rewards` of the build names, or else for those of a MOC policy's run.
        prompts: which prompts of the source are used; `hold_out_share` is not used here.
        samples: answers drawn to each prompt by each policy, 2 or more; the certificate states what
            more of them would narrow.
        max_tokens: most tokens of an answer, 1 or more; null takes `moc.answer_tokens` of the run
            of a MOC policy, and 128 for other policies.
        temperature: divides the logits, above 0; 1 samples from the policies as they are.
        dtype: of parameters and compute.
        batch_size: answers sampled at once, 1 or more; lower it, with --resume, if memory runs out.
            It changes no more than the rounding of their probabilities.

    Example:
        >>> from jaxalign.palm.policy_pool import PolicyPoolConfig
        >>> PolicyPoolConfig(steps=2).samples
        8
    """

    kind: PoolKind = "auto"
    steps: int = 4
    rewards: tuple[RewardSpec, ...] = ()
    prompts: PromptConfig = field(default_factory=PromptConfig)
    samples: int = 8
    max_tokens: int | None = None
    temperature: float = 1.0
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = on_resume("any", 32)

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("samples", 2), ("max_tokens", 1), ("batch_size", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}: found {value}, expected {least} or more; correct it.")
        if not self.temperature > 0:
            raise InputError(
                f"temperature: found {self.temperature}, expected above 0; a policy is judged by "
                "answers that it draws."
            )

    @property
    def answer_tokens(self) -> int:
        """Most tokens of an answer, for policies that bring no number of their own."""
        return self.max_tokens or ANSWER_TOKENS
