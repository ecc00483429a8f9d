"""A warm start from scored completions, after rewards-in-context (RiC).

Each completion is learned under the preference that its own rewards meet, in the way that the
policy is given preferences. The loss is that of supervised fine-tuning, under the distribution that
the policy samples from. Unlike in RiC, the prompt holds no scores but the preference, no map from
preferences to scores is needed, and no further rounds learn from the policy's own completions.

Source: Yang et al. 2024, https://arxiv.org/abs/2402.10207.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from jaxalign.config_fields import checks_fields
from jaxalign.errors import InputError
from jaxalign.moc.combination import SMALLEST_TOTAL, reward_shares
from jaxalign.moc.fine_tuning import ConditionedCompletions, completion_arrays
from jaxalign.moc.likelihood import Frozen, Likelihood
from jaxalign.moc.policy import TrainedParams
from jaxalign.models.completions import CompletionBatch
from jaxalign.train.loop import LoopConfig, Rows
from jaxalign.train.optimiser import OptimiserConfig
from jaxalign.train.step import Batch, Sums


@dataclass(frozen=True)
@checks_fields
class WarmStartConfig:
    """Fine-tuning on scored completions, before or instead of PPO.

    Attributes:
        data: file or data set with columns `prompt` and `completion`, texts. The rewards of the run
            score them. null for no warm start.
        keep: share of the completions that are learned, above 0 and at most 1: of those that meet
            one preference, the ones with the highest rewards.
        loop: epochs, batches and intervals.
        optimiser: learning rate and schedule.
    """

    data: str | None = None
    keep: float = 0.5
    loop: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=2, batch_size=16))
    optimiser: OptimiserConfig = field(
        default_factory=lambda: OptimiserConfig(rate=5e-4, schedule="constant", clip_norm=1.0)
    )

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise InputError(
                f"warm_start.keep: found {self.keep}, expected a share above 0 and at most 1; "
                "correct it."
            )


def met_preferences(
    levels: NDArray[np.floating], options: NDArray[np.floating], keep: float
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return which completions are learned, and under which preference each.

    A completion meets the option that is nearest to the `reward_shares` of its rewards, negative
    ones counting as 0 since no option has a negative share. Of the completions of one option p,
    those with the largest p . r are kept.

    Args:
        levels: [N, R] rewards of N completions.
        options: [W, R] preferences.
        keep: share that is kept of each option's completions, at least one.

    Returns:
        Rows [M], in order, and the options [M] that they meet. Completions whose positive rewards
        sum to less than `SMALLEST_TOTAL` meet none: their shares are noise.

    Example:
        >>> import numpy as np
        >>> from jaxalign.moc.warm_start import met_preferences
        >>> levels = np.array([[1.0, 0.1], [0.2, 0.0], [0.0, 0.7], [0.0, 0.0]])
        >>> rows, options = met_preferences(levels, np.eye(2), keep=0.5)
        >>> rows.tolist(), options.tolist()
        ([0, 2], [0, 1])
    """
    positive = np.maximum(levels, 0)
    enough = positive.sum(axis=1) >= SMALLEST_TOTAL
    gaps = np.abs(reward_shares(positive)[:, None] - options[None]).sum(axis=2)
    met = gaps.argmin(axis=1)
    kept = []
    for option in range(len(options)):
        rows = np.flatnonzero((met == option) & enough)
        best = rows[np.argsort(-(levels[rows] @ options[option]), kind="stable")]
        kept.append(best[: int(np.ceil(keep * len(rows)))])
    rows = np.sort(np.concatenate(kept))
    return rows, met[rows]


def loss(
    likelihood: Likelihood,
    trained: TrainedParams,
    frozen: Frozen,
    batch: Batch,
    key: jax.Array | None,
) -> Sums:
    """Return the negative log-probability of completions under their preferences, summed.

    Args:
        likelihood: of the policy; static.
        trained: what training changes.
        frozen: parameters of the model.
        batch: of `completion_arrays`.
        key: of dropout; None drops nothing.

    Returns:
        `loss` in nats and `weight`, the tokens of the completions, both [] and at least float32.
    """
    completions = CompletionBatch(*(batch[name] for name in CompletionBatch._fields))
    logprobs = likelihood.logprobs(trained, frozen, completions, batch["preferences"], key)
    return {"loss": -jnp.sum(logprobs), "weight": jnp.sum(completions.mask, dtype=logprobs.dtype)}


def completion_rows(learned: ConditionedCompletions, longest: int) -> Rows:
    """Return completions as the loop takes them.

    Args:
        learned: N completions.
        longest: M, to which completions are padded.
    """
    return Rows(learned.lengths, lambda rows, _: completion_arrays(learned, rows, longest))
