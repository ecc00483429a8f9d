"""Judging a policy: its completions under many preferences, scored and brought together."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from jaxalign.data.messages import prompt_text
from jaxalign.data.prompts import Prompt
from jaxalign.errors import InputError
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.moc.preferences import (
    PreferenceConfig,
    check_simplex,
    evaluation_points,
    preference_tag,
    trained_on,
)
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.vector import TextReward, TokenReward
from jaxalign.rollout import PolicyFamily, PolicyRollouts, rollout_policies


class EvaluatedPolicy(NamedTuple):
    """A policy to be judged, and the preferences that it is judged under.

    Attributes:
        name: in tables and plots.
        model: the reference, and what the policy adapts.
        policies: the kind of policy: conditioned, soups, mixing or separate.
        preferences: [W, R] on the simplex.
        weights: [W, A] that make the policy of each preference.
        seen: [W] bool, False for preferences that training did not sample.
    """

    name: str
    model: LanguageModel
    policies: PolicyFamily
    preferences: NDArray[np.float32]
    weights: NDArray[np.floating]
    seen: NDArray[np.bool_]


def judged_preferences(
    names: Sequence[str], config: PreferenceConfig
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the preferences that a policy is judged under: the literature's, and those held out.

    Args:
        names: [R] names of the rewards.
        config: of the preferences that the policy was trained on.

    Returns:
        [W, R] on the simplex, and [W] bool, whether training can sample it (`trained_on`).

    Example:
        >>> from jaxalign.experiments.moc.judge import judged_preferences
        >>> from jaxalign.moc import PreferenceConfig
        >>> points, seen = judged_preferences(("a", "b"), PreferenceConfig(held_out=((0.5, 0.5),)))
        >>> points.shape, points[~seen].tolist()
        ((11, 2), [[0.5, 0.5]])
    """
    usual, held = evaluation_points(len(names)), np.array(config.held_out, np.float32)
    points = {preference_tag(names, row, config.decimals): row for row in usual}
    for row in held:
        points.setdefault(preference_tag(names, row, config.decimals), row)
    found = np.stack(list(points.values())).astype(np.float32)
    return found, trained_on(names, found, config)


def evaluate_policy(
    evaluated: EvaluatedPolicy,
    reward: TextReward | TokenReward,
    scale: RewardScale,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    key: jax.Array,
    samples: int = 1,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Sample and score completions of every prompt under every preference.

    Args:
        evaluated: the policy and its W preferences.
        reward: R rewards; they read the prompts without the preference.
        scale: scale of the rewards.
        prompts: X of them, texts or chats.
        sampling: one temperature above 0 and nothing cut off; the model's stop ids are added.
        key: random key; with the same key, all policies draw with common random numbers.
        samples: completions of each prompt.
        batch_size: the most completions that are decoded at once.
        progress: show a bar on standard error when it takes more than a few seconds.

    Returns:
        Evaluation under the W preferences, in the order given.

    Raises:
        InputError: fewer than 2 prompts, preferences off the simplex, rewards that are not those
            of the scale, settings under which the KL is infinite, or a reward that fails.
    """
    preferences = check_simplex(evaluated.preferences, reward.names, "preferences")
    _check(evaluated, reward, scale, len(prompts), samples, batch_size)
    found = rollout_policies(
        evaluated.model, evaluated.policies, evaluated.weights, prompts, reward, sampling, key,
        samples=samples, batch_size=batch_size, title=f"judging {evaluated.name}",
        progress=progress,
    )  # fmt: skip
    return summarise(evaluated.name, preferences, evaluated.seen, found, scale, prompts, sampling)


def summarise(
    name: str,
    preferences: NDArray[np.float32],
    seen: NDArray[np.bool_],
    found: PolicyRollouts,
    scale: RewardScale,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    kl: float | None = None,
) -> Evaluation:
    """Return what rollouts under W preferences show.

    Args:
        name: of the policy.
        preferences: [W, R] on the simplex.
        seen: [W] bool, False for preferences that training did not sample.
        found: the rollouts [W, X, n].
        scale: scale of the rewards.
        prompts: X of them.
        sampling: that the completions were drawn by.
        kl: nats per completion, where the log-probabilities do not give it.
    """
    nats = found.logprobs.reshape(len(preferences), -1)
    lengths = found.completion_lengths.reshape(len(preferences), -1)
    measured = (found.logprobs - found.ref_logprobs).mean(axis=2)
    return Evaluation(
        policy=name,
        scale=scale,
        # 0.7 as it was meant, not as float32 has it.
        preferences=preferences.astype(np.float64).round(7),
        seen=seen,
        rewards=scale.levels(found.rewards.astype(np.float64)).mean(axis=2),
        kl=measured if kl is None else np.full(measured.shape, kl),
        # Of all tokens drawn alike: the mean of each completion would favour short ones.
        entropy=-nats.sum(axis=1) / np.maximum(lengths.sum(axis=1), 1),
        tokens=lengths.mean(axis=1),
        prompts=tuple(prompt_text(prompt) for prompt in prompts),
        completions=tuple(tuple(row) for row in found.texts[:, :, 0].tolist()),
        samples=found.rewards.shape[2],
        temperature=float(np.asarray(sampling.temperature)),
    )


def _check(
    evaluated: EvaluatedPolicy,
    reward: TextReward | TokenReward,
    scale: RewardScale,
    prompts: int,
    samples: int,
    batch_size: int,
) -> None:
    seen = evaluated.seen
    if seen.shape != (len(evaluated.preferences),) or seen.dtype != np.bool_:
        raise InputError(
            f"seen: found {seen.dtype} {seen.shape}, expected a bool for each of "
            f"{len(evaluated.preferences)} preferences."
        )
    if reward.names != scale.names:
        raise InputError(
            f"found rewards {', '.join(reward.names)} and a scale of {', '.join(scale.names)}; "
            "expected the same in the same order."
        )
    if prompts < 2 or samples < 1 or batch_size < 1:
        raise InputError(
            f"found {prompts} prompts, {samples} completions each and batches of {batch_size}; "
            "expected at least 2 prompts, a completion each, and batches of at least 1."
        )
