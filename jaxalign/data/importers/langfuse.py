"""Langfuse's scores, joined with the traces that they are of."""

import math
from collections.abc import Iterator, Mapping

from jaxalign.data.importers.registry import (
    ImportOptions,
    child,
    refuse,
    register_format,
    seconds,
)
from jaxalign.data.importers.rows import Imported, RatingRow, Skipped, Text, has_fields, plain
from jaxalign.data.messages import check_messages, is_messages
from jaxalign.data.tables import Row
from jaxalign.data.values import RowError, as_number, check_identifier, short

_TRUTH = (0.0, 1.0)


def _is_score(values: Mapping[str, object]) -> bool:
    return has_fields(values, "traceId", "name", "value")


def _is_trace(values: Mapping[str, object]) -> bool:
    return has_fields(values, "id", "input", "output")


@register_format(
    "langfuse",
    "Langfuse scores and traces, in one file or two",
    lambda values: _is_score(values) or (_is_trace(values) and "sessionId" in values),
)
def read_langfuse(rows: Iterator[Row], options: ImportOptions) -> Iterator[Imported | RowError]:
    """Read scores: each is a rating of the output of its trace.

    The user is the trace's; of an annotation, `authorUserId`. A boolean lies on the scale [0, 1];
    the scale of numbers is not in the export. Categories, corrections and scores of sessions are
    skipped, and so are the scores of evaluators, unless `--score` selects them.
    """
    scores: list[Row] = []
    traces: dict[str, Row] = {}
    for row in rows:
        try:
            if _is_score(row.values):
                if row.values["traceId"] not in (None, ""):
                    row.identifier("traceId")
                scores.append(row)
            elif _is_trace(row.values):
                traces[row.identifier("id")] = row
            else:
                yield RowError(
                    f"{row.where}: found the fields {', '.join(list(row.values)[:8])}, expected a "
                    "score (`traceId`, `name`, `value`) or a trace (`id`, `input`, `output`); "
                    "remove the row.",
                    "neither a score nor a trace",
                )
        except RowError as error:
            yield error
    for score in scores:
        try:
            yield from _rating(score, traces, options)
        except RowError as error:
            yield error


def _rating(score: Row, traces: Mapping[str, Row], options: ImportOptions) -> Iterator[Imported]:
    name, kind = score.identifier("name"), score.values.get("dataType") or "NUMERIC"
    of = score.values["traceId"]
    trace = traces.get(str(of))
    if options.score not in (None, name):
        yield Skipped(f"the score is {name}", score.where)
    elif of in (None, ""):
        yield Skipped("the score is of a session, not of a trace", score.where)
    elif trace is None:
        yield Skipped("no trace has the score's traceId", score.where)
    elif kind == "CATEGORICAL":
        yield Skipped("the score is a category", score.where)
    elif kind not in ("NUMERIC", "BOOLEAN"):
        yield Skipped(f"the score is a {str(kind).lower()}, not a number", score.where)
    elif score.values.get("source") == "EVAL" and options.score is None:
        # Whose scores they are matters: a model of a user is not one of the judge.
        yield Skipped(f"an evaluator, not a person, gave the score {name}", score.where)
    else:
        rating = _number(score)
        own = _TRUTH if kind == "BOOLEAN" else None
        prompt = trace.values.get("input")
        yield RatingRow(
            user=_user(score, trace, options),
            prompt=None if prompt is None else _text_or_turns(trace, "input", "user"),
            answer=_text_or_turns(trace, "output", "assistant"),
            rating=rating,
            scale=options.scale_of(score, rating, own),
            time=seconds(score.values.get("timestamp")),
            group=trace.identifier("sessionId") if trace.has("sessionId") else None,
            source=score.identifier("id") if score.has("id") else None,
        )


def _number(score: Row) -> float:
    """The value of a score; of a boolean 0 or 1."""
    value = score.values["value"]
    if isinstance(value, bool) or (not score.typed and str(value).lower() in ("true", "false")):
        return float(score.flag("value"))
    rating = as_number(value, score.typed)
    if math.isnan(rating):
        raise refuse(score, "value", short(value), "a number")
    return rating


def _user(score: Row, trace: Row, options: ImportOptions) -> str:
    if score.has("authorUserId") and options.user is None and options.user_column is None:
        return check_identifier(score.values["authorUserId"], "authorUserId", score.where)
    return options.user_of(trace, "userId")


def _text_or_turns(trace: Row, name: str, role: str) -> Text:
    """A text, messages, or an object that holds either."""
    value = trace.values.get(name)
    for key in ("messages", "content", "text"):
        if isinstance(value, Mapping) and (held := child(value, key)) is not None:
            value = held
    if is_messages(value):
        return plain(check_messages(value, name, trace.where), role)
    if isinstance(value, str) and value.strip():
        return value
    raise refuse(trace, name, short(value), "a text, or messages")
