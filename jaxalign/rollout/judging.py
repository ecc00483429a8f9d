"""Completions of many policies to the same prompts, drawn with common random numbers."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.arrays import check_count, check_numpy
from jaxalign.data.messages import prompt_text
from jaxalign.errors import InputError
from jaxalign.models.buckets import padded
from jaxalign.models.chat import Chat, check_finite, prompt_ids, with_stops
from jaxalign.models.completions import CompletionBatch, reference_logprobs
from jaxalign.models.generate import generate
from jaxalign.models.global_arrays import to_host
from jaxalign.models.language import LanguageModel
from jaxalign.models.params import Params
from jaxalign.models.sampling import Sampling
from jaxalign.progress import track
from jaxalign.rewards.vector import TextReward, TokenReward, check_rewards, compute_rewards
from jaxalign.rollout.batch import Rollout, completion_texts, sample_and_score, token_rewards
from jaxalign.rollout.checks import check_untruncated
from jaxalign.rollout.policies import GenerationArguments, PolicyFamily

Prompts = Sequence[str | Chat]


class PolicyRollouts(NamedTuple):
    """What W policies answered to X prompts, n completions each.

    Attributes:
        rewards: [W, X, n, R] raw rewards.
        logprobs: [W, X, n] log-probability of each completion under its policy, nats.
        ref_logprobs: [W, X, n] under the reference, which reads the plain prompt.
        completion_lengths: [W, X, n] in tokens.
        texts: [W, X, n] of str.
    """

    rewards: NDArray[np.float32]
    logprobs: NDArray[np.float64]
    ref_logprobs: NDArray[np.float64]
    completion_lengths: NDArray[np.int64]
    texts: NDArray[np.object_]


class _Prompts(NamedTuple):
    """Prompts as tokens [..., T], padding on the right, and their lengths [...]."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]


def rollout_policies(
    model: LanguageModel,
    policies: PolicyFamily,
    weights: ArrayLike,
    prompts: Prompts,
    reward: TextReward | TokenReward,
    sampling: Sampling,
    key: jax.Array,
    *,
    samples: int = 1,
    batch_size: int = 32,
    title: str = "sampling",
    progress: bool = True,
) -> PolicyRollouts:
    """Sample and score completions of every policy to every prompt.

    All batches have one shape, so that generation compiles once. Where the completions of a policy
    are fewer than a batch, several policies share one. The key of a completion depends on its
    prompt and its number only: all policies draw with common random numbers, whose noise largely
    cancels in comparisons.

    Args:
        model: the reference, and what the policies adapt.
        policies: kind of the policies.
        weights: [W, A], one row for each policy; a row of zeros is the reference.
        prompts: X of them, texts or chats, without preferences.
        reward: R rewards; they read the plain prompts.
        sampling: one temperature above 0 and nothing cut off; the model's stop ids are added.
        key: random key.
        samples: n, completions of each prompt by each policy.
        batch_size: the most completions that are decoded at once.
        title: of the progress bar.
        progress: show a bar on standard error when it takes more than a few seconds.

    Returns:
        Rollouts in the order of the weights and prompts.

    Raises:
        InputError: weights of another rank or that are not finite, no prompts, a number of samples
            or a batch size below 1, settings under which the KL is infinite, a prompt without room
            in the context, a reward that fails, or a model whose logits are not finite.
    """
    weights = check_numpy("weights", weights, "W A", empty="A")
    samples, batch_size = check_count("samples", samples), check_count("batch_size", batch_size)
    if not prompts:
        raise InputError("prompts: found none, expected at least one; give some.")
    check_untruncated(sampling)
    sampling = with_stops(model, sampling)
    each = len(prompts) * samples
    places = np.arange(each, dtype=np.int32)
    sampler = _Sampler(
        model,
        sampling,
        *_tokenize(model, policies, weights, prompts, sampling.max_tokens),
        [prompt_text(prompt) for prompt in prompts],
        jax.vmap(partial(jax.random.fold_in, key))(places),
        samples,
        np.asarray(weights.any(axis=1)),
        _reward_function(reward),
    )
    alone = policies.one_at_a_time
    several = 1 if alone else max(1, min(batch_size // each, len(weights)))
    start, stacked = -1, None
    parts: list[_Part] = []
    batches = _batches(len(weights), each, batch_size, alone)
    for rows, kept in track(title, batches, len(weights) * each, lambda batch: batch[1], progress):
        first = int(rows[0]) // each
        if stacked is None or first != start:
            members = np.minimum(np.arange(first, first + several), len(weights) - 1)
            stacked = None  # whole models leave memory before the next one is loaded
            start, stacked = first, policies.stacked(weights[members])
        arguments = stacked.arguments(rows // each - first)
        # No name for the parameters: it would keep them in memory.
        parts.append(sampler.batch(rows, kept, stacked.params or model.params, arguments))
    return _gathered(parts, (len(weights), len(prompts), samples), weights)


class _Drawn(NamedTuple):
    """Completions of a batch after their plain prompts, and texts of the first of them."""

    completions: CompletionBatch
    logprobs: NDArray[np.float64]
    prompts: list[str]
    texts: list[str]
    row: int


_Part = Rollout[_Drawn, jax.Array | NDArray[np.float64], NDArray[np.float32]]
_Reward = Callable[[_Drawn], NDArray[np.float32]]


@dataclass(frozen=True)
class _Sampler:
    """What all batches share: `plain` and `read` are the prompts of reference and policies."""

    model: LanguageModel
    sampling: Sampling
    plain: _Prompts
    read: _Prompts
    texts: list[str]
    keys: jax.Array
    samples: int
    adapted: NDArray[np.bool_]
    reward: _Reward

    def batch(
        self, rows: NDArray[np.intp], kept: int, params: Params, arguments: GenerationArguments
    ) -> _Part:
        """Rollout of rows numbered by policy, prompt and sample; only the first `kept` count."""
        which, place = rows // len(self.keys), rows % len(self.keys)
        number = place // self.samples

        def sample() -> _Drawn:
            found = generate(
                self.model.config,
                params,
                self.read.tokens[which, number],
                self.read.lengths[which, number],
                self.keys[place],
                self.sampling,
                **arguments,
            )
            found = to_host(found)
            logprobs = np.asarray(found.logprobs, np.float64)[:kept]
            check_finite(self.model, logprobs)
            completions = CompletionBatch(
                self.plain.tokens[number],
                self.plain.lengths[number],
                np.asarray(found.tokens),
                np.asarray(found.lengths),
            )
            prompts = [self.texts[prompt] for prompt in number[:kept]]
            said = completion_texts(self.model, completions, kept)
            return _Drawn(completions, logprobs, prompts, said, int(rows[0]))

        def score(drawn: _Drawn) -> jax.Array | NDArray[np.float64]:
            if not self.adapted[which].any():
                return drawn.logprobs
            return to_host(reference_logprobs(self.model, drawn.completions, self.sampling))

        return sample_and_score(sample, score, self.reward)


def _reward_function(reward: TextReward | TokenReward) -> _Reward:
    """Raw rewards [n, R] of the n completions of a batch that have texts."""
    if isinstance(reward, TextReward):
        return lambda drawn: compute_rewards(reward, drawn.prompts, drawn.texts, drawn.row)
    compiled = jax.jit(partial(token_rewards, reward))

    def of_tokens(drawn: _Drawn) -> NDArray[np.float32]:
        values = np.asarray(compiled(drawn.completions))[: len(drawn.texts)]
        return check_rewards(reward, values, drawn.prompts, drawn.texts, drawn.row)

    return of_tokens


def _gathered(
    parts: list[_Part], shape: tuple[int, int, int], weights: NDArray[np.float64]
) -> PolicyRollouts:
    """Batches in the order of policy, prompt and sample, brought together."""
    drawn = [part.completions for part in parts]
    logprobs = np.concatenate([one.logprobs.sum(axis=1) for one in drawn]).reshape(shape)
    scores = [
        np.asarray(part.scores, np.float64)[: len(part.completions.texts)].sum(axis=1)
        for part in parts
    ]
    reference = np.concatenate(scores).reshape(shape)
    # Where no adapter is applied, what differs is rounding.
    plain = ~weights.any(axis=1)
    reference[plain] = logprobs[plain]
    lengths = [one.completions.completion_lengths[: len(one.texts)] for one in drawn]
    return PolicyRollouts(
        rewards=np.concatenate([part.rewards for part in parts]).reshape(*shape, -1),
        logprobs=logprobs,
        ref_logprobs=reference,
        completion_lengths=np.concatenate(lengths).astype(np.int64).reshape(shape),
        texts=np.array([text for one in drawn for text in one.texts], object).reshape(shape),
    )


def _batches(
    policies: int, each: int, batch_size: int, alone: bool = False
) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Rows in batches of one size and how many of each are new; filled up with the last one.

    A batch holds the completions of several whole policies, or an even part of those of one.
    """
    several = min(batch_size // each, 1 if alone else policies)
    if several >= 1:
        spans = [
            (first * each, min(first + several, policies) * each)
            for first in range(0, policies, several)
        ]
        size = several * each
    else:
        size = math.ceil(each / math.ceil(each / batch_size))
        spans = [
            (which * each + start, which * each + min(start + size, each))
            for which in range(policies)
            for start in range(0, each, size)
        ]
    for start, end in spans:
        yield np.minimum(np.arange(start, start + size), end - 1), end - start


def _tokenize(
    model: LanguageModel,
    policies: PolicyFamily,
    weights: NDArray[np.float64],
    prompts: Prompts,
    max_tokens: int,
) -> tuple[_Prompts, _Prompts]:
    """The plain prompts [X, T], and as each policy reads them [W, X, T], one T for all policies."""
    plain = [
        prompt_ids(model, prompt, max_tokens, f"prompt {number}")
        for number, prompt in enumerate(prompts)
    ]
    read: list[list[int]] = []
    reserved = max_tokens + policies.prefix_tokens
    for weight in weights:
        for number, prompt in enumerate(prompts):
            own = policies.prompt(prompt, weight)
            same = own is prompt and not policies.prefix_tokens
            ids = plain[number] if same else prompt_ids(model, own, reserved, f"prompt {number}")
            read.append(ids)
    whole = _table(read)
    shape = len(weights), len(prompts)
    return _table(plain), _Prompts(whole.tokens.reshape(*shape, -1), whole.lengths.reshape(shape))


def _table(ids: Sequence[Sequence[int]]) -> _Prompts:
    lengths = np.array([len(row) for row in ids], np.int32)
    return _Prompts(padded(ids, (len(ids), int(lengths.max()))), lengths)
