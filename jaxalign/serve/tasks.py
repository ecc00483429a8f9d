"""Requests that personal answers would spoil: they are answered plainly."""

import re
from collections.abc import Mapping, Sequence

from jaxalign.serve.wire import ChatRequest, ChatTurn, GenerationRequest

_TASK = re.compile(r"\s*#{1,3} Task:\s", re.IGNORECASE)
_HISTORY = re.compile(r"<chat_history>|#{1,3} (Chat History|Output|Guidelines):", re.IGNORECASE)
_EXACT = (
    "tools", "functions", "tool_choice", "response_format", "logprobs", "top_logprobs",
    "logit_bias", "audio", "modalities", "prediction", "suffix", "echo", "best_of",
)  # fmt: skip
"""Fields under which a client expects one answer in an exact form, drawn once."""


def is_task(turns: Sequence[ChatTurn]) -> bool:
    """Return whether a chat is a chat application's own: a title, tags, follow-ups, a query.

    open-webui sends them as one message that begins with "### Task:" and names guidelines, an
    output format or the history of the chat. No user reads them as an answer.

    Example:
        >>> from jaxalign.serve.tasks import is_task
        >>> from jaxalign.serve.wire import ChatTurn
        >>> title = "### Task:\\nGenerate a title.\\n### Guidelines:\\n- Be brief."
        >>> is_task([ChatTurn(role="user", content=title)])
        True
        >>> is_task([ChatTurn(role="user", content="What is a task?")])
        False
    """
    if len(turns) != 1 or not isinstance(turns[0].content, str):
        return False
    return bool(_TASK.match(turns[0].content)) and bool(_HISTORY.search(turns[0].content))


def requested_fields(body: Mapping[str, object], names: Sequence[str]) -> list[str]:
    """Return which of some fields of a body ask for something.

    Empty values and 0 do not, but for `logprobs`: of a text completion, 0 asks for those of the
    tokens that were drawn.

    Example:
        >>> from jaxalign.serve.tasks import requested_fields
        >>> body = {"tools": [], "presence_penalty": 0, "echo": False, "logprobs": 0, "suffix": "."}
        >>> requested_fields(body, tuple(body))
        ['logprobs', 'suffix']
    """
    found = []
    for name in names:
        value = body.get(name)
        zero = name == "logprobs" and value == 0 and value is not False
        if zero or value not in (None, False, "", [], {}):
            found.append(name)
    return found


def why_plain(request: GenerationRequest, by_policy: bool = False) -> str | None:
    """Return why a request is answered plainly whoever asks, None if it may be personal.

    Args:
        request: the body.
        by_policy: whether policies may answer that differ without any chance, and not draws alone.
    """
    extra: Mapping[str, object] = request.model_extra or {}
    if given := requested_fields(extra, _EXACT):
        return f"the request has {given[0]}"
    if request.n is not None and request.n > 1:
        return "the request has an n of its own"
    if request.temperature == 0 and not by_policy:
        return "at temperature 0 all draws are alike"
    if isinstance(request, ChatRequest):
        if is_task(request.messages):
            return "the prompt is a task of the chat application"
        parts = [part for turn in request.messages if isinstance(turn.content, list)
                 for part in turn.content]  # fmt: skip
        if any(part.type != "text" for part in parts):
            return "the request has parts that are no text"
        if any(turn.role in ("tool", "function") for turn in request.messages):
            return "the chat holds results of tools"
    return None
