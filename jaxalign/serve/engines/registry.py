"""Engines by name: where answers are drawn, and how an engine is added."""

from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from typing import NamedTuple, Protocol

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.chat import Chat, tokenize_prompt
from jaxalign.models.language import LanguageModel
from jaxalign.serve.api_errors import ApiError
from jaxalign.serve.config import EngineConfig
from jaxalign.serve.wire import Endpoint, Reply, ReplyChunk


class SoftTokens(NamedTuple):
    """Soft tokens of a persona beside a prompt.

    Attributes:
        values: [Q, D].
        behind: tokens of the prompt that stand behind them; None for soft tokens before the prompt.
    """

    values: np.ndarray
    behind: int | None = None

    def start(self, tokens: int) -> int:
        """Return how many of a prompt's tokens stand before them."""
        return 0 if self.behind is None else tokens - self.behind


class Call(NamedTuple):
    """One request to an engine.

    Attributes:
        endpoint: chat or text.
        body: the request as the OpenAI protocol has it, without `model`, `stream` and users.
        prompt: its prompt, as a language model takes it.
        n: answers to draw.
        policy: name of the policy that answers; None for the engine's own model.
        soft: soft tokens of the user's persona; None for none.
    """

    endpoint: Endpoint
    body: Mapping[str, object]
    prompt: str | Chat
    n: int = 1
    policy: str | None = None
    soft: SoftTokens | None = None


class AnswerEngine(Protocol):
    """Draws answers. A failure that the client may see is raised as an `ApiError`."""

    @property
    def model(self) -> str:
        """The name of its model, as `GET /v1/models` lists it."""
        ...

    @property
    def policies(self) -> Collection[str]:
        """Names of the policies that calls may name, besides its own model; known once started."""
        ...

    @property
    def personas(self) -> bool:
        """Whether calls may have soft tokens; known once started."""
        ...

    async def start(self) -> None:
        """Load or find the model.

        Raises:
            InputError: there is no such model or server.
        """
        ...

    async def complete(self, call: Call) -> Reply:
        """Return n answers."""
        ...

    def stream(self, call: Call) -> AsyncGenerator[ReplyChunk, None]:
        """Yield one answer piece by piece."""
        ...

    async def is_ready(self) -> bool:
        """Return whether it can answer now."""
        ...

    async def close(self) -> None:
        """Give back what it holds."""
        ...


RETRY_AFTER = "1"
"""Seconds until a refused request may be sent again, as a header has it."""
MakeEngine = Callable[[EngineConfig], AnswerEngine]
ENGINES: dict[str, MakeEngine] = {}
"""Every registered engine by its name."""


def register_engine(name: str) -> Callable[[MakeEngine], MakeEngine]:
    """Return a decorator that registers what makes an engine from its settings.

    Args:
        name: of the engine, for `jaxalign serve --engine NAME`.

    Raises:
        InputError: the name is taken.

    Example:
        >>> from jaxalign.errors import InputError
        >>> from jaxalign.serve.engines import register_engine
        >>> try:
        ...     register_engine("openai")
        ... except InputError as error:
        ...     print(error)
        the engine 'openai' is registered already; give the new one another name.
    """
    if name in ENGINES:
        raise InputError(
            f"the engine {name!r} is registered already; give the new one another name."
        )

    def register(make: MakeEngine) -> MakeEngine:
        ENGINES[name] = make
        return make

    return register


def make_engine(config: EngineConfig) -> AnswerEngine:
    """Return the engine of some settings; it is not started yet.

    Raises:
        InputError: no engine has that name, or its settings do not suffice.
    """
    if config.kind not in ENGINES:
        raise InputError(f"--engine {config.kind}: expected one of {', '.join(ENGINES)}.")
    return ENGINES[config.kind](config)


def known_roles(prompt: str | Chat) -> str | Chat:
    """Return the prompt with OpenAI's newer name of the system role as templates know it.

    Example:
        >>> from jaxalign.serve.engines.registry import known_roles
        >>> known_roles([{"role": "developer", "content": "Be brief."}])
        ({'role': 'system', 'content': 'Be brief.'},)
    """
    if isinstance(prompt, str):
        return prompt
    return tuple(
        {**turn, "role": "system"} if turn["role"] == "developer" else turn for turn in prompt
    )


def tokens_of(
    model: LanguageModel, prompt: str | Chat, endpoint: Endpoint, reserved: int
) -> list[int]:
    """Return the token ids of the prompt of a request.

    Args:
        model: that answers.
        prompt: of the request, with roles that templates know.
        endpoint: of the request, which names the field of the prompt.
        reserved: tokens of the context that are needed for other things.

    Raises:
        ApiError: the template refuses the prompt, or the context has no room for it.
    """
    field = "prompt" if endpoint == "text" else "messages"
    try:
        ids = tokenize_prompt(model, prompt, field)
    except InputError as error:
        raise ApiError(400, str(error), "invalid_prompt", field) from None
    room = model.config.positions - reserved
    if len(ids) > room:
        raise ApiError(
            400,
            f"{field}: found {len(ids)} tokens, expected {room} at most, since the context of "
            f"{model.name} has {model.config.positions} and {reserved} are reserved for the answer "
            "and soft tokens; shorten the prompt.",
            "context_length_exceeded",
            field,
        )
    return ids


def too_many(most: int) -> ApiError:
    """Return the refusal of a request beyond the most that may wait."""
    return ApiError(
        429,
        f"{most} requests are being answered, the most allowed; try again in a moment.",
        "engine_busy",
        headers={"Retry-After": RETRY_AFTER},
    )
