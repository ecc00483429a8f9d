"""Exports of open-webui: feedback with thumbs, and chats with answers that were regenerated."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

from jaxalign.data.chat_template import Message
from jaxalign.data.importers.registry import (
    ImportOptions,
    child,
    each_row,
    refuse,
    register_format,
    required,
    seconds,
    sequence,
)
from jaxalign.data.importers.rows import (
    ChoiceRow,
    Imported,
    RatingRow,
    Skipped,
    Text,
    has_fields,
    plain,
)
from jaxalign.data.tables import Row
from jaxalign.data.values import RowError, as_number, check_text, short

Node = Mapping[str, object]


class _Base(TypedDict):
    """What choices and ratings have in common."""

    user: str
    prompt: Text | None
    group: str | None
    time: float | str | None
    source: str | None


class _Thumb(NamedTuple):
    """The rating of an answer, the id of its choices, and whether the thumb was up."""

    rating: RatingRow
    key: str
    good: bool


class _Shown(NamedTuple):
    """A rated answer of the arena, whether its thumb was up, and the answers shown beside it."""

    base: _Base
    answer: str
    good: bool
    others: tuple[str, ...]


_Place = tuple[str, str, str]
"""User, chat and message that was answered."""


def _is_feedback(values: Mapping[str, object]) -> bool:
    return (
        has_fields(values, "user_id", "data", "meta")
        and child(values, "data", "rating") is not None
    )


def _is_chat(values: Mapping[str, object]) -> bool:
    return isinstance(child(values, "chat", "history", "messages"), Mapping)


@register_format("open-webui", "open-webui feedback export", _is_feedback)
def read_feedback(rows: Iterator[Row], options: ImportOptions) -> Iterator[Imported | RowError]:
    """Read thumbs, and choices between answers to the same message.

    A thumb is a rating of -1 or 1; where the user gave a grade from 1 to 10 as well, that grade
    is the rating. Of two answers to one message, one with a thumb up is chosen over one with a
    thumb down; their thumbs are then no ratings too, or they would count twice. In the arena, a
    rated answer wins or loses against the others shown beside it, and is no rating: the user
    compared. Two that are rated alike are a tie.
    """
    thumbs: dict[_Place, list[_Thumb]] = defaultdict(list)
    arena: dict[_Place, list[_Shown]] = defaultdict(list)
    for row in rows:
        try:
            yield from _feedback(row, options, thumbs, arena)
        except RowError as error:
            yield error
    for rated in thumbs.values():
        yield from _compared(rated)
    for shown in arena.values():
        yield from _arena_choices(shown)


def _compared(rated: Sequence[_Thumb]) -> Iterator[Imported]:
    """Choices between rated answers to one message, and the ratings of those in no choice."""
    base = rated[0].rating
    pairs = [
        (better, worse)
        for better in rated
        for worse in rated
        if better.good and not worse.good and better.rating.answer != worse.rating.answer
    ]
    yield from (one.rating for one in rated if not any(one in pair for pair in pairs))
    for better, worse in pairs:
        yield ChoiceRow(
            user=base.user, prompt=base.prompt, time=base.time, group=base.group,
            source=better.key, chosen=better.rating.answer, rejected=worse.rating.answer,
        )  # fmt: skip


def _arena_choices(shown: Sequence[_Shown]) -> Iterator[Imported]:
    """Each pair of answers to one message of which one or both were rated, once."""
    good = {one.answer: one.good for one in shown}
    done: set[frozenset[str]] = set()
    for one in shown:
        for other in one.others:
            pair = frozenset((one.answer, other))
            if pair in done:
                continue
            done.add(pair)
            answers = (one.answer, other) if good[one.answer] else (other, one.answer)
            tie = True if good.get(other) == good[one.answer] else None
            yield ChoiceRow(chosen=answers[0], rejected=answers[1], tie=tie, **one.base)


def _feedback(
    row: Row,
    options: ImportOptions,
    thumbs: dict[_Place, list[_Thumb]],
    arena: dict[_Place, list[_Shown]],
) -> Iterator[Imported]:
    data, meta = required(row, "data"), required(row, "meta")
    thumb = as_number(child(data, "rating"))
    if thumb not in (-1, 1):
        raise refuse(row, "data.rating", short(child(data, "rating")), "-1 or 1")
    user, chat = options.user_of(row, "user_id"), str(child(meta, "chat_id") or "")
    messages = child(row.values, "snapshot", "chat", "chat", "history", "messages")
    key = child(meta, "message_id")
    node = child(messages, key) if isinstance(key, str) else None
    if not isinstance(messages, Mapping) or not isinstance(node, Mapping):
        yield Skipped("the snapshot does not hold the rated message", row.where)
        return
    answer = check_text(node.get("content"), "content of the rated message", row.where)
    parent = node.get("parentId")
    siblings = [
        other
        for other in messages.values()
        if isinstance(other, Mapping)
        and other is not node
        and parent is not None
        and other.get("parentId") == parent
        and isinstance(other.get("content"), str)
        and other["content"] not in ("", answer)
    ]
    base: _Base = {
        "user": user, "prompt": _prompt(messages, parent), "group": chat or None,
        "time": seconds(row.values.get("created_at")),
        "source": row.identifier("id") if row.has("id") else None,
    }  # fmt: skip
    if child(meta, "arena") and siblings:
        others = tuple(str(other["content"]) for other in siblings)
        arena[user, chat, str(parent)].append(_Shown(base, answer, thumb > 0, others))
        return
    grade = as_number(child(data, "details", "rating"))
    graded = 1 <= grade <= 10
    rating = RatingRow(
        answer=answer, rating=grade if graded else thumb, scale=(1, 10) if graded else (-1, 1),
        **base,
    )  # fmt: skip
    if isinstance(parent, str):
        place = (user, chat, parent)
        thumbs[place].append(_Thumb(rating, str(base["source"] or key), thumb > 0))
    else:
        yield rating


@register_format("open-webui-chats", "open-webui chat export", _is_chat)
@each_row
def read_chats(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read choices that users made without stating them.

    An answer that was regenerated, and not continued, loses to each sibling that was continued.
    """
    history = child(row.values, "chat", "history", "messages")
    if not isinstance(history, Mapping):
        raise refuse(row, "chat.history.messages", "missing", "an object of messages")
    answers: dict[str, list[Node]] = defaultdict(list)
    for node in history.values():
        if isinstance(node, Mapping) and node.get("role") == "assistant":
            answers[str(node.get("parentId"))].append(node)
    found = False
    for parent, siblings in answers.items():
        continued = [node for node in siblings if sequence(node.get("childrenIds"))]
        left = [node for node in siblings if not sequence(node.get("childrenIds"))]
        for better in continued:
            for worse in left:
                texts = [node.get("content") for node in (better, worse)]
                if texts[0] == texts[1] or not all(isinstance(t, str) and t.strip() for t in texts):
                    continue
                found = True
                yield ChoiceRow(
                    user=options.user_of(row, "user_id"),
                    prompt=_prompt(history, parent),
                    chosen=check_text(texts[0], "content", row.where),
                    rejected=check_text(texts[1], "content", row.where),
                    implicit=True,
                    time=seconds(better.get("timestamp")),
                    group=row.identifier("id") if row.has("id") else None,
                )
    if not found:
        yield Skipped("no answer of the chat was regenerated and left", row.where)


def _prompt(messages: Node, key: object) -> Text | None:
    """The conversation up to a message, from its parents, without empty turns, which failed."""
    turns: list[Message] = []
    seen: set[str] = set()
    while isinstance(key, str) and key not in seen:
        seen.add(key)
        node = messages.get(key)
        if not isinstance(node, Mapping):
            break
        role, content = node.get("role"), node.get("content")
        if isinstance(role, str) and isinstance(content, str) and content.strip():
            turns.append({"role": role, "content": content})
        key = node.get("parentId")
    return plain(turns[::-1], "user") if turns else None
