"""Users adapted from their choices, a bounded number at a time, and updated with new ones."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxalign.data import Features, Preferences
from jaxalign.data.batching import Pairs, bucket_users, pad_details, pad_pairs
from jaxalign.data.choice_parts import digest_of
from jaxalign.data.preferences import RowDetails
from jaxalign.data.ratings import on_scales
from jaxalign.data.splits import learned_from, rows_by_user
from jaxalign.errors import InputError
from jaxalign.files import write_aside
from jaxalign.mrm.adapted_users import (
    UserState,
    detail_columns,
    extra_columns,
    predict_rows,
    read_state,
)
from jaxalign.mrm.calibrated import moved
from jaxalign.mrm.gate import served_weights
from jaxalign.mrm.known_items import effects_of
from jaxalign.mrm.model import UserModel, infer
from jaxalign.mrm.registry import require
from jaxalign.mrm.serving import item_features
from jaxalign.mrm.sites import Sites
from jaxalign.progress import track
from jaxalign.runs.user_store import (
    AboutUsers,
    UserRecord,
    UserStore,
    create_users,
    open_users,
    refuse_foreign_file,
)

FOLDS = 5
_PAIRS_AT_ONCE, _MANY = 2**15, 1000


def adapt_users(
    model: UserModel,
    choices: Preferences,
    features: Features | None = None,
    out: str | Path | None = None,
    update: bool = False,
    accuracy: bool = True,
    progress: bool = False,
) -> UserStore:
    """Return every user adapted on that user's choices, with a held-out accuracy.

    Rows that the source holds out are not adapted on: the accuracy is measured on them. Where it
    holds none out, each strict choice is judged by a fit that did not see its group (its fifth of
    the rows where there is one group).

    Args:
        model: a trained model.
        choices: the users' choices.
        features: of the items by id; without it the texts are encoded.
        out: file to write; None keeps the users in memory.
        update: whether `out` exists and its users are kept: a user's new choices are added to the
            old ones, and the user is adapted on all of them, as if they had come together.
        accuracy: whether to measure the held-out accuracy, which takes five fits more.
        progress: whether to show a bar on standard error.

    Returns:
        The users; see `read_state` for what is known of one.

    Raises:
        InputError: the method cannot score new items, features that do not fit, or a file of
            another model, or one that has these choices already.

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
        >>> fitted = {"mean": jnp.zeros(2), "cov": jnp.eye(2)}
        >>> bayes = make_method("bayes")
        >>> candidate = {"strength": 1.0, "temperature": 1.0, "adapt": True}
        >>> model = UserModel(bayes, fitted, candidate, np.zeros(2), identity(2))
        >>> users = adapt_users(model, choices, Features(ids, np.eye(2)))
        >>> weights = users.get("ann").weights
        >>> users.names(), bool(weights[0] > 0 > weights[1])
        (['ann'], True)
    """
    require(model.method, "new_items", "adapt")
    if model.scales is not None:
        choices = on_scales(choices, model.scales)
    if out is not None:
        refuse_foreign_file(out)
    old = open_users(out, model.digest) if update and out is not None else None
    source = digest_of(choices)
    if old is not None:
        refuse_known(old, source)
    table = item_table(model, item_features(model, choices.items, choices.texts, features))
    about = about_users(model, table, source)
    if old is not None:
        with old.changing(about.sources):
            adapt_into(old, model, choices, table, accuracy, old=old, progress=progress)
        return old
    with nullcontext() if out is None else write_aside(out) as aside:
        users = create_users(about, aside)
        with users.changing():
            adapt_into(users, model, choices, table, accuracy, progress=progress)
        if out is None:
            return users
        users.close()
    return open_users(out)


def refuse_known(users: UserStore, source: str) -> None:
    """Refuse to update users with choices that they were adapted on.

    Args:
        users: that are to be updated.
        source: digest of the choices.

    Raises:
        InputError: the users have them.
    """
    if source in users.about.sources:
        raise InputError(
            f"{users.source} has these choices already: give choices that are new, or adapt "
            "without an update to make the file anew."
        )


def about_users(model: UserModel, table: np.ndarray, source: str) -> AboutUsers:
    """Return what a file of users says of users of a model.

    Args:
        model: that they are adapted with.
        table: as from `item_table`.
        source: digest of their choices.
    """
    weights = "weights" in model.method.capabilities
    width = table.shape[1] if weights else 2 * table.shape[1]
    ids = model.reward_ids
    return AboutUsers(
        model.digest,
        model.method.name,
        table.shape[1] if weights else 0,
        width + extra_columns(model),
        () if ids is None else tuple(ids.names),
        "" if ids is None else ids.digest,
        (source,),
    )


def item_table(model: UserModel, features: np.ndarray) -> np.ndarray:
    """Return what choices are rows of: base rewards [I, K], or features [I, D] for the method.

    Args:
        model: a trained model.
        features: [I, E] of the items.
    """
    if "weights" in model.method.capabilities:
        return model.base(features)
    return np.asarray(model.inputs(features))


class _Batch(NamedTuple):
    """Choices of B users, padded: rows [B, P, R], weight and group [B, P].

    `offset` [B, P] is what the effects of known items add to the margins; 0 for old choices, whose
    items are not kept. `strict` [B, P] says which choices have a winner. `details` [B, P] is read
    by a model that was trained on more than choices.
    """

    rows: np.ndarray
    weight: np.ndarray
    group: np.ndarray
    offset: np.ndarray
    strict: np.ndarray
    details: RowDetails | None

    def without(self, held_out: np.ndarray) -> "_Batch":
        """The same rows, of which some [B, P] bool do not count."""
        weight = np.where(held_out, 0, self.weight).astype(np.float32)
        details = None if self.details is None else self.details._replace(weight=weight)
        return self._replace(weight=weight, details=details)


def adapt_into(
    users: UserStore,
    model: UserModel,
    choices: Preferences,
    table: np.ndarray,
    accuracy: bool = True,
    old: UserStore | None = None,
    progress: bool = False,
) -> None:
    """Adapt the users of some choices and write them.

    Args:
        users: where they are written.
        model, choices, accuracy: as of `adapt_users`.
        table: of the items, as from `item_table`.
        old: users whose earlier choices are kept.
        progress: whether to show a bar on standard error.
    """
    learned = learned_from(choices, choices.users)
    if model.scales is None:
        learned = [rows[~choices.rating[rows]] for rows in learned]
    held = _held_out(choices)
    known = None if old is None else [old.get(name) for name in choices.users]
    rest = slice(None) if choices.held_out is None else ~choices.held_out
    both = np.concatenate([choices.user[rest], choices.user[rest][choices.tie[rest]]])
    lengths = np.bincount(both, minlength=len(choices.users))
    if known is not None:
        lengths += [0 if record is None else len(record.rows) for record in known]
    effects = effects_of(model.item_effects, choices.texts, choices.items)
    chunks = list(_chunks(lengths))
    for width, members in track("adapting users", chunks, len(lengths), _count, progress):
        mine = [learned[user] for user in members]
        pairs = pad_pairs(choices, mine)
        details = _details_of(choices, mine, pairs)
        fresh = pairs, details if model.scales is not None else None, _strict(details)
        before = [None if known is None else known[user] for user in members]
        shape = (_round_up(len(members)), width)
        batch = _batch(model, table, fresh, before, shape, effects)
        mean, sites = _infer(model, batch)
        shares = np.full(len(members), np.nan)
        if accuracy and held is not None:
            others = [held[user] for user in members]
            query = pad_pairs(choices, others)
            judged = _rows_of(model, table, query), _difference(effects, query)
            strict = _strict(_details_of(choices, others, query))
            shares = _accuracy_on(model, batch, mean, *judged, strict)
        elif accuracy:
            shares = _cross_accuracy(model, batch)
        counts = [len(learned[user]) for user in members]
        counts = [
            n + (b.choices if b is not None else 0) for n, b in zip(counts, before, strict=True)
        ]
        names = [choices.users[user] for user in members]
        served = served_weights(model, mean, batch.rows, sites, batch.details)
        users.put(_records(names, counts, shares, served, batch, sites))


def _held_out(choices: Preferences) -> list[np.ndarray] | None:
    """Rows of each user that the source holds out, None where it holds none out."""
    mask = choices.held_out
    if mask is None:
        return None
    return [rows[mask[rows]] for rows in rows_by_user(choices, choices.users)]


def _count(chunk: tuple[int, np.ndarray]) -> int:
    return len(chunk[1])


def _chunks(lengths: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Padded length and numbers of users that are adapted together: few shapes, little memory."""
    for width, members in bucket_users(lengths).items():
        if len(members) >= _MANY:  # another shape to compile costs less than the padding
            width = int(lengths[members].max())
        # Whole powers of two, so that only the last of the batches is padded with users.
        size = 2 ** int(np.log2(max(1, _PAIRS_AT_ONCE // width)))
        for start in range(0, len(members), size):
            yield width, members[start : start + size]


def _round_up(count: int) -> int:
    return int(2 ** np.ceil(np.log2(count)))


def _details_of(choices: Preferences, rows: list[np.ndarray], pairs: Pairs) -> RowDetails:
    """What rows, as `pairs` have them, say."""
    return pad_details(choices, rows) or _plain_details(pairs.weight)


def _plain_details(weight: np.ndarray) -> RowDetails:
    """Details of plain choices and ties of some weights [U, P]."""
    scale, zero = np.full(weight.shape, -1, np.int32), np.zeros(weight.shape, np.int32)
    return RowDetails(scale, np.where(weight == 0.5, -1, zero), zero, weight, zero > 0)


def _strict(details: RowDetails) -> np.ndarray:
    """Which rows are choices that have a winner, however much they count."""
    return (details.weight > 0) & (details.scale < 0) & (details.level >= 0)


def _old_strict(state: UserState) -> np.ndarray:
    """Which kept rows have a winner: without details a weight below 1 may be half a tie's."""
    return np.asarray(state.weight == 1) if state.details is None else _strict(state.details)


def _rows_of(
    model: UserModel, table: np.ndarray, pairs: Pairs, details: RowDetails | None = None
) -> np.ndarray:
    """Rows [..., R] of pairs, see `UserState`."""
    chosen, rejected = table[pairs.chosen], table[pairs.rejected]
    if details is not None:
        return chosen - np.where((details.scale < 0)[..., None], rejected, 0)
    if "weights" in model.method.capabilities:
        return chosen - rejected
    return np.concatenate([chosen, rejected], axis=-1)


def _difference(effects: np.ndarray, pairs: Pairs) -> np.ndarray:
    return np.asarray(effects[pairs.chosen] - effects[pairs.rejected])


def _batch(
    model: UserModel,
    table: np.ndarray,
    new: tuple[Pairs, RowDetails | None, np.ndarray],
    before: Sequence[UserRecord | None],
    shape: tuple[int, int],
    effects: np.ndarray,
) -> _Batch:
    """Old and new choices of users in arrays of a common shape; the old ones come first."""
    pairs, details, strict = new
    fresh = _rows_of(model, table, pairs, details)
    total = np.zeros(shape, np.float32)
    # The weight of the details is that of the batch, one array for both.
    batch = _Batch(
        np.zeros((*shape, fresh.shape[-1]), np.float32),
        total,
        np.zeros(shape, np.int32),
        np.zeros(shape),
        np.zeros(shape, bool),
        None if details is None else _plain_details(total),
    )
    weight = pairs.weight if details is None else details.weight
    there = weight > 0
    start = np.array([0 if record is None else len(record.rows) for record in before])
    first = np.zeros(len(before), np.int32)
    for user, record in enumerate(before):
        if record is not None:
            state = read_state(model, record)
            old = (state.rows, state.weight, state.group)
            for array, values in zip(batch[:3], old, strict=True):
                array[user, : start[user]] = values
            batch.strict[user, : start[user]] = _old_strict(state)
            for array, values in zip(batch.details or (), state.details or (), strict=True):
                array[user, : start[user]] = values
            # Groups of a new file are new ones.
            first[user] = state.group.max(initial=-1) + 1
    row, place = np.nonzero(there)
    groups = pairs.group + first[:, None]
    both = (fresh, weight, groups, _difference(effects, pairs), strict)
    both_details = zip(batch.details or (), details or (), strict=True)
    for array, values in (*zip(batch[:5], both, strict=True), *both_details):
        array[row, start[row] + place] = values[there]
    return batch


def _infer(model: UserModel, batch: _Batch) -> tuple[np.ndarray, Sites | None]:
    """Weights [B, K] of users and the sites of their choices; [B, 0] for a method without."""
    if "weights" in model.method.capabilities:
        return infer(model, batch.rows, batch.weight, batch.details)
    return np.zeros((len(batch.rows), 0), np.float32), None


def _records(
    names: Sequence[str],
    counts: Sequence[int],
    shares: np.ndarray,
    mean: np.ndarray,
    batch: _Batch,
    sites: Sites | None,
) -> Iterator[UserRecord]:
    columns = [batch.weight, batch.group]
    columns += [] if sites is None else [sites.precision, sites.shift]
    columns += [] if batch.details is None else detail_columns(batch.details)
    kept = np.concatenate([batch.rows, np.stack(columns, axis=-1)], axis=-1, dtype=np.float32)
    real = (batch.weight > 0).sum(1)
    for user, name in enumerate(names):
        yield UserRecord(name, counts[user], shares[user], mean[user], kept[user, : real[user]])


def _accuracy_on(
    model: UserModel,
    batch: _Batch,
    mean: np.ndarray,
    rows: np.ndarray,
    offset: np.ndarray,
    strict: np.ndarray,
) -> np.ndarray:
    """Accuracy [n] on those of the rows [n, Q, R] that are strict choices, NaN without any."""
    right = _right(model, batch, mean, rows, offset)
    judged = strict.sum(1)
    found = (right * strict).sum(1) / np.maximum(judged, 1)
    return np.where(judged > 0, found, np.nan)


def _cross_accuracy(model: UserModel, batch: _Batch) -> np.ndarray:
    """Accuracy [B] of fits that did not see the group, or the fifth, of the choice they judge."""
    weight = batch.weight
    groups = np.where(weight > 0, batch.group, 0).max(1) + 1
    positions = np.broadcast_to(np.arange(weight.shape[1]), weight.shape)
    part = np.where(groups[:, None] > 1, batch.group, positions) % FOLDS
    correct, judged = np.zeros(len(weight)), np.zeros(len(weight))
    for fold in range(FOLDS):
        held_out = (part == fold) & (weight > 0)
        known = batch.without(held_out)
        mean, _ = _infer(model, known)
        right = _right(model, known, mean, batch.rows, batch.offset)
        strict = held_out & batch.strict
        correct += (right * strict).sum(1)
        judged += strict.sum(1)
    enough = (judged > 0) & ((weight > 0).sum(1) > 1)
    return np.where(enough, correct / np.maximum(judged, 1), np.nan)


def _right(
    model: UserModel, known: _Batch, mean: np.ndarray, rows: np.ndarray, offset: np.ndarray
) -> np.ndarray:
    """Whether choices [n, Q, R] are predicted, 1/2 where both items are as likely: [n, Q]."""
    if "weights" in model.method.capabilities:
        margin = np.einsum("UQK,UK->UQ", rows, mean[: len(rows)]) + offset
        return np.where(margin > 0, 1.0, np.where(margin == 0, 0.5, 0.0))
    support, weight = known.rows[: len(rows)], known.weight[: len(rows)]
    probability = moved(predict_rows(model, support, weight, rows), offset)
    return np.where(probability > 0.5, 1.0, np.where(probability == 0.5, 0.5, 0.0))
