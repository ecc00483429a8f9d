"""Ratings that chat applications send by webhook, joined with the answers that were served."""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from jaxalign.data.values import RowError
from jaxalign.integrations.open_webui import WebuiRating, read_rating
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.feedback import receive_feedback
from jaxalign.serve.service import Service
from jaxalign.serve.store import events
from jaxalign.serve.store.events import Event, Json
from jaxalign.serve.wire import FeedbackRequest

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
        StorageError, LimitReached: a row was not kept; those before it were.
    """
    service.gate.key_of(headers)
    joined, left = 0, dict[str, int]()
    for values in rows:
        try:
            await _keep(service, headers, read_rating(values))
            joined += 1
        except RowError as error:
            left[error.reason] = left.get(error.reason, 0) + 1
    return {"object": "jaxalign.feedback.import", "joined": joined, "left": left}


async def _keep(service: Service, headers: Mapping[str, str], rating: WebuiRating) -> None:
    caller = service.gate.caller(headers, rating.user)
    user = caller.require_user()
    answers = await _find(service, user, rating.keys)
    if answers is None:
        raise RowError(_NOT_FOUND, _NOT_FOUND)
    feedback = FeedbackRequest(response_id=answers.id, rating="up" if rating.up else "down")
    try:
        await receive_feedback(service, caller, feedback, rating.source)
    except ApiError as error:
        raise RowError(error.message, error.message) from None


async def _find(service: Service, user: str, keys: Sequence[str]) -> Event | None:
    def find(connection: Connection) -> Event | None:
        for key in keys:
            found = events.by_source(connection, user, key)
            if found is not None and found.kind == "answers":
                return found
        return None

    return await service.database.read(find)
