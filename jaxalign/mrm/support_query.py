"""Choices of users on the device: those of training users, and support and query of the others."""

from dataclasses import dataclass, replace
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs, bucket_users, pad_pairs
from jaxalign.data.preferences import Preferences
from jaxalign.data.splits import Episodes, episodes, learned_from
from jaxalign.mrm.config import ChoiceDataConfig, SplitConfig
from jaxalign.mrm.registry import Inputs


@dataclass(frozen=True)
class SupportQueryData:
    """Users to judge: the choices that each is adapted on, and those that each is judged on.

    Attributes:
        support: [U, P].
        query: [U, Q].
    """

    support: Pairs
    query: Pairs


@dataclass(frozen=True)
class TrainingChoices:
    """Choices of the training users.

    Attributes:
        pairs: [U, P] all users, padded to the longest.
        layout: for each bucket of users of about equal length, their numbers and their width.
    """

    pairs: Pairs
    layout: tuple[tuple[np.ndarray, int], ...]

    @property
    def buckets(self) -> tuple[Pairs, ...]:
        """The same choices with less padding, users in buckets."""
        return tuple(Pairs(*(a[users, :width] for a in self.pairs)) for users, width in self.layout)


@dataclass(frozen=True)
class TrainingData:
    """What methods are fitted on.

    Attributes:
        features: [I, D] projected features of the items.
        encoded: [I, E] features of the items as they were encoded or given.
        choices: of the training users.
    """

    features: jax.Array
    encoded: jax.Array
    choices: TrainingChoices

    @property
    def pairs(self) -> Pairs:
        """The choices [U, P], padded to the longest user."""
        return self.choices.pairs

    @property
    def buckets(self) -> tuple[Pairs, ...]:
        """The same choices with less padding, users in buckets."""
        return self.choices.buckets

    def inputs(self, kind: Inputs) -> jax.Array:
        """Return what an item is to a method [I, D], see `UserRewardMethod.inputs`."""
        if kind == "ids":
            return self._one_hot
        return self.features if kind == "projected" else self.encoded

    @cached_property
    def _one_hot(self) -> jax.Array:
        """One-hot items [I, I]; an item without a training choice is zero: nothing is known."""
        weight = np.asarray(self.pairs.weight) > 0
        known = np.zeros(self.features.shape[0], np.float32)
        known[np.asarray(self.pairs.chosen)[weight]] = 1
        known[np.asarray(self.pairs.rejected)[weight]] = 1
        return jnp.asarray(np.diag(known))


def on_device(pairs: Pairs) -> Pairs:
    """Return the same arrays on the device."""
    return Pairs(*map(jnp.asarray, pairs))


def training_choices(
    choices: Preferences,
    users: tuple[str, ...],
    data: ChoiceDataConfig,
    seed: int,
    known: np.ndarray | None = None,
) -> TrainingChoices:
    """Return the choices that training users are learned from.

    Rows that the source holds out (`Preferences.held_out`) are not among them.

    Args:
        choices: the table.
        users: the training users.
        data: whether ties are used, and the most choices per user.
        seed: of the draw where a user has more choices than that.
        known: [N] bool, the rows to learn from; all of them unless given.
    """
    everything = learned_from(choices, users)
    rows = everything
    if known is not None:
        rows = [user[known[user]] for user in rows]
    if not data.ties:
        rows = [user[~choices.tie[user]] for user in rows]
    most = data.max_pairs or max(map(len, rows))
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(user)[:most] if len(user) > most else user for user in rows]
    ties = 2 if data.ties and bool(choices.tie.any()) else 1
    # Widths of all the choices there are, so that no fold is of another shape and compiled anew.
    lengths = ties * np.minimum(most, [len(user) for user in everything])
    widest = int(max(lengths.max(), 1))
    layout = tuple((users, min(width, widest)) for width, users in bucket_users(lengths).items())
    return TrainingChoices(on_device(pad_pairs(choices, rows, widest)), layout)


def cut_episodes(
    choices: Preferences, split: SplitConfig, users: tuple[str, ...], everything: bool = False
) -> Episodes:
    """Return support and query rows of validation or test users.

    Args:
        choices: the table.
        split: shares and sizes.
        users: whose choices are cut.
        everything: whether to keep all support choices, beyond `split.support_pairs`.
    """
    if everything:
        split = replace(split, support_pairs=0)
    return episodes(
        choices, users, split.seed, split.support_pairs, split.query_pairs,
        split.query_share, split.min_support, split.min_query,
    )  # fmt: skip


def support_query(choices: Preferences, cut: Episodes) -> SupportQueryData:
    """Return the padded arrays of support and query rows."""
    return SupportQueryData(
        on_device(pad_pairs(choices, cut.support)), on_device(pad_pairs(choices, cut.query))
    )


def without_choices(pairs: Pairs) -> Pairs:
    """Return the same users with no choices: every weight is 0."""
    return pairs._replace(weight=jnp.zeros_like(pairs.weight))


def differences(features: jax.Array, pairs: Pairs) -> jax.Array:
    """Return differences [U, P, D] of the items' features or rewards [I, D], chosen minus rejected.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxalign.data.batching import Pairs
        >>> from jaxalign.mrm.support_query import differences
        >>> rewards = jnp.array([[1.0], [3.0]])
        >>> one = jnp.ones((1, 1), jnp.int32)
        >>> differences(rewards, Pairs(one, 0 * one, one, one)).tolist()
        [[[2.0]]]
    """
    return features[pairs.chosen] - features[pairs.rejected]
