"""What a user may see of the stored rows and the belief, and how they are deleted."""

import json
from collections.abc import AsyncGenerator
from functools import partial

from jaxalign.personalize.taste import describe_taste
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.identity import Caller
from jaxalign.serve.service import Service
from jaxalign.serve.store import events
from jaxalign.serve.store.events import MICROSECONDS, Event, Json

_RECENT = 20  # personal answers whose probability is averaged
REMAINS = (
    "What was fitted from these rows before, such as priors and thresholds of a later run, is not "
    "undone."
)


async def describe(service: Service, caller: Caller) -> Json:
    """Return the belief about a user in numbers and words, and the rows that it is based on."""
    user = caller.require_user("id")
    taste = await service.taste(user)
    row, probability = await service.database.read(
        lambda connection: (
            events.user_row(connection, user),
            events.recent_probability(connection, user, _RECENT),
        )
    )
    found: Json = {
        "id": caller.shown,
        "object": "jaxalign.user",
        "rows": 0 if row is None else row.events,
        "feedback_used": taste.used,
        "feedback_unused": taste.unused,
        "strategy": service.config.strategy,
        "left_alone": taste.left_alone,
        "recent_probability": probability,
        "rewards": [],
        "words": [],
    }
    if not service.space.named:
        return found
    words = describe_taste(
        taste.utility, taste.used - taste.ratings, caller.shown, service.space.population,
        taste.ratings,
    )  # fmt: skip
    rewards = [
        {
            "name": one.name,
            "weight": one.weight,
            "low": one.low,
            "high": one.high,
            "probability": one.probability,
            "certainty": one.certainty,
            "population": one.population,
            "sentence": one.sentence(),
        }
        for one in words.rewards
    ]
    return {**found, "rewards": rewards, "words": words.lines()}


async def export(service: Service, caller: Caller) -> AsyncGenerator[bytes, None]:
    """Yield the belief and all that is stored about a user: the pieces of one JSON object.

    Raises:
        ApiError: there are no rows of the user.
    """
    user = caller.require_user("id")
    rows = await service.database.read(lambda connection: events.page(connection, user))
    if not rows:
        raise ApiError(
            404, "Nothing is stored of this user; expected the id of one with rows.",
            "user_not_found", "id",
        )  # fmt: skip
    found = {**await describe(service, caller), "object": "jaxalign.user.export"}
    yield json.dumps(found).removesuffix("}").encode() + b', "events": ['
    between = b""
    while rows:
        yield between + b", ".join(json.dumps(_plain(row)).encode() for row in rows)
        between, last = b", ", rows[-1].received
        rows = await service.database.read(partial(events.page, user=user, after=last))
    yield b"]}"


async def forget(service: Service, caller: Caller) -> Json:
    """Delete all rows of a user, from the disk too, and return what was done."""
    user = caller.require_user("id")
    count = await service.erase(user)
    emptied = await service.database.compact()
    return {
        "id": caller.shown,
        "object": "jaxalign.user.deleted",
        "deleted": True,
        "rows": count,
        "log_emptied": emptied,
        "remains": REMAINS,
    }


def _plain(event: Event) -> Json:
    return {
        "id": event.id,
        "received": event.received / MICROSECONDS,
        "kind": event.kind,
        "subject": event.subject,
        "prompt": None if event.prompt is None else json.loads(event.prompt),
        "answers": None if event.answers is None else json.loads(event.answers),
        "value": event.value,
        "rewards": event.space,
        "source": event.source,
    }
