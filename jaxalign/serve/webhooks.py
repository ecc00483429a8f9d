"""Ratings that chat applications send by webhook, joined with the answers that were served."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from jaxalign.data.values import RowError
from jaxalign.integrations.open_webui import WebuiRating, read_rating
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.feedback import receive_feedback
from jaxalign.serve.service import Service
from jaxalign.serve.store import events
from jaxalign.serve.store.events import Event, Json, LimitReached
from jaxalign.serve.wire import FeedbackRequest

_MOST_ROWS = 1_000
_OF_THE_KEY = (401, 403)
"""Refusals that hold for every row: the key is unknown, or bound to another user."""
_NOT_FOUND = "no answer that was served to this user has these ids, question and text"


async def receive_webui(
    service: Service, headers: Mapping[str, str], rows: Sequence[Mapping[str, object]]
) -> Json:
    """Keep the ratings among rows of open-webui's feedback export, and return what became of them.

    Args:
        service: where they are kept.
        headers: of the request, whose key must be the one that open-webui answers with.
        rows: of the export; a row that is sent again counts once.

    Raises:
        ApiError: a key that does not speak for the users of the rows.
        StorageError: a row was not kept; those before it were.
    """
    service.gate.key_of(headers)
    if len(rows) > _MOST_ROWS:
        raise ApiError(
            413, f"Found {len(rows)} rows; expected {_MOST_ROWS} at most: send them in parts.",
            "too_many_rows",
        )  # fmt: skip
    joined, left = 0, dict[str, int]()
    for values in rows:
        try:
            await _keep(service, headers, read_rating(values))
            joined += 1
        except (RowError, LimitReached, ApiError) as error:
            if isinstance(error, ApiError) and error.status in _OF_THE_KEY:
                raise
            reason = error.reason if isinstance(error, RowError) else str(error)
            left[reason] = left.get(reason, 0) + 1
    return {"object": "jaxalign.feedback.import", "joined": joined, "left": left}


async def _keep(service: Service, headers: Mapping[str, str], rating: WebuiRating) -> None:
    caller = service.gate.caller(headers, {"user_id": rating.user})
    user = caller.require_user()
    answers = await _find(service, user, rating.keys)
    if answers is None:
        raise RowError(_NOT_FOUND, _NOT_FOUND)
    feedback = FeedbackRequest(response_id=answers.id, rating="up" if rating.up else "down")
    await receive_feedback(service, caller, feedback, rating.source)


async def _find(service: Service, user: str, keys: Sequence[str]) -> Event | None:
    def find(connection: Connection) -> Event | None:
        for key in keys:
            found = events.by_source(connection, user, key)
            if found is not None and found.kind == "answers":
                return found
        return None

    return await service.database.read(find)
