"""Answers of several policies of one kind, a policy for each prompt."""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxalign.arrays import Sizes, check_numpy, check_whole
from jaxalign.errors import InputError
from jaxalign.models.chat import Chat, Completion, generate_texts
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.personalize.policies.kinds import Kind


def answer_as(
    model: LanguageModel,
    policies: Kind,
    weights: ArrayLike,
    which: ArrayLike,
    prompts: Sequence[str | Chat],
    settings: Sampling,
    key: jax.Array,
    *,
    batch_size: int = 64,
    progress: bool = True,
) -> list[Completion]:
    """Answer each prompt by its policy, with one decoding call per mixed batch.

    Whole models answer one after the other, each loaded once.

    Args:
        model: the reference.
        policies: what makes a policy of A weights.
        weights: [W, A] of the policies; zeros are the reference.
        which: [B] int, the policy that answers each prompt.
        prompts: B prompts.
        settings: how tokens are sampled.
        key: random key; an answer depends on its policy, prompt and place, not on the batch.
        batch_size: the most prompts at once. No mixture of policies needs a compilation of its own.
        progress: show a bar on standard error when it takes more than a few seconds.

    Returns:
        B answers, in order.

    Raises:
        InputError: weights that are not finite or of another rank, another number of policies than
            prompts, policies that there are not, or as `generate_texts`.
    """
    weights = check_numpy("weights", weights, "W A", empty="W A")
    sizes = Sizes(B=(len(prompts), "the prompts"))
    chosen = np.asarray(check_whole("which", which, "B", sizes, empty="B"))
    if not len(prompts):
        return []
    if not 0 <= chosen.min() <= chosen.max() < len(weights):
        raise InputError(f"policies are {chosen}; expected numbers from 0 to {len(weights) - 1}.")
    read = [policies.prompt(*pair) for pair in zip(prompts, weights[chosen], strict=True)]
    if not policies.one_at_a_time:
        arguments = policies.stacked(weights).arguments(chosen)
        return generate_texts(
            model, read, settings, key, **arguments, batch_size=batch_size, progress=progress
        )
    answers: dict[int, Completion] = {}
    for policy in np.unique(chosen):
        rows = np.flatnonzero(chosen == policy).tolist()
        found = generate_texts(
            _model_of(model, policies, weights[[policy]]),
            [read[row] for row in rows], settings, key,
            places=rows, batch_size=batch_size, progress=progress,
        )  # fmt: skip
        answers |= dict(zip(rows, found, strict=True))
    return [answers[row] for row in range(len(prompts))]


def _model_of(model: LanguageModel, policies: Kind, weights: np.ndarray) -> LanguageModel:
    """The model with the parameters of the policy of weights [1, A]."""
    params = policies.stacked(weights).params
    return model if params is None else replace(model, params=params)
