"""Battles of LMSYS's Chatbot Arena, as published and as FastChat logs them."""

from collections.abc import Iterator, Mapping
from typing import Literal, get_args

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
from jaxalign.data.importers.rows import ChoiceRow, Imported, Skipped, has_fields, split_prompt
from jaxalign.data.messages import check_messages
from jaxalign.data.tables import Row
from jaxalign.data.values import RowError, short

_Winner = Literal["model_a", "model_b", "tie", "tie (bothbad)", "both_bad"]
_VOTES: dict[object, _Winner] = {
    "leftvote": "model_a",
    "rightvote": "model_b",
    "tievote": "tie",
    "bothbad_vote": "tie (bothbad)",
}
_SESSIONS = ("evaluation_session_id", "judge_hash")


def _is_battle(values: Mapping[str, object]) -> bool:
    return has_fields(values, "winner", "conversation_a", "conversation_b")


def _is_vote(values: Mapping[str, object]) -> bool:
    return has_fields(values, "type", "states") and ("models" in values or "ip" in values)


@register_format("arena", "Chatbot Arena battles (lmsys/chatbot_arena_conversations)", _is_battle)
@each_row
def read_arena(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a battle: the user is `judge`; "both are bad" is a tie.

    Later publications name sessions and not people: they want --user-column or --user.
    """
    if not row.has("judge") and options.user is None and options.user_column is None:
        sessions = " or ".join(f"`{name}`" for name in _SESSIONS if row.has(name)) or "no field"
        raise RowError(
            f"{row.where}: `judge` is missing and {sessions} stands for a session, not a person, "
            "expected a person; take each session as a user with --user-column NAME, or all rows "
            "as one user with --user NAME.",
            "`judge` is missing: sessions are no people",
        )
    winner = row.values.get("winner")
    if winner not in get_args(_Winner):
        raise refuse(row, "winner", short(winner), "one of " + ", ".join(get_args(_Winner)))
    turns = [
        check_messages(row.values.get(name), name, row.where)
        for name in ("conversation_a", "conversation_b")
    ]
    name = next((name for name in ("question_id", "id") if row.has(name)), None)
    yield from _battle(row, options.user_of(row, "judge"), str(winner), turns, name)


@register_format("fastchat", "FastChat vote logs", _is_vote)
@each_row
def read_fastchat(row: Row, options: ImportOptions) -> Iterator[Imported]:
    """Read a line of a log: votes are choices of the user at an address; chats are skipped."""
    kind = required(row, "type")
    if not isinstance(kind, str) or kind not in _VOTES:
        yield Skipped(f"a line of type {short(kind)} is no vote", row.where)
        return
    states = sequence(required(row, "states"))
    if len(states) != 2:
        raise refuse(row, "states", f"a list of {len(states)}", "the states of two models")
    turns = [_logged(row, state, place) for place, state in enumerate(states)]
    yield from _battle(row, options.user_of(row, "ip"), _VOTES[kind], turns, None)


def _battle(
    row: Row, user: str, winner: str, turns: list[tuple[Message, ...]], source: str | None
) -> Iterator[Imported]:
    if winner == "model_b":
        turns = turns[::-1]
    prompt, chosen, rejected = split_prompt(*turns)
    yield ChoiceRow(
        user=user,
        prompt=prompt,
        chosen=chosen,
        rejected=rejected,
        tie=True if winner not in ("model_a", "model_b") else None,
        time=seconds(row.values.get("tstamp")),
        source=None if source is None else row.identifier(source),
    )


def _logged(row: Row, state: object, place: int) -> tuple[Message, ...]:
    """The turns of a state: pairs of a role's name and a text, from its offset on."""
    offset = child(state, "offset")
    pairs = sequence(child(state, "messages"))[offset if isinstance(offset, int) else 0 :]
    roles = sequence(child(state, "roles"))
    first_role = roles[0] if roles else (sequence(pairs[0]) or [None])[0] if pairs else None
    pairs_of_two = [sequence(pair) for pair in pairs if len(sequence(pair)) == 2]
    turns = [
        {"role": "user" if role == first_role else "assistant", "content": text}
        for role, text in pairs_of_two
        if text is not None
    ]
    return check_messages(turns, f"states[{place}].messages", row.where)
