"""Choices of users on the device: those of training users, and support and query of the others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs, bucket_users, pad_details, pad_pairs
from jaxalign.data.preferences import Preferences, RowDetails
from jaxalign.data.splits import Episodes, episodes, learned_from
from jaxalign.mrm.config import ChoiceDataConfig, SplitConfig
from jaxalign.mrm.item_ids import id_features
from jaxalign.mrm.registry import Fitted, Inputs

_SLACK = 2**15
"""Padding, in choices, that a bucket may add: one shape less to compile is worth as much."""

Rows = TypeVar("Rows", Pairs, RowDetails)
Layout = tuple[tuple[np.ndarray, int], ...]
"""Buckets of users of about equal length: the numbers of the users, and their padded length."""


@dataclass(frozen=True)
class UserPairs:
    """Choices of U users, in buckets of about equal length.

    One user of many choices is in a bucket with few others, so that memory is in proportion to the
    choices and not to the users times the longest of them.

    Attributes:
        members: for each bucket [B] the numbers of its users; each of 0..U-1 is in one bucket.
        parts: for each bucket the choices [B, P] of its users, on the host.
        details: for each bucket what the rows [B, P] say beyond that, ratings among them; empty
            where all rows are plain choices.

    Example:
        >>> import numpy as np
        >>> from jaxalign.data.batching import Pairs
        >>> from jaxalign.mrm.support_query import UserPairs
        >>> few, many = (Pairs(*(np.ones((1, width)),) * 4) for width in (1, 3))
        >>> choices = UserPairs((np.array([1]), np.array([0])), (few, many))
        >>> choices.padded.weight.tolist()
        [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]]
    """

    members: tuple[np.ndarray, ...]
    parts: tuple[Pairs, ...]
    details: tuple[RowDetails, ...] = ()

    @property
    def users(self) -> int:
        """Number of users U."""
        return sum(map(len, self.members))

    @cached_property
    def padded(self) -> Pairs:
        """All choices [U, P], every user padded to the longest."""
        width = max((part.weight.shape[1] for part in self.parts), default=1)
        whole = Pairs(*(np.zeros((self.users, width), kind) for kind in _DTYPES))
        for members, part in zip(self.members, self.parts, strict=True):
            for array, values in zip(whole, part, strict=True):
                array[members, : values.shape[1]] = values
        return whole

    def reweighted(self, weight: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> "UserPairs":
        """Return the same choices with other weights: a function of members [B], weights [B, P]."""

        def of(parts: tuple[Rows, ...]) -> tuple[Rows, ...]:
            both = zip(self.members, parts, strict=True)
            return tuple(
                part._replace(weight=weight(users, np.asarray(part.weight))) for users, part in both
            )

        return UserPairs(self.members, of(self.parts), of(self.details) if self.details else ())


_DTYPES = (np.int32, np.int32, np.float32, np.int32)


def one_bucket(pairs: Pairs) -> UserPairs:
    """Return choices [U, P] as one bucket."""
    return UserPairs((np.arange(len(pairs.weight)),), (pairs,))


def layout_for(lengths: np.ndarray, slack: int = 0) -> Layout:
    """Return buckets for users of given lengths: powers of two, shorter ones merged upwards.

    Args:
        lengths: [U] choices of each user.
        slack: padding that a merge may add; more means fewer shapes to compile.

    Example:
        >>> import numpy as np
        >>> from jaxalign.mrm.support_query import layout_for
        >>> [(users.tolist(), width) for users, width in layout_for(np.array([3, 900, 20, 8]), 100)]
        [([0, 2, 3], 20), ([1], 900)]
    """
    layout: list[tuple[np.ndarray, int]] = []
    for users in reversed(bucket_users(lengths).values()):
        width = int(max(lengths[users].max(), 1))
        if layout and len(users) * (layout[-1][1] - width) <= slack:
            merged, width = layout.pop()
            users = np.sort(np.concatenate([merged, users]))
        layout.append((users, width))
    return tuple(reversed(layout))


def bucketed(choices: Preferences, rows: Sequence[np.ndarray], layout: Layout) -> UserPairs:
    """Return the named rows of each user in the buckets of a layout."""
    named = [([rows[user] for user in users], width) for users, width in layout]
    parts = tuple(pad_pairs(choices, *one) for one in named)
    details = (pad_details(choices, *one) for one in named)
    known = tuple(part for part in details if part is not None)
    return UserPairs(tuple(users for users, _ in layout), parts, known)


@dataclass(frozen=True)
class SupportQueryData:
    """Users to judge: the choices that each is adapted on, and those that each is judged on.

    Attributes:
        support: of U users.
        query: of the same users in the same buckets.
    """

    support: UserPairs
    query: UserPairs

    def parts(self) -> Iterator["SupportQueryPart"]:
        """Yield the users of each bucket, on the device."""
        details = self.support.details or (None,) * len(self.support.parts)
        for members, support, query, more in zip(
            self.support.members, self.support.parts, self.query.parts, details, strict=True
        ):
            yield SupportQueryPart(members, on_device(support), on_device(query), more)


class SupportQueryPart(NamedTuple):
    """One bucket of users to judge.

    Attributes:
        members: [B] their numbers.
        support: [B, P].
        query: [B, Q].
        details: what the support rows [B, P] say beyond the choices, on the host; None where all
            rows are plain choices.
    """

    members: np.ndarray
    support: Pairs
    query: Pairs
    details: RowDetails | None


@dataclass(frozen=True)
class TrainingData:
    """What methods are fitted on.

    Attributes:
        features: [I, D] projected features of the items.
        encoded: [I, E] features of the items as they were encoded or given.
        choices: of the training users.
        start: name of a method, and what it learned in an earlier run, where its fit starts.
        all_directions: [I, A] features on all principal directions, of which `features` are the
            first ones in other units; None where these are all.
        scales: lowest and highest rating of each scale that answers were rated on.
    """

    features: jax.Array
    encoded: jax.Array
    choices: UserPairs
    start: tuple[str, Fitted] | None = None
    all_directions: jax.Array | None = None
    scales: tuple[tuple[float, float], ...] = ()

    def start_of(self, name: str) -> Fitted | None:
        """Return what a method learned in an earlier run, None to start anew."""
        return self.start[1] if self.start is not None and self.start[0] == name else None

    @cached_property
    def pairs(self) -> Pairs:
        """The choices [U, P], padded to the longest user."""
        return on_device(self.choices.padded)

    @cached_property
    def buckets(self) -> tuple[Pairs, ...]:
        """The same choices with less padding, users in buckets."""
        return tuple(map(on_device, self.choices.parts))

    def inputs(self, kind: Inputs) -> jax.Array:
        """Return what an item is to a method [I, D], see `UserRewardMethod.inputs`."""
        if kind == "ids":
            return self._by_number
        if kind == "directions":
            return self.features if self.all_directions is None else self.all_directions
        return self.features if kind == "projected" else self.encoded

    @cached_property
    def _by_number(self) -> jax.Array:
        """Items [I, D] by the training users' choices alone."""
        return jnp.asarray(id_features(self.choices.parts, self.features.shape[0]))


def on_device(pairs: Pairs) -> Pairs:
    """Return the same arrays on the device."""
    return Pairs(*map(jnp.asarray, pairs))


def training_choices(
    choices: Preferences,
    users: tuple[str, ...],
    data: ChoiceDataConfig,
    seed: int,
    known: np.ndarray | None = None,
) -> UserPairs:
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
    return bucketed(choices, rows, layout_for(lengths))


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


def support_query(
    choices: Preferences, cut: Episodes, shots: int | None = None
) -> SupportQueryData:
    """Return the arrays of support and query rows.

    Args:
        choices: the table.
        cut: rows of each user.
        shots: number of each user's first support rows that are known, a tie being one of them; all
            unless given. The shapes are those of all rows, so that nothing is compiled anew.
    """
    ties = 1 + int(choices.tie.any())
    support, query = (np.array([*map(len, rows)], int) for rows in (cut.support, cut.query))
    known = [rows[:shots] for rows in cut.support]
    return cut_support_query((choices, choices), (known, cut.query), (ties * support, query))


def cut_support_query(
    tables: tuple[Preferences, Preferences],
    rows: tuple[Sequence[np.ndarray], Sequence[np.ndarray]],
    lengths: tuple[np.ndarray, np.ndarray],
) -> SupportQueryData:
    """Return support and query rows, each of a table of its own, in common buckets.

    Args:
        tables: of support and of query.
        rows: of every user, likewise.
        lengths: [U] bounds on the padded lengths, likewise, that the buckets are cut by.
    """
    members = [users for users, _ in layout_for(np.maximum(*lengths), _SLACK)]
    layouts = (
        tuple((users, int(max(bound[users].max(), 1))) for users in members) for bound in lengths
    )
    both = (bucketed(*part) for part in zip(tables, rows, layouts, strict=True))
    return SupportQueryData(*both)


def with_common_query(
    users: SupportQueryData, chosen: np.ndarray, rejected: np.ndarray
) -> SupportQueryData:
    """Return the same users with the same R query pairs for all, chosen [R] and rejected [R]."""

    def query(members: np.ndarray) -> Pairs:
        shape = (len(members), len(chosen))
        better, worse = (np.broadcast_to(side, shape) for side in (chosen, rejected))
        return Pairs(better, worse, np.ones(shape, np.float32), np.zeros(shape, np.int32))

    members = users.query.members
    return SupportQueryData(users.support, UserPairs(members, tuple(map(query, members))))


def without_choices(pairs: Rows) -> Rows:
    """Return the same users with no choices or ratings: every weight is 0."""
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


def with_swapped_support(users: SupportQueryData) -> SupportQueryData:
    """Return the same users with every support choice and rating made the other way round.

    A method whose predictions then stay as they were has not read what the users chose.
    """
    support = users.support
    parts = tuple(
        part._replace(chosen=part.rejected, rejected=part.chosen) for part in support.parts
    )
    details = tuple(part.mirrored for part in support.details)
    return SupportQueryData(UserPairs(support.members, parts, details), users.query)


def with_other_support(users: SupportQueryData) -> SupportQueryData:
    """Return the same users, each with the support choices of another user in place of their own.

    It is the next user of the same bucket; a user who is alone in a bucket has no choices then.
    """

    def of_other(part: Rows) -> Rows:
        other = type(part)(*(np.roll(np.asarray(array), 1, axis=0) for array in part))
        alone = len(part.weight) == 1
        return other._replace(weight=0 * other.weight) if alone else other

    support = users.support
    parts, details = tuple(map(of_other, support.parts)), tuple(map(of_other, support.details))
    return SupportQueryData(UserPairs(support.members, parts, details), users.query)
