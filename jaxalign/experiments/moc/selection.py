"""Choosing among completions that were drawn once, for each preference."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jaxalign.rollout import PolicyRollouts

Floats = NDArray[np.floating]
Places = NDArray[np.intp]


class CompletionChoice(NamedTuple):
    """Which of some rollouts a baseline answers with under each preference.

    Attributes:
        policy: [W, X, n] which of the policies.
        sample: [W, X, n] which of its completions of the prompt.
    """

    policy: Places
    sample: Places


def best_of_n(levels: Floats, preferences: Floats, n: int) -> CompletionChoice:
    """Choose, of every n completions of a prompt, the best for each preference.

    Args:
        levels: [1, X, s n, R] of s n completions of each prompt by one policy.
        preferences: [W, R] on the simplex; a completion is as good as p . r says.
        n: completions to choose from.

    Returns:
        [W, X, s]; of equally good completions the first.

    Example:
        >>> import numpy as np
        >>> from jaxalign.experiments.moc.selection import best_of_n
        >>> levels = np.array([[[[1.0, 0.0], [0.0, 1.0], [0.5, 0.0], [0.2, 0.0]]]])
        >>> best_of_n(levels, np.eye(2), n=2).sample.tolist()
        [[[0, 2]], [[1, 2]]]
    """
    values = np.einsum("XnR,WR->WXn", levels[0], preferences)
    sets = values.reshape(*values.shape[:2], -1, n)
    sample = sets.argmax(axis=3) + n * np.arange(sets.shape[2])
    return CompletionChoice(np.zeros_like(sample), sample)


def best_of_n_kl(n: int) -> float:
    """Return log n - (n - 1) / n nats, the most that the KL of the best of n to its policy is.

    Source: Beirami et al. 2024, https://arxiv.org/abs/2401.01879.

    Example:
        >>> from jaxalign.experiments.moc.selection import best_of_n_kl
        >>> round(best_of_n_kl(16), 3)
        1.835
    """
    return math.log(n) - (n - 1) / n


def best_policy(
    levels: Floats, preferences: Floats, halves: NDArray[np.integer]
) -> CompletionChoice:
    """Choose one policy for each preference on one half of the prompts, for the other half.

    Args:
        levels: [K, X, n, R] of K policies.
        preferences: [W, R] on the simplex; a policy is as good as the mean of p . r says.
        halves: [X] 0 or 1, the half that each prompt is in.

    Returns:
        [W, X, n], the policy that was the best on the half that the prompt is not in.
    """
    values = np.einsum("KXR,WR->WKX", levels.mean(axis=2), preferences)
    means = [values[:, :, halves != half].mean(axis=2) for half in (0, 1)]
    best = np.stack([mean.argmax(axis=1) for mean in means], axis=1)[:, halves]
    shape = (*best.shape, levels.shape[2])
    return CompletionChoice(
        np.broadcast_to(best[:, :, None], shape),
        np.broadcast_to(np.arange(shape[2]), shape),
    )


def chosen(found: PolicyRollouts, choice: CompletionChoice) -> PolicyRollouts:
    """Return the rollouts [W, X, n] of a choice.

    Args:
        found: of K policies and X prompts.
        choice: which of them.
    """
    places = choice.policy, np.arange(choice.policy.shape[1])[None, :, None], choice.sample
    return PolicyRollouts(
        rewards=found.rewards[places],
        logprobs=found.logprobs[places],
        ref_logprobs=found.ref_logprobs[places],
        completion_lengths=found.completion_lengths[places],
        texts=found.texts[places],
    )
