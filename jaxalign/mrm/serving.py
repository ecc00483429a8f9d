"""A trained model at work: texts encoded, answers ranked for a user."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr

from jaxalign.arrays import Sizes, check_array
from jaxalign.data import Conversation, Features, lookup
from jaxalign.data.features import columns_named
from jaxalign.errors import InputError
from jaxalign.mrm.adaptation import expected_gain
from jaxalign.mrm.adapted_users import UserState, own_weights, predict_rows, user_state
from jaxalign.mrm.belief import Belief, belief_moments
from jaxalign.mrm.calibrated import moved
from jaxalign.mrm.known_items import effects_of
from jaxalign.mrm.logistic_normal import SCALES, SHARES
from jaxalign.mrm.model import UserModel
from jaxalign.mrm.registry import require
from jaxalign.rewards.reward_scale import expect_scale, stated_scale

if TYPE_CHECKING:
    from jaxalign.models.embed import Encoder

_PAIRS_AT_ONCE = 4096


@functools.lru_cache(maxsize=2)
def _encoder(name: str, sha256: str) -> "Encoder":
    """The encoder of a model, loaded once in a process."""
    from jaxalign.models.embed import load_encoder

    return load_encoder(name, sha256=sha256 or None)


def encode_texts(model: UserModel, texts: Sequence[str], keep: bool = True) -> np.ndarray:
    """Return features [N, E] of texts, by the encoder that the model was trained on.

    Args:
        model: that was trained on texts.
        texts: N of them.
        keep: whether the vectors are kept on disk, and looked up there.

    Raises:
        InputError: the model was trained on given features, or the encoder's weights have changed.
    """
    require_text(model)
    from jaxalign.models.embed import encode, encode_unkept

    encoder = _encoder(model.features.model, model.encoder_sha256)
    pooling = None if model.features.pooling == "auto" else model.features.pooling
    if keep:
        return encode(encoder, list(texts), pooling=pooling)
    return encode_unkept(encoder, list(texts), progress=False, pooling=pooling)


def require_text(model: UserModel) -> None:
    """Refuse a model that cannot read text.

    Raises:
        InputError: the model was trained on given features.
    """
    if model.features.path or model.projection.scale is not None:
        raise InputError(
            "this model was trained on given features and cannot read text: give the texts' "
            "features with --features FILE (for named rewards, `jaxalign reward score` writes it)."
        )


def encode_answers(
    model: UserModel, answers: Sequence[str], prompt: str | None = None
) -> np.ndarray:
    """Return features [N, E] of fresh answers, to one prompt where the choices had prompts.

    Raises:
        InputError: as `encode_texts`, or an answer or the prompt is empty.
    """
    return encode_texts(model, known_texts(answers, prompt), keep=False)


def answer_features(
    model: UserModel,
    answers: Sequence[str],
    prompt: str | None = None,
    features: ArrayLike | None = None,
) -> np.ndarray:
    """Return features [N, E] of answers: those that are given, else encoded from text.

    Raises:
        InputError: features of another shape, NaN or infinity, or as `encode_answers`.
    """
    if features is None:
        return encode_answers(model, answers, prompt)
    # The projection checks the width, and says what to do about it.
    check_array("features", features, "N E", Sizes(N=(len(answers), "the answers")))
    return np.asarray(features)


def known_texts(answers: Sequence[str], prompt: str | None = None) -> Sequence[str]:
    """Return what answers are known by: their texts, with the prompt where there is one."""
    return answers if prompt is None else [Conversation((prompt, answer)) for answer in answers]


def item_features(
    model: UserModel, keys: Sequence[str], texts: Sequence[str], features: Features | None
) -> np.ndarray:
    """Return features [N, E] of items: looked up where given, else encoded from text.

    Raises:
        InputError: an item without features, features of other named rewards than the model's or
            on another scale, or as `encode_texts`.
    """
    if features is None:
        return encode_texts(model, texts)
    scale = model.projection.scale
    if scale is not None:
        features = columns_named(features, scale.names)
        found = stated_scale(features.scale, scale.names, features.source)
        known = (scale.digest, model.stated_scale)
        expect_scale(found, known, features.source, "the user model")
    return lookup(features, list(keys), texts)


@dataclass(frozen=True)
class Ranked:
    """One answer, ranked for a user.

    Attributes:
        position: its number in the given order, from 0.
        text: the answer (or its id).
        score: its reward under the user's mean weights; for a method without weights, the mean of
            its log-odds against these answers.
        probability: probability that the user chooses it over another of these answers, drawn at
            random, the uncertainty about the user integrated out; 1/2 for a single answer.
    """

    position: int
    text: str
    score: float
    probability: float


def rank(
    model: UserModel,
    user: str | Belief | None,
    texts: Sequence[str],
    features: ArrayLike | None = None,
    prompt: str | None = None,
) -> list[Ranked]:
    """Return answers ordered for a user, best first.

    Args:
        model: with `users` where a user is named (`mrm.load(path)` opens those that
            `jaxalign mrm adapt` left beside the model).
        user: whose taste; a belief, as from `update_belief`; None for a user
            without choices, who gets the population's.
        texts: the answers.
        features: [N, E] of the answers, for a model that cannot read text.
        prompt: that the answers are to, where the model was trained on choices with prompts.

    Raises:
        InputError: no texts, a user who was not adapted, a method that cannot score new items, or
            features of another shape or that are not finite.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from jaxalign.mrm import UserModel, rank
        >>> from jaxalign.mrm.reduce import identity
        >>> from jaxalign.mrm.registry import make_method
        >>> fitted, candidate = {"theta": jnp.array([[1.0, 0.0]])}, {"ridge": 0}
        >>> model = UserModel(make_method("bt"), fitted, candidate, np.zeros(2), identity(2))
        >>> ranked = rank(model, None, ["short", "long"], np.array([[0.0, 1.0], [2.0, 0.0]]))
        >>> [entry.text for entry in ranked], round(ranked[0].probability, 2)
        (['long', 'short'], 0.88)
    """
    require(model.method, "new_items", "rank")
    if not texts:
        raise InputError("there are no texts to rank.")
    state = user_state(model, user) if isinstance(user, str) else None
    values = answer_features(model, texts, prompt, features)
    offset = effects_of(model.item_effects, known_texts(texts, prompt))
    score, wins = _scores(model, values, user if isinstance(user, Belief) else state, offset)
    if user is not None and model.gate.by_pairs:
        common = _scores(model, values, None, offset)
        if leaves_alone(model, wins, common[1]):
            score, wins = common
    count = len(texts)
    probability = (wins.sum(1) - 0.5) / (count - 1) if count > 1 else np.full(1, 0.5)
    order = np.argsort(-score, kind="stable")
    return [Ranked(int(i), texts[i], float(score[i]), float(probability[i])) for i in order]


def leaves_alone(model: UserModel, wins: np.ndarray, common: np.ndarray) -> bool:
    """Return whether the model's gate leaves a user alone on the very answers to be ranked.

    Args:
        model: with its gate.
        wins: [N, N] probabilities that the row's answer is chosen over the column's, by the user.
        common: [N, N] by a user without choices.
    """
    pairs = np.triu_indices(len(wins), 1)
    gain = expected_gain(wins[pairs], common[pairs], np.ones(len(pairs[0])))
    return not model.gate.adapts or bool(gain < model.gate.pairs)


def _scores(
    model: UserModel, values: np.ndarray, user: UserState | Belief | None, effects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N] and win probabilities [N, N] by a user's own weights or choices.

    Both are moved by the effects [N] of the answers, in logits.
    """
    if isinstance(user, Belief):
        require(model.method, "posterior", "rank with a belief")
        mean, cov = map(np.asarray, belief_moments(model.prior(), user))
        score, wins = _by_weights(model, values, mean, cov)
    elif "weights" in model.method.capabilities:
        weights = model.population() if user is None else own_weights(model, user)
        score, wins = _by_weights(model, values, *weights)
    else:
        score, wins = _by_choices(model, values, user)
    offset = effects[:, None] - effects[None, :]
    return score + effects, moved(wins, offset, model.temperature)


def _by_weights(
    model: UserModel, values: np.ndarray, mean: np.ndarray, cov: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N] and win probabilities [N, N] under a user's weights."""
    base = model.base(values).astype(np.float64)
    return base @ mean.astype(np.float64), win_probability(mean, cov, base)


def win_probability(mean: np.ndarray, cov: np.ndarray | None, base: np.ndarray) -> np.ndarray:
    """Return the probability [N, N] that the row's answer is chosen over the column's.

    Args:
        mean: [K] of a user's weights.
        cov: [K, K]; None where it is unknown, and the weights are taken to be certain.
        base: [N, K] base rewards of the answers.
    """
    mean, base = mean.astype(np.float64), base.astype(np.float64)
    cov = np.zeros((len(mean), len(mean))) if cov is None else cov.astype(np.float64)
    margin = (base @ mean)[:, None] - (base @ mean)[None, :]
    inner = base @ cov @ base.T
    variance = np.diag(inner)[:, None] + np.diag(inner)[None, :] - 2 * inner
    spread = np.sqrt(1 + np.square(SCALES) * np.maximum(variance, 0)[..., None])
    return ndtr(SCALES * margin[..., None] / spread) @ SHARES


def _by_choices(
    model: UserModel, values: np.ndarray, state: UserState | None
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N] and win probabilities [N, N] from a user's choices, every pair predicted."""
    answers = np.asarray(model.inputs(values))
    count, width = answers.shape
    support, weight = np.zeros((1, 1, 2 * width), np.float32), np.zeros((1, 1), np.float32)
    if state is not None and len(state.rows):
        support, weight = state.rows[None], state.weight[None]
    first, second = np.triu_indices(count, 1)
    wins = np.full((count, count), 0.5)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        one, two = (side[start : start + _PAIRS_AT_ONCE] for side in (first, second))
        query = np.concatenate([answers[one], answers[two]], axis=1)
        found = predict_rows(model, support, weight, query[None])[0]
        wins[one, two], wins[two, one] = found, 1 - found.astype(np.float64)
    likely = np.clip(wins, 1e-12, 1 - 1e-12)
    return np.log(likely / (1 - likely)).mean(1), wins
