"""Answers drawn and scored under many preferences: a policy told each, or anything that answers."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jaxalign.data.prompts import prompt_text
from jaxalign.errors import InputError
from jaxalign.experiments.moc.evaluation import Evaluation
from jaxalign.moc.preferences import check_simplex
from jaxalign.models.buckets import padded
from jaxalign.models.chat import Chat, check_finite, prompt_ids, text_of, with_stops
from jaxalign.models.completions import reference_logprobs
from jaxalign.models.generate import generate
from jaxalign.models.language import LanguageModel
from jaxalign.models.sampling import Sampling
from jaxalign.progress import track
from jaxalign.rewards.reward_scale import RewardScale
from jaxalign.rewards.vector import TextReward, TokenReward, check_rewards, compute_rewards
from jaxalign.rollout.checks import check_untruncated

Prompts = Sequence[str | Chat]


class EvaluatedPolicy(NamedTuple):
    """Whatever answers under a preference: a MOC policy, a policy for each weight, soups, mixing.

    Attributes:
        name: as it stands in tables.
        model: answers, and is the reference where it answers alone.
        prompts_of: of B prompts and preferences [B, R] float32, to the tokens [B, T] that the
            model reads, and lengths [B].
        arguments: of preferences [B, R] float32, to what `generate` needs besides: adapters and
            their rows, soft tokens, a mixture. Of the same shapes for every call with the same B
            (rows of one preference are adjacent), or each batch compiles anew.
    """

    name: str
    model: LanguageModel
    prompts_of: Callable[[Prompts, NDArray[np.float32]], tuple[ArrayLike, ArrayLike]]
    arguments: Callable[[NDArray[np.float32]], dict[str, Any]]


class _Table(NamedTuple):
    """Texts as tokens [..., T], padding on the right, and their lengths [...]."""

    tokens: NDArray[np.int32]
    lengths: NDArray[np.int32]


class _Scored(NamedTuple):
    """Of rows: raw rewards [B, R], log pi and log pi_ref [B], tokens [B], and the answers."""

    rewards: NDArray[np.float32]
    own: NDArray[np.float64]
    reference: NDArray[np.float64]
    tokens: NDArray[np.int64]
    texts: list[str]


def evaluate_policy(
    speaker: EvaluatedPolicy,
    reward: TextReward | TokenReward,
    scale: RewardScale,
    prompts: Prompts,
    preferences: ArrayLike,
    seen: ArrayLike,
    settings: Sampling,
    key: jax.Array,
    samples: int = 1,
    batch_size: int = 32,
    progress: bool = True,
) -> Evaluation:
    """Draw and score answers to every prompt under every preference.

    All batches have one shape, so that generation compiles once; where the answers to all prompts
    are fewer than a batch, several preferences share one. An answer's key depends on its prompt
    and its number only: under all preferences, and with all speakers, the luck of the draw is the
    same and largely falls out of comparisons.

    Args:
        speaker: who answers.
        reward: R rewards; they see the prompts without the preference.
        scale: that levels are measured on.
        prompts: X of them, texts or chats.
        preferences: [W, R] on the simplex.
        seen: [W] bool, False for those held out of training.
        settings: how answers are drawn, one temperature above 0 and nothing cut off; the model's
            own stop ids are added.
        key: random key.
        samples: answers a prompt.
        batch_size: most answers drawn at once.
        progress: show a bar on stderr when it takes more than a few seconds.

    Returns:
        Evaluation of W preferences, in the order given.

    Raises:
        InputError: fewer than 2 prompts, preferences off the simplex, rewards that are not those
            of the scale, settings under which KL would be infinite, or a reward that fails.
    """
    told, known = _preferences(preferences, seen, reward.names)
    _check(reward, scale, len(prompts), samples, batch_size)
    check_untruncated(settings)
    settings = with_stops(speaker.model, settings)
    bare, texts = (
        _bare(speaker.model, prompts, settings),
        [prompt_text(prompt) for prompt in prompts],
    )
    reads = _reads(speaker, prompts, told)
    places = np.arange(len(prompts) * samples)
    keys = jax.vmap(partial(jax.random.fold_in, key))(places.astype(np.int32))
    score = _scorer(reward)
    parts: list[_Scored] = []
    batches = _batches(len(told), len(places), batch_size)
    total = len(told) * len(places)
    for rows, kept in track(
        f"judging {speaker.name}", batches, total, lambda batch: batch[1], progress
    ):
        which, place = rows // len(places), rows % len(places)
        number = place // samples
        found = generate(
            speaker.model.config,
            speaker.model.params,
            reads.tokens[which, number],
            reads.lengths[which, number],
            keys[place],
            settings,
            **speaker.arguments(told[which]),
        )
        own = np.asarray(found.logprobs, np.float64)[:kept]
        check_finite(speaker.model, own)
        asked = _Table(bare.tokens[number], bare.lengths[number])
        answers = _Table(np.asarray(found.tokens), np.asarray(found.lengths))
        reference = reference_logprobs(speaker.model, *asked, *answers, settings)
        said = [
            text_of(speaker.model, row[:end])
            for row, end in zip(answers.tokens[:kept], answers.lengths, strict=False)
        ]
        read = [texts[row] for row in number[:kept]]
        parts.append(
            _Scored(
                score(asked, answers, read, said, int(rows[0])),
                own.sum(axis=1),
                np.asarray(reference, np.float64)[:kept].sum(axis=1),
                answers.lengths[:kept].astype(np.int64),
                said,
            )
        )
    shape = (len(told), len(prompts), samples)
    return _gathered(speaker, scale, told, known, texts, _joined(parts), shape, settings)


def _scorer(reward: TextReward | TokenReward) -> Callable[..., NDArray[np.float32]]:
    """Raw rewards [n, R] of the first n rows of a batch, n the number of its texts."""
    if isinstance(reward, TextReward):
        return lambda asked, answers, read, said, first: compute_rewards(reward, read, said, first)
    compiled = jax.jit(reward.function)

    def of_tokens(
        asked: _Table, answers: _Table, read: list[str], said: list[str], first: int
    ) -> NDArray[np.float32]:
        values = np.asarray(compiled(*asked, *answers))
        # A wrong shape is named whole; the rows that only fill the batch are cut off where it fits.
        whole = values if len(values) != len(answers.tokens) else values[: len(said)]
        return check_rewards(reward, whole, read, said, first)

    return of_tokens


def _gathered(
    speaker: EvaluatedPolicy,
    scale: RewardScale,
    told: NDArray[np.float32],
    known: NDArray[np.bool_],
    texts: list[str],
    scored: _Scored,
    shape: tuple[int, int, int],
    settings: Sampling,
) -> Evaluation:
    """Rows in the order of preference, prompt and sample, brought together."""
    levels = np.asarray(scale.levels(scored.rewards.astype(np.float64)))
    per_preference = shape[0], shape[1] * shape[2]
    nats, counts = scored.own.reshape(per_preference), scored.tokens.reshape(per_preference)
    said = np.array(scored.texts, object).reshape(shape)[:, :, 0]
    return Evaluation(
        speaker=speaker.name,
        names=scale.names,
        digest=scale.digest,
        # 0.7 as it was meant, not as float32 has it.
        preferences=told.astype(np.float64).round(7),
        seen=known,
        rewards=levels.reshape(*shape, -1).mean(axis=2),
        kl=(scored.own - scored.reference).reshape(shape).mean(axis=2),
        # Of all tokens drawn alike: an answer's own mean would favour short ones.
        entropy=-nats.sum(axis=1) / np.maximum(counts.sum(axis=1), 1),
        tokens=counts.mean(axis=1),
        prompts=tuple(texts),
        answers=tuple(tuple(row) for row in said.tolist()),
        samples=shape[2],
        temperature=float(np.asarray(settings.temperature)),
    )


def _joined(parts: list[_Scored]) -> _Scored:
    return _Scored(
        rewards=np.concatenate([part.rewards for part in parts]),
        own=np.concatenate([part.own for part in parts]),
        reference=np.concatenate([part.reference for part in parts]),
        tokens=np.concatenate([part.tokens for part in parts]),
        texts=[text for part in parts for text in part.texts],
    )


def _batches(
    preferences: int, each: int, batch_size: int
) -> Iterator[tuple[NDArray[np.intp], int]]:
    """Rows in batches of one size and how many of each are new; filled up with the last one.

    A batch holds several whole preferences, or an even part of one: what a speaker makes of the
    preferences of a batch then has one shape too.
    """
    several = min(batch_size // each, preferences)
    if several >= 1:
        spans = [
            (first * each, min(first + several, preferences) * each)
            for first in range(0, preferences, several)
        ]
        size = several * each
    else:
        size = math.ceil(each / math.ceil(each / batch_size))
        spans = [
            (which * each + start, which * each + min(start + size, each))
            for which in range(preferences)
            for start in range(0, each, size)
        ]
    for start, end in spans:
        yield np.minimum(np.arange(start, start + size), end - 1), end - start


def _bare(model: LanguageModel, prompts: Prompts, settings: Sampling) -> _Table:
    """The prompts without a preference, as the reference and the rewards read them."""
    ids = [
        prompt_ids(model, prompt, settings.max_tokens, f"prompt {number}")
        for number, prompt in enumerate(prompts)
    ]
    lengths = np.array([len(row) for row in ids], np.int32)
    return _Table(padded(ids, (len(ids), int(lengths.max()))), lengths)


def _reads(speaker: EvaluatedPolicy, prompts: Prompts, told: NDArray[np.float32]) -> _Table:
    """What the speaker reads: tokens [W, X, T] and lengths [W, X], one T for all preferences."""
    tables = []
    for preference in told:
        rows = np.tile(preference, (len(prompts), 1))
        tokens, lengths = (np.asarray(part) for part in speaker.prompts_of(prompts, rows))
        if tokens.ndim != 2 or lengths.shape != (len(prompts),) or len(tokens) != len(prompts):
            raise InputError(
                f"{speaker.name}: prompts_of gave tokens {tokens.shape} and lengths "
                f"{lengths.shape} for {len(prompts)} prompts; expected [B, T] and [B]."
            )
        tables.append(_Table(tokens.astype(np.int32), lengths.astype(np.int32)))
    width = int(max(table.lengths.max() for table in tables))
    joined = np.zeros((len(told), len(prompts), width), np.int32)
    for place, table in zip(joined, tables, strict=True):
        place[:, : table.tokens.shape[1]] = table.tokens[:, :width]
    return _Table(joined, np.stack([table.lengths for table in tables]))


def _preferences(
    preferences: ArrayLike, seen: ArrayLike, names: tuple[str, ...]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    told, known = check_simplex(np.atleast_2d(preferences), names, "preferences"), np.asarray(seen)
    if known.shape != told.shape[:1] or known.dtype != np.bool_:
        raise InputError(
            f"seen: found {known.dtype} {known.shape}, expected a bool for each of {len(told)} "
            "preferences."
        )
    return told, known


def _check(
    reward: TextReward | TokenReward,
    scale: RewardScale,
    prompts: int,
    samples: int,
    batch_size: int,
) -> None:
    if reward.names != scale.names:
        raise InputError(
            f"found rewards {', '.join(reward.names)} and a scale of {', '.join(scale.names)}; "
            "expected the same in the same order."
        )
    if prompts < 2 or samples < 1 or batch_size < 1:
        raise InputError(
            f"found {prompts} prompts, {samples} answers each and batches of {batch_size}; "
            "expected at least 2 prompts, an answer each, and batches of at least 1."
        )
