"""What the service remembers: one table of events, read and written by plain statements."""

import hashlib
import json
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

from sqlalchemy import Connection, Row

from jaxalign.serve.store.database import scalar, text

EventKind = Literal["answers", "preferred", "edited", "rating"]
LEARNING: tuple[EventKind, ...] = ("preferred", "edited", "rating")
"""Kinds of feedback."""
_COLUMNS = "id, received, user_id, kind, subject, prompt, answers, value, space, source"
_INSERT = f"""
INSERT INTO events ({_COLUMNS}) SELECT :id,
CASE WHEN last >= :received THEN last + 1 ELSE :received END,
:user_id, :kind, :subject, :prompt, :answers, :value, :space, :source
FROM (SELECT COALESCE(MAX(received), -1) AS last FROM events WHERE user_id = :user_id) AS known
RETURNING received
"""
"""The row of the user is locked, so that no other event comes between."""
_SALT_BYTES = 16
_PAGE = 256  # rows that are read at once, each with a prompt and answers of up to 1 MB
MICROSECONDS = 1_000_000
Json = dict[str, object]


@dataclass(frozen=True)
class Event:
    """One row of the table.

    Attributes:
        id: 128 random bits as hexadecimal digits.
        received: when, in microseconds since 1970.
        user: id with the namespace of the key.
        kind: answers that were given, or a kind of feedback.
        subject: what it is about: the id of the answers, with the number of one of them where the
            feedback is about that one. Of several rows of a kind about one subject the last counts.
        value: what else is known of it; for feedback, what the user model learns from it.
        space: digest of the base rewards that numbers in it are on.
        prompt: as JSON; None where texts are not stored.
        answers: as JSON; None for feedback.
        source: the client's idempotency key, None where it gave none; of answers, by what a rating
            of a chat application finds them, of which the last ones count.
    """

    id: str
    received: int
    user: str
    kind: EventKind
    subject: str
    value: Json
    space: str
    prompt: str | None = field(default=None, repr=False)
    answers: str | None = field(default=None, repr=False)
    source: str | None = None


class UserRow(NamedTuple):
    """What is counted of a user.

    Attributes:
        events: rows of the user.
        version: changes with every row of feedback, so that what was computed before is known.
    """

    events: int
    version: str


class Limits(NamedTuple):
    """How much may be stored.

    Attributes:
        events_per_user: rows of one user.
        users_per_key: users of one namespace.
    """

    events_per_user: int = 100_000
    users_per_key: int = 100_000


class LimitReached(Exception):
    """A user or a key has as many rows or users as it may have."""


def new_id() -> str:
    """Return 128 random bits as hexadecimal digits."""
    return secrets.token_hex(16)


def now() -> int:
    """Return the time in microseconds since 1970."""
    return time.time_ns() // 1000


def insert(connection: Connection, event: Event, namespace: str, limits: Limits) -> Event:
    """Write an event, or return the one that was written under the same idempotency key.

    Args:
        connection: in a transaction.
        event: to write.
        namespace: of the key, in which the user's id lies.
        limits: that the event must not exceed.

    Returns:
        The event that the table holds. It was received after all others of its user: where clocks
        of several copies disagree, or one went back, its time is moved.

    Raises:
        LimitReached: nothing was written.
    """
    repeats = event.source is not None and event.kind != "answers"
    if event.source is not None and repeats:
        known = by_source(connection, event.user, event.source)
        if known is not None:
            return known
    _count(connection, event, namespace, limits)
    if event.source is not None and not repeats:
        connection.execute(
            text("UPDATE events SET source = NULL WHERE user_id = :user AND source = :source"),
            {"user": event.user, "source": event.source},
        )
    elif event.source is not None:
        # Another copy may have written it while this one waited for the user's row.
        known = by_source(connection, event.user, event.source)
        if known is not None:
            connection.execute(
                text("UPDATE users SET events = events - 1 WHERE user_id = :user"),
                {"user": event.user},
            )
            return known
    values = {
        "id": event.id,
        "received": event.received,
        "user_id": event.user,
        "kind": event.kind,
        "subject": event.subject,
        "prompt": event.prompt,
        "answers": event.answers,
        "value": json.dumps(event.value, allow_nan=False),
        "space": event.space,
        "source": event.source,
    }
    received = connection.execute(text(_INSERT), values).scalar_one()
    return replace(event, received=int(received))


def _count(connection: Connection, event: Event, namespace: str, limits: Limits) -> None:
    """Count the event for its user; the row of the user stays locked until the commit."""
    version = None if event.kind == "answers" else event.id
    changed = connection.execute(
        text(
            "UPDATE users SET events = events + 1, "
            "version = COALESCE(CAST(:version AS TEXT), version) "
            "WHERE user_id = :user AND events < :most"
        ),
        {"version": version, "user": event.user, "most": limits.events_per_user},
    )
    if changed.rowcount:
        return
    if user_row(connection, event.user) is not None:
        raise LimitReached(f"this user has {limits.events_per_user} stored rows, the most allowed")
    users = scalar(
        connection, "SELECT COUNT(*) FROM users WHERE namespace = :namespace", namespace=namespace
    )
    if int(users or 0) >= limits.users_per_key:
        raise LimitReached(f"this key has {limits.users_per_key} users, the most allowed")
    connection.execute(
        text(
            "INSERT INTO users (user_id, namespace, created, events, version) "
            "VALUES (:user, :namespace, :created, 1, :version) "
            "ON CONFLICT (user_id) DO UPDATE SET events = users.events + 1, "
            "version = excluded.version"
        ),
        {
            "user": event.user,
            "namespace": namespace,
            "created": event.received,
            "version": event.id,
        },
    )


def user_row(connection: Connection, user: str) -> UserRow | None:
    """Return what is counted of a user, None for one without rows."""
    found = connection.execute(
        text("SELECT events, version FROM users WHERE user_id = :user"), {"user": user}
    ).first()
    return None if found is None else UserRow(int(found[0]), str(found[1]))


def by_source(connection: Connection, user: str, source: str) -> Event | None:
    """Return the event of an idempotency key of a user."""
    found = connection.execute(
        text(f"SELECT {_COLUMNS} FROM events WHERE user_id = :user AND source = :source"),
        {"user": user, "source": source},
    ).first()
    return None if found is None else _event(found)


def by_id(connection: Connection, user: str, event: str) -> Event | None:
    """Return an event of a user; None where it does not exist or is another user's."""
    found = connection.execute(
        text(f"SELECT {_COLUMNS} FROM events WHERE id = :id AND user_id = :user"),
        {"id": event, "user": user},
    ).first()
    return None if found is None else _event(found)


def feedback(connection: Connection, user: str, after: int = -1) -> list[Event]:
    """Return the feedback of a user that was received after a time, by time and id."""
    found = connection.execute(
        text(
            f"SELECT {_COLUMNS} FROM events WHERE user_id = :user AND kind <> 'answers' "
            "AND received > :after ORDER BY received, id"
        ),
        {"user": user, "after": after},
    )
    return [_event(row) for row in found]


def first_feedback(connection: Connection, user: str) -> str | None:
    """Return the id of the oldest row of feedback of a user; another one after a deletion."""
    found = scalar(
        connection,
        "SELECT id FROM events WHERE user_id = :user AND kind <> 'answers' "
        "ORDER BY received, id LIMIT 1",
        user=user,
    )
    return None if found is None else str(found)


def last_about_same(connection: Connection, event: Event, until: int) -> str | None:
    """Return the id of the last feedback of one kind about one subject up to a time."""
    found = scalar(
        connection,
        "SELECT id FROM events WHERE user_id = :user AND kind = :kind AND subject = :subject "
        "AND kind <> 'answers' AND received <= :until ORDER BY received DESC, id DESC LIMIT 1",
        user=event.user, kind=event.kind, subject=event.subject, until=until,
    )  # fmt: skip
    return None if found is None else str(found)


def choices_with_answers(
    connection: Connection, user: str, most: int
) -> list[tuple[Event, str | None, str | None]]:
    """Return the newest choices and edits of a user, by time and id, with what they are about.

    Args:
        connection: to read from.
        user: whose.
        most: of the rows.

    Returns:
        Each row of feedback with the prompt and the answers, as JSON; those whose answers were
        deleted are left out.
    """
    found = connection.execute(
        text(
            "SELECT feedback.id, feedback.received, feedback.kind, feedback.subject, "
            "feedback.value, feedback.space, given.prompt, given.answers "
            "FROM events AS feedback "
            "JOIN events AS given ON given.id = substr(feedback.subject, 1, 32) "
            "AND given.user_id = feedback.user_id AND given.kind = 'answers' "
            "WHERE feedback.user_id = :user AND feedback.kind IN ('preferred', 'edited') "
            "ORDER BY feedback.received DESC, feedback.id DESC LIMIT :most"
        ),
        {"user": user, "most": most},
    )
    rows = [
        (
            Event(
                row.id, int(row.received), user, row.kind, row.subject, json.loads(row.value),
                row.space,
            ),
            row.prompt,
            row.answers,
        )
        for row in found
    ]  # fmt: skip
    return rows[::-1]


def page(connection: Connection, user: str, after: int = -1) -> list[Event]:
    """Return the first rows of a user that were received after a time, by time; of one user, no two
    were received at one time.
    """
    found = connection.execute(
        text(
            f"SELECT {_COLUMNS} FROM events WHERE user_id = :user AND received > :after "
            "ORDER BY received LIMIT :most"
        ),
        {"user": user, "after": after, "most": _PAGE},
    )
    return [_event(row) for row in found]


def recent_probability(connection: Connection, user: str, most: int) -> float | None:
    """Return the mean probability with which a user's last personal answers were better.

    Args:
        connection: to read from.
        user: whose.
        most: of the last rows of answers that are looked at.

    Returns:
        None where none of them was personal.
    """
    found = connection.execute(
        text(
            "SELECT value FROM events WHERE user_id = :user AND kind = 'answers' "
            "ORDER BY received DESC, id DESC LIMIT :most"
        ),
        {"user": user, "most": most},
    )
    values = [json.loads(row[0]).get("probability") for row in found]
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def erase(connection: Connection, user: str) -> int:
    """Delete all rows of a user, and leave a tombstone of a hash of the id.

    Returns:
        How many rows were deleted.
    """
    # The row of the user first: it waits for another copy's insert, whose event is then deleted.
    connection.execute(text("DELETE FROM users WHERE user_id = :user"), {"user": user})
    deleted = connection.execute(
        text("DELETE FROM events WHERE user_id = :user"), {"user": user}
    ).rowcount
    connection.execute(
        text(
            "INSERT INTO tombstones (digest, erased, events) VALUES (:digest, :erased, :events) "
            "ON CONFLICT (digest) DO UPDATE SET erased = excluded.erased, "
            "events = tombstones.events + excluded.events"
        ),
        {"digest": _digest(connection, user), "erased": now(), "events": deleted},
    )
    return int(deleted)


def expire(connection: Connection, before: int) -> int:
    """Delete the rows of all users that are older than a time.

    Args:
        connection: in a transaction.
        before: in microseconds since 1970.

    Returns:
        How many rows were deleted.
    """
    values = {"before": before, "version": new_id()}
    # The rows of the users are locked before anything is counted: another copy that expires the
    # same events waits, and counts none of them.
    connection.execute(
        text(
            "UPDATE users SET version = :version WHERE user_id IN "
            "(SELECT user_id FROM events WHERE received < :before)"
        ),
        values,
    )
    connection.execute(
        text(
            "UPDATE users SET events = events - (SELECT COUNT(*) FROM events WHERE "
            "events.user_id = users.user_id AND received < :before) WHERE version = :version"
        ),
        values,
    )
    deleted = connection.execute(
        text("DELETE FROM events WHERE received < :before"), {"before": before}
    ).rowcount
    connection.execute(text("DELETE FROM users WHERE events <= 0"))
    return int(deleted)


def _digest(connection: Connection, user: str) -> str:
    """Hash of an id with the salt of the database, so that ids cannot be tried elsewhere."""
    salt = scalar(connection, "SELECT value FROM settings WHERE name = 'salt'")
    return hashlib.sha256(f"{salt}:{user}".encode()).hexdigest()


def ensure_salt(connection: Connection) -> None:
    """Draw the salt of a new database."""
    connection.execute(
        text(
            "INSERT INTO settings (name, value) VALUES ('salt', :salt) "
            "ON CONFLICT (name) DO NOTHING"
        ),
        {"salt": secrets.token_hex(_SALT_BYTES)},
    )


def _event(row: Row) -> Event:
    number, received, user, kind, subject, prompt, answers, value, space, source = row
    return Event(
        number, int(received), user, kind, subject, json.loads(value), space, prompt, answers,
        source,
    )  # fmt: skip
