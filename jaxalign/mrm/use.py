"""A trained model at work: users adapted from their choices, answers ranked for a user."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxalign.data import Features, Preferences, lookup
from jaxalign.data.batching import pad_pairs
from jaxalign.data.splits import rows_by_user
from jaxalign.errors import InputError
from jaxalign.mrm.model import UserModel, infer, win_probability
from jaxalign.mrm.user_weights import UserWeights

FOLDS = 5
_USERS_AT_ONCE = 256


def encode_texts(model: UserModel, texts: Sequence[str]) -> np.ndarray:
    """Features [N, E] of texts, by the encoder that the model was trained on.

    Raises:
        InputError: the model was trained on given features, or the encoder's weights have changed.
    """
    if model.features.path or model.names:
        raise InputError(
            "this model was trained on given features and cannot read text: give the texts' "
            "features with --features FILE"
        )
    from jaxalign.models.embed import encode, load_encoder

    encoder = load_encoder(model.features.model, sha256=model.encoder_sha256 or None)
    pooling = None if model.features.pooling == "auto" else model.features.pooling
    return encode(encoder, list(texts), pooling=pooling)


def item_features(
    model: UserModel, keys: Sequence[str], texts: Sequence[str], features: Features | None
) -> np.ndarray:
    """Features [N, E] of items: looked up by key where given, else encoded from text."""
    if features is not None:
        return lookup(features, list(keys))
    return encode_texts(model, texts)


def adapt_users(
    model: UserModel, choices: Preferences, features: Features | None = None
) -> UserWeights:
    """Every user's weights from that user's choices, with a held-out accuracy to trust them by.

    Args:
        model: a trained model.
        choices: the users' choices.
        features: of the items by id; without it the texts are encoded.

    Returns:
        One row a user, in the order of `choices.users`. `accuracy` is over the user's own strict
        choices, each judged by weights that did not see its group (its fifth of the rows where
        there is one group); NaN where that cannot be done.
    """
    base = model.base(item_features(model, choices.items, choices.texts, features))
    parts = []
    for start in range(0, len(choices.users), _USERS_AT_ONCE):
        names = choices.users[start : start + _USERS_AT_ONCE]
        parts.append(_adapt_some(model, choices, base, names))
    mean, cov, counts, accuracy = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return UserWeights(choices.users, mean, cov, counts, accuracy)


def _adapt_some(
    model: UserModel, choices: Preferences, base: np.ndarray, names: tuple[str, ...]
) -> tuple[np.ndarray, ...]:
    rows = rows_by_user(choices, names)
    longest = max(len(user) + int(choices.tie[user].sum()) for user in rows)
    width = int(2 ** np.ceil(np.log2(max(longest, 8))))  # few shapes, few compilations
    pairs = pad_pairs(choices, rows, width)
    differences = base[pairs.chosen] - base[pairs.rejected]
    mean, cov = infer(model, differences, pairs.weight)
    counts = np.array([len(user) for user in rows])
    return mean, cov, counts, _held_out(model, differences, pairs.weight, pairs.group)


def _held_out(
    model: UserModel, differences: np.ndarray, weight: np.ndarray, group: np.ndarray
) -> np.ndarray:
    """Cross-validated accuracy of each user [U]."""
    groups = np.where(weight > 0, group, 0).max(1) + 1
    positions = np.broadcast_to(np.arange(weight.shape[1]), weight.shape)
    part = np.where(groups[:, None] > 1, group, positions) % FOLDS
    correct = np.zeros(len(weight))
    judged = np.zeros(len(weight))
    for fold in range(FOLDS):
        held = (part == fold) & (weight > 0)
        mean, _ = infer(model, differences, np.where(held, 0, weight).astype(np.float32))
        margin = np.einsum("UPK,UK->UP", differences, mean)
        right = np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))
        strict = held & (weight == 1)
        correct += (right * strict).sum(1)
        judged += strict.sum(1)
    enough = (judged > 0) & ((weight > 0).sum(1) > 1)
    return np.where(enough, correct / np.maximum(judged, 1), np.nan)


@dataclass(frozen=True)
class Ranked:
    """One answer, ranked for a user.

    Attributes:
        position: its number in what was given, from 0.
        text: the answer (or its id).
        score: reward under the user's mean weights.
        probability: that the user would choose it over another of these answers drawn at random,
            the uncertainty of the weights integrated out; 1/2 for a single answer.
    """

    position: int
    text: str
    score: float
    probability: float


def rank(
    model: UserModel, user: str | None, texts: Sequence[str], features: np.ndarray | None = None
) -> list[Ranked]:
    """Answers ordered for a user, best first.

    Args:
        model: with `users` where a user is named (`mrm.load(path)` reads those that
            `jaxalign mrm adapt` left beside the model).
        user: whose taste; None for a user of whom nothing is known, who gets the population's.
        texts: the answers.
        features: [N, E] of the answers, for a model that cannot read text.

    Raises:
        InputError: no texts, or a user who was not adapted.
    """
    if not texts:
        raise InputError("there are no texts to rank")
    mean, cov = user_weights(model, user)
    base = model.base(encode_texts(model, texts) if features is None else features)
    base = base.astype(np.float64)
    score = base @ mean.astype(np.float64)
    wins = win_probability(mean.astype(np.float64), cov.astype(np.float64), base)
    count = len(texts)
    probability = (wins.sum(1) - 0.5) / (count - 1) if count > 1 else np.full(1, 0.5)
    order = np.argsort(-score, kind="stable")
    return [Ranked(int(i), texts[i], float(score[i]), float(probability[i])) for i in order]


def user_weights(model: UserModel, user: str | None) -> tuple[np.ndarray, np.ndarray]:
    """Weights [K] and covariance [K, K] of a user, the population's for None."""
    if user is None:
        return model.population()
    known = model.users.users if model.users else ()
    if user not in known:
        some = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
        have = f"there are {len(known)} ({some})" if known else "there are none"
        raise InputError(
            f"user {user!r} has not been adapted; {have}: run `jaxalign mrm adapt` with this "
            "user's choices, or leave the user out for the population's answer"
        )
    assert model.users is not None
    index = known.index(user)
    return model.users.mean[index], model.users.cov[index]
