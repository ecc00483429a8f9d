"""One adapted user of a file: the state, its posterior, and predictions from the choices."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxalign.data.batching import Pairs
from jaxalign.data.preferences import RowDetails
from jaxalign.errors import InputError
from jaxalign.mrm.model import UserModel, infer, infer_feedback
from jaxalign.mrm.sites import Sites, posterior_cov
from jaxalign.mrm.support_query import on_device
from jaxalign.progress import counted
from jaxalign.runs.user_store import UserRecord


@dataclass(frozen=True)
class UserState:
    """What is known of one user, exactly.

    Attributes:
        mean: [K] weights; empty for a method without weights.
        rows: [P, R] what the method takes of each choice: differences of the K base rewards, or
            for a method without weights the chosen item's features beside the rejected one's. Of
            a rating, the K base rewards of its item.
        weight: [P] 1, or for either order of a tie 1/2.
        group: [P] whole numbers; choices of one group are never judged by each other.
        sites: what each choice says, None where the method has no posterior.
        details: [P] what the rows say beyond plain choices, in place of the sites; None for a model
            of plain choices.
    """

    mean: np.ndarray
    rows: np.ndarray
    weight: np.ndarray
    group: np.ndarray
    sites: Sites | None
    details: RowDetails | None = None

    @property
    def ratings(self) -> int:
        """How many of the rows are ratings."""
        return 0 if self.details is None else int((self.details.scale >= 0).sum())


def read_state(model: UserModel, record: UserRecord) -> UserState:
    """Return what is known of a user of a file.

    Args:
        model: that the user was adapted with.
        record: as from `UserStore.get`.
    """
    rows, extra = np.split(record.rows, [record.rows.shape[1] - extra_columns(model)], axis=1)
    weight, group, *more = extra.T
    if model.scales is not None:
        scale, level, top, implicit = (column.astype(np.int32) for column in more)
        details = RowDetails(scale, level, top, weight, implicit > 0)
        return UserState(record.weights, rows, weight, group, None, details)
    return UserState(record.weights, rows, weight, group, Sites(*more) if more else None)


def detail_columns(details: RowDetails) -> list[np.ndarray]:
    """Return what rows say as the columns that `read_state` reads, behind weight and group."""
    return [details.scale, details.level, details.top, details.implicit]


def extra_columns(model: UserModel) -> int:
    """Columns behind a row's features: weight and group, and those of its site or of a rating."""
    if model.scales is not None:
        return 6
    return 4 if "posterior" in model.method.capabilities else 2


def find_state(model: UserModel, user: str | None) -> UserState | None:
    """Return what is known of a user of `model.users`; None without a user or any choices."""
    if user is None or model.users is None:
        return None
    record = model.users.get(user)
    return None if record is None else read_state(model, record)


def user_state(model: UserModel, user: str) -> UserState:
    """Return what is known of a user of `model.users`.

    Raises:
        InputError: the user was not adapted.
    """
    state, users = find_state(model, user), model.users
    if state is not None:
        return state
    known = [] if users is None else users.names(4)
    some = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
    have = "nor has any other user"
    if users is not None and known:
        have = f"the file has {counted(len(users), 'user')} ({some})"
    raise InputError(
        f"user {user!r} has not been adapted; {have}: run `jaxalign mrm adapt` with this user's "
        "choices, or leave the user out for the population's answer."
    )


def weights_of(model: UserModel, state: UserState | None) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mean [K] and covariance [K, K] (or None) of the weights that a user is served.

    Args:
        model: whose method represents users by weights.
        state: as from `user_state`; None for a user without choices, who has the population's, as
            has one whom the model's gate leaves alone.

    Raises:
        InputError: the method has no weights.
    """
    if state is None or is_left_alone(model, state):
        return model.population()
    return own_weights(model, state)


def is_left_alone(model: UserModel, state: UserState) -> bool:
    """Return whether `adapt_users` gave a user the population's weights, as the gate says."""
    return model.gate.by_support and bool(is_alike(state.mean, model.population()[0]))


def is_alike(mean: np.ndarray, common: np.ndarray) -> np.ndarray:
    """Return whether weights [..., K] of users are the population's [K]: [...] bool."""
    # Not to the last bit, which another machine may round otherwise.
    return np.isclose(mean, common, rtol=1e-5, atol=1e-7).all(axis=-1)


def own_weights(model: UserModel, state: UserState) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the mean [K] and covariance [K, K] (or None) of a user's own weights.

    Args:
        model: whose method represents users by weights.
        state: of the user, whether the gate leaves the user alone or not.
    """
    cov = model.population()[1]
    mean = state.mean
    if state.details is not None:
        details = RowDetails(*(_padded(array) for array in state.details))
        found = infer_feedback(model, _padded(state.rows), details)
        return np.asarray(found.mean)[0], np.asarray(found.cov)[0]
    if is_left_alone(model, state):
        mean = infer(model, _padded(state.rows), _padded(state.weight))[0][0]
    if cov is None or state.sites is None:
        return mean, None
    return mean, posterior_cov(cov, state.rows, state.sites.precision)


def _padded(rows: np.ndarray) -> np.ndarray:
    """Rows [P, ...] as [1, P', ...], a power of two of them so that few shapes are compiled."""
    room = 2 ** int(np.ceil(np.log2(max(len(rows), 1)))) - len(rows)
    return np.pad(rows, ((0, room), *((0, 0),) * (rows.ndim - 1)))[None]


def predict_rows(
    model: UserModel, support: np.ndarray, weight: np.ndarray, query: np.ndarray
) -> np.ndarray:
    """Return the probability of users' choices by a method that reads earlier choices anew.

    Args:
        model: of a method without weights.
        support: [U, P, 2 D] features of the chosen items beside those of the rejected ones.
        weight: [U, P].
        query: [U, Q, 2 D].

    Returns:
        [U, Q].
    """
    width = support.shape[-1] // 2
    table = np.concatenate([support.reshape(-1, width), query.reshape(-1, width)])
    first = 2 * np.arange(len(table) // 2, dtype=np.int32)
    known, wanted = np.split(first, [weight.size])
    known, wanted = known.reshape(weight.shape), wanted.reshape(query.shape[:2])
    pairs = Pairs(known, known + 1, np.asarray(weight, np.float32), 0 * known)
    queries = Pairs(wanted, wanted + 1, np.ones(wanted.shape, np.float32), 0 * wanted)
    features = jnp.asarray(table, jnp.float32)
    both = (on_device(pairs), on_device(queries))
    return model.method.predict(model.fitted, [model.candidate], features, *both)[0]
