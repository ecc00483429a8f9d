"""Feedback of users about answers: checked, stored, and turned into rows to learn from."""

import hashlib
import json
import re
from dataclasses import dataclass

import numpy as np

from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.identity import Caller
from jaxalign.serve.learning import why_unused
from jaxalign.serve.service import Service
from jaxalign.serve.store import events
from jaxalign.serve.store.events import Event, EventKind, Json
from jaxalign.serve.wire import FeedbackRequest

_ANSWER = re.compile(r"(?:chatcmpl-|cmpl-)?([0-9a-f]{32})(?:\.(\d{1,3}))?")
_THUMBS = {"up": 1, "down": -1}
_LONGEST_SOURCE = 255


@dataclass(frozen=True)
class Place:
    """Which answer of which event.

    Attributes:
        event: id of the answers.
        number: of one of them, from 0.
    """

    event: str
    number: int

    @property
    def subject(self) -> str:
        """The answer as one text."""
        return f"{self.event}.{self.number}"


async def receive_feedback(
    service: Service, caller: Caller, request: FeedbackRequest, source: str | None
) -> Json:
    """Keep a row of feedback, and return what became of it.

    Args:
        service: where it is kept.
        caller: whose feedback it is.
        request: the feedback.
        source: the client's idempotency key, None where it gave none.

    Raises:
        ApiError: no user is named, the answer is unknown or another user's, or the feedback is
            not valid.
        StorageError, LimitReached: nothing was kept.
    """
    user = caller.require_user()
    kind = _kind(request)
    if source is not None and not 0 < len(source) <= _LONGEST_SOURCE:
        raise ApiError(
            400, f"Idempotency-Key: expected 1 to {_LONGEST_SOURCE} characters.", "invalid_key"
        )
    place = _place(request.response_id, "response_id")
    answers, features = await _answers(service, user, place, "response_id")
    subject, value = await _value(service, kind, request, place, answers, features)
    if request.reason is not None and service.config.store == "texts":
        value["reason"] = request.reason
    value["request"] = hashlib.sha256(request.model_dump_json().encode()).hexdigest()
    event = Event(
        events.new_id(), events.now(), user, kind, subject, value, answers.space, source=source
    )
    kept = await service.keep(caller, event)
    if kept.value.get("request") != value["request"]:
        raise ApiError(
            409,
            "Another feedback was sent with this Idempotency-Key; expected a new key for each.",
            "idempotency_key_reused",
        )
    taste = await service.follow(user)
    unused = why_unused(service.space, kept)
    if kept.id == event.id:
        service.telemetry.feedback.labels(kind, str(unused is None).lower()).inc()
    return {
        "id": f"feedback-{kept.id}",
        "object": "jaxalign.feedback",
        "kind": kept.kind,
        "used": unused is None,
        "reason": f"stored, and not used: {unused}" if unused else "used from the next answer on",
        "feedback_used": taste.used,
    }


def _kind(request: FeedbackRequest) -> EventKind:
    given: list[EventKind] = [
        kind for kind in events.LEARNING if getattr(request, kind) is not None
    ]
    if len(given) != 1:
        raise ApiError(
            400,
            f"Found {' and '.join(given) or 'no feedback'}; expected exactly one of rating, "
            "preferred and edited.",
            "invalid_feedback",
            given[0] if given else "rating",
        )
    return given[0]


def _place(answer: str, field: str) -> Place:
    match = _ANSWER.fullmatch(answer)
    if match is None:
        raise _unknown(field)
    return Place(match[1], int(match[2] or 0))


def _unknown(field: str) -> ApiError:
    return ApiError(
        404,
        f"{field}: this user was given no such answer; expected an id of `jaxalign.answers` of a "
        "response that was stored.",
        "response_not_found",
        field,
    )


async def _answers(
    service: Service, user: str, place: Place, field: str
) -> tuple[Event, list[np.ndarray]]:
    """The stored answers, and the features [K] of each."""
    found = await service.database.look(
        lambda connection: events.by_id(connection, user, place.event)
    )
    if found is None or found.kind != "answers":
        raise _unknown(field)
    features = [np.asarray(one["features"]) for one in json.loads(found.answers or "[]")]
    if place.number >= len(features):
        raise _unknown(field)
    return found, features


async def _value(
    service: Service, kind: EventKind, request: FeedbackRequest, place: Place, answers: Event,
    features: list[np.ndarray],
) -> tuple[str, Json]:  # fmt: skip
    """The subject of a row, and what is learned from it."""
    own = features[place.number]
    if kind == "rating":
        rating = request.rating
        number = _THUMBS[rating] if isinstance(rating, str) else rating
        if number not in (1, -1):
            raise ApiError(
                400,
                f'rating: found {rating}; expected "up", "down", 1 or -1.',
                "invalid_feedback",
                "rating",
            )
        return place.subject, {"rating": number, "features": own.tolist()}
    if kind == "preferred":
        other = _place(str(request.preferred), "preferred")
        if other.event != place.event or other.number >= len(features):
            raise _unknown("preferred")
        if other == place:
            raise ApiError(
                400,
                "preferred: found the answer itself; expected the id of another answer to the same "
                "request, which was preferred to response_id.",
                "invalid_feedback",
                "preferred",
            )
        difference = features[other.number] - own
        # A changed mind about one request replaces the earlier choice, whichever way it went.
        numbers: Json = {"preferred": other.number, "rejected": place.number}
        return place.event, {**numbers, "difference": difference.tolist()}
    return await _edited(service, request, place, answers, own)


async def _edited(
    service: Service, request: FeedbackRequest, place: Place, answers: Event, own: np.ndarray
) -> tuple[str, Json]:
    text = str(request.edited)
    if not text.strip() or len(text) > service.config.limits.prompt_characters:
        raise ApiError(
            400,
            "edited: expected the text of the answer as it should be, not empty and no longer "
            f"than {service.config.limits.prompt_characters} characters.",
            "invalid_feedback",
            "edited",
        )
    if answers.space != service.space.ids.digest:
        raise ApiError(
            409,
            "edited: the answer was measured by other rewards than the present ones; expected an "
            "answer of the service as it runs now.",
            "other_rewards",
            "edited",
        )
    if answers.prompt is None and service.space.reads_prompts:
        raise ApiError(
            409,
            "edited: the prompt of this answer was not stored (--store features), and the rewards "
            "of --users may depend on it; send `preferred` or `rating`.",
            "texts_not_stored",
            "edited",
        )
    prompt = json.loads(answers.prompt) if answers.prompt is not None else ""
    (better,) = await service.read_rewards(prompt, [text])
    value: Json = {"difference": (better - own).tolist()}
    if service.config.store == "texts":
        value["edited"] = text
    return place.subject, value
