"""The objects of the OpenAI protocol that pass through the service, with all their other fields."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

Endpoint = Literal["chat", "text"]
PATHS: dict[Endpoint, str] = {"chat": "chat/completions", "text": "completions"}
PREFIXES: dict[Endpoint, str] = {"chat": "chatcmpl-", "text": "cmpl-"}
CHUNKS: dict[Endpoint, str] = {"chat": "chat.completion.chunk", "text": "text_completion"}
WHOLE: dict[Endpoint, str] = {"chat": "chat.completion", "text": "text_completion"}
MOST_CHOICES = 128  # of OpenAI's own n

UserName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
AnswerId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Count = Annotated[int, Field(ge=1, le=MOST_CHOICES)]
Real = Annotated[float, Field(allow_inf_nan=False)]


def _is_rating(value: object) -> object:
    """The value, unless it is of a type that no rating has."""
    if value in ("up", "down") or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise PydanticCustomError("rating", "Input should be 'up', 'down', 1 or -1")


# Of a union by itself, errors would name one of its parts.
Rating = Annotated[Literal["up", "down"] | int, BeforeValidator(_is_rating)]


class _RequestObject(BaseModel):
    """An object that keeps fields that are not named here."""

    model_config = ConfigDict(extra="allow", strict=True)


def _users(request: "GenerationRequest | FeedbackRequest") -> dict[str, object]:
    return {
        "safety_identifier": request.safety_identifier,
        "user": request.user,
        "metadata.user_id": (request.metadata or {}).get("user_id"),
    }


class StreamOptions(_RequestObject):
    """How a response is streamed."""

    include_usage: bool | None = None


class TextPart(_RequestObject):
    """A part of a message's content; only those of type `text` are read."""

    type: str
    text: str | None = None


class ChatTurn(_RequestObject):
    """A message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[TextPart] | None = None


class GenerationRequest(_RequestObject):
    """What requests for chat and for text completions have in common."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Count | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[Real, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Real, Field(gt=0, le=1)] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    user: UserName | None = None
    safety_identifier: UserName | None = None
    metadata: dict[str, object] | None = None

    def users(self) -> dict[str, object]:
        """Return the users that the request names, by the field; None for none."""
        return _users(self)


class ChatRequest(GenerationRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[ChatTurn], Field(min_length=1)]


class TextRequest(GenerationRequest):
    """The body of `POST /v1/completions`."""

    prompt: str


class FeedbackRequest(BaseModel):
    """The body of `POST /v1/feedback`; exactly one of rating, preferred and edited is given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    response_id: AnswerId
    rating: Rating | None = None
    preferred: AnswerId | None = None
    edited: str | None = None
    reason: str | None = None
    user: UserName | None = None
    safety_identifier: UserName | None = None
    metadata: dict[str, object] | None = None

    def users(self) -> dict[str, object]:
        """Return the users that the request names, by the field; None for none."""
        return _users(self)


class _EngineObject(BaseModel):
    """An object of an engine; servers differ, so that only fields that are used are checked."""

    model_config = ConfigDict(extra="allow")


class TokenUsage(_EngineObject):
    """Tokens that were read and drawn."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class AnswerMessage(_EngineObject):
    """The message of an answer."""

    role: str = "assistant"
    content: str | None = None


class ReplyChoice(_EngineObject):
    """One answer of a reply: a message of a chat, or a text."""

    index: int = 0
    message: AnswerMessage | None = None
    text: str | None = None
    finish_reason: str | None = None

    def content(self) -> str:
        """Return the text of the answer."""
        if self.message is not None:
            return self.message.content or ""
        return self.text or ""


class Reply(_EngineObject):
    """A whole response of an engine."""

    choices: Annotated[list[ReplyChoice], Field(min_length=1)]
    usage: TokenUsage | None = None


class Delta(_EngineObject):
    """A piece of a message."""

    role: str | None = None
    content: str | None = None


class ChunkChoice(_EngineObject):
    """A piece of one answer."""

    index: int = 0
    delta: Delta | None = None
    text: str | None = None
    finish_reason: str | None = None

    def content(self) -> str:
        """Return the text of the piece."""
        if self.delta is not None:
            return self.delta.content or ""
        return self.text or ""


class ReplyChunk(_EngineObject):
    """A piece of a response that is streamed."""

    choices: list[ChunkChoice] = Field(default_factory=list)
    usage: TokenUsage | None = None


def sum_usage(parts: list[TokenUsage | None]) -> TokenUsage:
    """Return the tokens of several calls together.

    Example:
        >>> from jaxalign.serve.wire import TokenUsage, sum_usage
        >>> parts = [TokenUsage(completion_tokens=3), None, TokenUsage(completion_tokens=4)]
        >>> sum_usage(parts).total_tokens
        7
    """
    known = [part for part in parts if part is not None]
    read = sum(part.prompt_tokens for part in known)
    drawn = sum(part.completion_tokens for part in known)
    return TokenUsage(prompt_tokens=read, completion_tokens=drawn, total_tokens=read + drawn)
