"""A trained model at work: users adapted from their choices, answers ranked for a user."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data import Features, Preferences, lookup
from jaxalign.data.batching import Pairs, pad_pairs
from jaxalign.data.features import columns_named
from jaxalign.data.splits import learned_from, rows_by_user
from jaxalign.errors import InputError
from jaxalign.mrm.adapted_users import AdaptedUsers, UserSupports, UserWeights, place_of
from jaxalign.mrm.model import UserModel, infer
from jaxalign.mrm.registry import require
from jaxalign.mrm.support_query import on_device

FOLDS = 5
_USERS_AT_ONCE = 256
_PAIRS_AT_ONCE = 4096


def encode_texts(model: UserModel, texts: Sequence[str]) -> np.ndarray:
    """Return features [N, E] of texts, by the encoder that the model was trained on.

    Raises:
        InputError: the model was trained on given features, or the encoder's weights have changed.
    """
    if model.features.path or model.projection.scale is not None:
        raise InputError(
            "this model was trained on given features and cannot read text: give the texts' "
            "features with --features FILE."
        )
    from jaxalign.models.embed import encode, load_encoder

    encoder = load_encoder(model.features.model, sha256=model.encoder_sha256 or None)
    pooling = None if model.features.pooling == "auto" else model.features.pooling
    return encode(encoder, list(texts), pooling=pooling)


def item_features(
    model: UserModel, keys: Sequence[str], texts: Sequence[str], features: Features | None
) -> np.ndarray:
    """Return features [N, E] of items: looked up where given, else encoded from text.

    Raises:
        InputError: an item without features, features of other named rewards than the model's, or
            as `encode_texts`.
    """
    if features is None:
        return encode_texts(model, texts)
    if model.projection.scale is not None:
        features = columns_named(features, model.projection.scale.names, "the feature file")
    return lookup(features, list(keys), texts)


def adapt_users(
    model: UserModel, choices: Preferences, features: Features | None = None
) -> AdaptedUsers:
    """Return every user adapted on that user's choices, with a held-out accuracy.

    Rows that the source holds out are not adapted on: the accuracy is measured on them. Where it
    holds none out, each strict choice is judged by a fit that did not see its group (its fifth of
    the rows where there is one group).

    Args:
        model: a trained model.
        choices: the users' choices.
        features: of the items by id; without it the texts are encoded.

    Returns:
        `UserWeights` where the method represents users by weights, else `UserSupports`; one row
        per user, in the order of `choices.users`.

    Raises:
        InputError: the method cannot score new items, or features that do not fit.

    Example:
        >>> import jax.numpy as jnp
        >>> import numpy as np
        >>> from jaxalign.data.features import Features
        >>> from jaxalign.data.preferences import Preferences
        >>> from jaxalign.mrm import UserModel, adapt_users
        >>> from jaxalign.mrm.reduce import identity
        >>> from jaxalign.mrm.registry import make_method
        >>> one, none = np.zeros(1, np.int32), np.full(1, -1, np.int32)
        >>> no = np.zeros(1, bool)
        >>> ids = ("a", "b")
        >>> choices = Preferences(("ann",), ids, ids, one, one, one + 1, one, none, no)
        >>> fitted = {"mean": jnp.zeros((1, 2)), "cov": jnp.eye(2)[None], "step": jnp.ones(1)}
        >>> bayes, candidate = make_method("bayes"), {"em": 0, "adapt": True}
        >>> model = UserModel(bayes, fitted, candidate, np.zeros(2), identity(2))
        >>> users = adapt_users(model, choices, Features(ids, np.eye(2)))
        >>> users.users, bool(users.mean[0, 0] > 0 > users.mean[0, 1])
        (('ann',), True)
    """
    require(model.method, "new_items", "adapt")
    raw = item_features(model, choices.items, choices.texts, features)
    table = model.inputs(raw)
    chunks = [
        choices.users[start : start + _USERS_AT_ONCE]
        for start in range(0, len(choices.users), _USERS_AT_ONCE)
    ]
    pairs = [_pairs(choices, names) for names in chunks]
    counts = np.array([len(rows) for rows in learned_from(choices, choices.users)])
    accuracy = np.concatenate(
        [_accuracy(model, choices, table, *part) for part in zip(chunks, pairs, strict=True)]
    )
    shared = (choices.users, counts, accuracy, model.digest)
    if "weights" not in model.method.capabilities:
        return _supports(np.asarray(table), pairs, shared)
    base = model.base(raw)
    found = [infer(model, base[p.chosen] - base[p.rejected], p.weight) for p in pairs]
    means = np.concatenate([mean for mean, _ in found])
    covs = [cov for _, cov in found if cov is not None]
    return UserWeights(*shared, means, np.concatenate(covs) if covs else None, model.reward_ids)


def _pairs(choices: Preferences, names: tuple[str, ...]) -> Pairs:
    """Choices to adapt on, padded to a power of two: few shapes, few compilations."""
    rows = learned_from(choices, names)
    longest = max(len(user) + int(choices.tie[user].sum()) for user in rows)
    return pad_pairs(choices, rows, int(2 ** np.ceil(np.log2(max(longest, 8)))))


def _supports(
    table: np.ndarray,
    parts: list[Pairs],
    shared: tuple[tuple[str, ...], np.ndarray, np.ndarray, str],
) -> UserSupports:
    users = [Pairs(*user) for part in parts for user in zip(*part, strict=True)]
    real = [user.weight > 0 for user in users]
    return UserSupports(
        *shared,
        tuple(table[user.chosen[keep]] for user, keep in zip(users, real, strict=True)),
        tuple(table[user.rejected[keep]] for user, keep in zip(users, real, strict=True)),
        tuple(user.weight[keep] for user, keep in zip(users, real, strict=True)),
    )


def _accuracy(
    model: UserModel, choices: Preferences, table: jax.Array, names: tuple[str, ...], pairs: Pairs
) -> np.ndarray:
    """Held-out accuracy of each user [U], NaN where there is nothing to measure it on."""
    weight = pairs.weight
    if choices.held_out is not None:
        held = [user[choices.held_out[user]] for user in rows_by_user(choices, names)]
        query = pad_pairs(choices, held)
        right, judged = _right(model, table, pairs, query, query.weight == 1)
        return np.where(judged > 0, right / np.maximum(judged, 1), np.nan)
    groups = np.where(weight > 0, pairs.group, 0).max(1) + 1
    positions = np.broadcast_to(np.arange(weight.shape[1]), weight.shape)
    part = np.where(groups[:, None] > 1, pairs.group, positions) % FOLDS
    correct, judged = np.zeros(len(weight)), np.zeros(len(weight))
    for fold in range(FOLDS):
        held_out = (part == fold) & (weight > 0)
        known = pairs._replace(weight=np.where(held_out, 0, weight).astype(np.float32))
        right, strict = _right(model, table, known, pairs, held_out & (weight == 1))
        correct += right
        judged += strict
    enough = (judged > 0) & ((weight > 0).sum(1) > 1)
    return np.where(enough, correct / np.maximum(judged, 1), np.nan)


def _right(
    model: UserModel, table: jax.Array, support: Pairs, query: Pairs, judged: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Number of judged query pairs of each user that are predicted right, and of all of them."""
    both = (on_device(support), on_device(query))
    probability = model.method.predict(model.fitted, [model.candidate], table, *both)[0]
    right = np.where(probability > 0.5, 1.0, np.where(probability == 0.5, 0.5, 0.0))
    return (right * judged).sum(1), judged.sum(1)


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
    model: UserModel, user: str | None, texts: Sequence[str], features: np.ndarray | None = None
) -> list[Ranked]:
    """Return answers ordered for a user, best first.

    Args:
        model: with `users` where a user is named (`mrm.load(path)` reads those that
            `jaxalign mrm adapt` left beside the model).
        user: whose taste; None for a user without choices, who gets the population's.
        texts: the answers.
        features: [N, E] of the answers, for a model that cannot read text.

    Raises:
        InputError: no texts, a user who was not adapted, or a method that cannot score new items.

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
    place = None if user is None else place_of(model.users, user)
    values = encode_texts(model, texts) if features is None else features
    if "weights" in model.method.capabilities:
        score, wins = _by_weights(model, place, values)
    else:
        score, wins = _by_choices(model, place, values)
    count = len(texts)
    probability = (wins.sum(1) - 0.5) / (count - 1) if count > 1 else np.full(1, 0.5)
    order = np.argsort(-score, kind="stable")
    return [Ranked(int(i), texts[i], float(score[i]), float(probability[i])) for i in order]


def _by_weights(
    model: UserModel, place: int | None, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N] and win probabilities [N, N] under a user's weights."""
    mean, cov = model.population()
    if place is not None and isinstance(model.users, UserWeights):
        mean = model.users.mean[place]
        cov = None if model.users.cov is None else model.users.cov[place]
    base, mean = model.base(values).astype(np.float64), mean.astype(np.float64)
    cov = np.zeros((len(mean), len(mean))) if cov is None else cov.astype(np.float64)
    return base @ mean, win_probability(mean, cov, base)


def win_probability(mean: np.ndarray, cov: np.ndarray, base: np.ndarray) -> np.ndarray:
    """Return the probability [N, N] that the row's answer is chosen over the column's.

    Args:
        mean: [K] of a user's weights.
        cov: [K, K].
        base: [N, K] base rewards of the answers.
    """
    margin = (base @ mean)[:, None] - (base @ mean)[None, :]
    inner = base @ cov @ base.T
    variance = np.diag(inner)[:, None] + np.diag(inner)[None, :] - 2 * inner
    scaled = margin / np.sqrt(1 + np.pi * np.maximum(variance, 0) / 8)
    return np.exp(-np.logaddexp(0, -scaled))


def _by_choices(
    model: UserModel, place: int | None, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Scores [N] and win probabilities [N, N] from a user's choices, every pair predicted."""
    answers = np.asarray(model.inputs(values))
    count, width = answers.shape
    chosen, rejected, weight = np.zeros((1, width)), np.zeros((1, width)), np.zeros(1)
    users = model.users
    if place is not None and isinstance(users, UserSupports) and len(users.weight[place]):
        chosen, rejected, weight = users.chosen[place], users.rejected[place], users.weight[place]
    known = np.arange(len(weight))
    table = jnp.asarray(np.concatenate([answers, chosen, rejected]), jnp.float32)
    support = _one_user(count + known, count + len(weight) + known, weight)
    first, second = np.triu_indices(count, 1)
    wins = np.full((count, count), 0.5)
    for start in range(0, len(first), _PAIRS_AT_ONCE):
        one, two = (side[start : start + _PAIRS_AT_ONCE] for side in (first, second))
        query = _one_user(one, two, np.ones(len(one)))
        found = model.method.predict(model.fitted, [model.candidate], table, support, query)[0, 0]
        wins[one, two], wins[two, one] = found, 1 - found.astype(np.float64)
    likely = np.clip(wins, 1e-12, 1 - 1e-12)
    return np.log(likely / (1 - likely)).mean(1), wins


def _one_user(chosen: np.ndarray, rejected: np.ndarray, weight: np.ndarray) -> Pairs:
    chosen, rejected = chosen[None].astype(np.int32), rejected[None].astype(np.int32)
    return on_device(Pairs(chosen, rejected, weight[None].astype(np.float32), 0 * chosen))
