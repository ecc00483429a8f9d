"""One batch: sample completions, score their log-probabilities, compute their rewards."""

from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jaxalign.errors import InputError
from jaxalign.models.chat import text_of
from jaxalign.models.completions import CompletionBatch
from jaxalign.models.language import LanguageModel
from jaxalign.rewards.vector import TokenReward

Completions = TypeVar("Completions")
Scores = TypeVar("Scores")
Rewards = TypeVar("Rewards")


class Rollout(NamedTuple, Generic[Completions, Scores, Rewards]):
    """Completions with what training or judging needs of them, in the forms of its callers.

    Attributes:
        completions: B prompts and completions.
        scores: their log-probabilities.
        rewards: their raw rewards.
    """

    completions: Completions
    scores: Scores
    rewards: Rewards


def sample_and_score(
    sample: Callable[[], Completions],
    score: Callable[[Completions], Scores],
    reward: Callable[[Completions], Rewards],
) -> Rollout[Completions, Scores, Rewards]:
    """Sample the completions of one batch, score them, and compute their rewards.

    Traced inside one program where the rewards are traced. Otherwise scoring is dispatched before
    the rewards, so that the device works while the host computes them.

    Args:
        sample: returns B prompts with sampled completions.
        score: returns log-probabilities of the completions, under the policy and the reference.
        reward: returns raw rewards of the completions, R for each.

    Returns:
        The three results.

    Example:
        >>> import numpy as np
        >>> from jaxalign.models.completions import CompletionBatch
        >>> from jaxalign.rollout import sample_and_score
        >>> tokens, lengths = np.array([[5, 6]]), np.array([2])
        >>> rollout = sample_and_score(
        ...     sample=lambda: CompletionBatch(np.array([[1]]), np.array([1]), tokens, lengths),
        ...     score=lambda batch: np.full(batch.completions.shape, -0.5),
        ...     reward=lambda batch: batch.completion_lengths[:, None] * 1.0,
        ... )
        >>> rollout.scores, rollout.rewards
        (array([[-0.5, -0.5]]), array([[2.]]))
    """
    completions = sample()
    scores = score(completions)
    return Rollout(completions, scores, reward(completions))


def completion_texts(
    model: LanguageModel, completions: CompletionBatch, rows: int | None = None
) -> list[str]:
    """Return the first completions of a batch as texts, without special tokens.

    Args:
        model: whose tokenizer is used.
        completions: B of them, on the host or the device.
        rows: how many; None for all B.
    """
    tokens, ends = jax.device_get((completions.completions, completions.completion_lengths))
    return [text_of(model, row[:end]) for row, end in zip(tokens[:rows], ends, strict=rows is None)]


def token_rewards(reward: TokenReward, completions: CompletionBatch) -> jax.Array:
    """Return the raw rewards of completions from their tokens; traced or not.

    Args:
        reward: R rewards.
        completions: B completions, after prompts without preference tags.

    Returns:
        [B, R].

    Raises:
        InputError: the reward function gives another shape.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.models.completions import CompletionBatch
        >>> from jaxalign.rewards.vector import TokenReward
        >>> from jaxalign.rollout import token_rewards
        >>> brevity = TokenReward(
        ...     ("brevity",), lambda prompts, lengths, tokens, ends: -1.0 * ends[:, None], "v1"
        ... )
        >>> batch = CompletionBatch(*map(jnp.asarray, ([[1]], [1], [[5, 6]], [2])))
        >>> token_rewards(brevity, batch).tolist()
        [[-2.0]]
    """
    values = reward.function(*map(jnp.asarray, completions))
    expected = (len(completions.completion_lengths), len(reward.names))
    if values.shape != expected:
        raise InputError(
            f"the reward {', '.join(reward.names)} gave shape {values.shape} where {expected} was "
            "expected, a row for each completion and a column for each name; correct the reward."
        )
    return values
