"""open-webui's ratings for `jaxalign serve`, to which open-webui itself does not send them.

Each row of open-webui's feedback export is posted to the service's `/v1/integrations/open-webui`,
by a webhook or by this module, which polls the export:

    python -m jaxalign.integrations.open_webui --webui http://127.0.0.1:3000

A rating finds its answer by the ids of chat and message, which open-webui sends with each request
if ENABLE_FORWARD_USER_INFO_HEADERS is set; where it sent none, by a hash of the question and the
answer.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import httpx

from jaxalign.data.importers.open_webui import read_feedback
from jaxalign.data.importers.registry import ImportOptions, child
from jaxalign.data.importers.rows import ChoiceRow, RatingRow, Skipped, Text
from jaxalign.data.tables import Row
from jaxalign.data.values import RowError, as_number
from jaxalign.errors import InputError

CHAT_HEADER, MESSAGE_HEADER = "x-openwebui-chat-id", "x-openwebui-message-id"
EXPORT = "/api/v1/evaluations/feedbacks/all/export"
RECEIVER = "/v1/integrations/open-webui"
_WEBUI_KEY, _SERVICE_KEY = "JAXALIGN_WEBUI_KEY", "JAXALIGN_KEY"
_HEADERS = {"content-type": "application/json"}
_OF_THE_ROW = (400, 413)
_OF_THE_KEY = (401, 403)
_SECONDS = 60.0  # between two polls
_MOST_SECONDS = 86_400.0
_TIMEOUT = 60.0
_COMPARED = "the user compared answers of an arena, which are answers to several requests"


class WebuiRating(NamedTuple):
    """A thumb of a user about an answer.

    Attributes:
        user: id in open-webui.
        up: whether it was a thumb up.
        keys: by which the answer may be stored, the surest first.
        source: identifies this state of the rating.
    """

    user: str
    up: bool
    keys: tuple[str, str]
    source: str


def answer_key(*parts: str) -> str:
    """Return by what an answer is found again: a hash of ids, or of question and answer.

    Example:
        >>> from jaxalign.integrations.open_webui import answer_key
        >>> answer_key("chat", "message") == answer_key("chat", "message")
        True
        >>> len(answer_key("How are you?", "Fine.")), answer_key("a", "b") == answer_key("ab", "")
        (75, False)
    """
    stripped = json.dumps([part.strip() for part in parts], ensure_ascii=False)
    return f"open-webui:{hashlib.sha256(stripped.encode('utf-8', 'surrogatepass')).hexdigest()}"


def read_rating(values: Mapping[str, object]) -> WebuiRating:
    """Return the rating of a row of open-webui's feedback export.

    Args:
        values: the row; snapshot, data, meta, user_id and id are read.

    Raises:
        RowError: the row has no rating of one answer, or lacks what the answer is found by.

    Example:
        >>> from jaxalign.integrations.open_webui import read_rating
        >>> messages = {
        ...     "q": {"role": "user", "content": "Tea?"},
        ...     "a": {"role": "assistant", "content": "Yes.", "parentId": "q"},
        ... }
        >>> rating = read_rating({
        ...     "id": "f1", "user_id": "ann", "data": {"rating": 1},
        ...     "meta": {"chat_id": "c", "message_id": "a"},
        ...     "snapshot": {"chat": {"chat": {"history": {"messages": messages}}}},
        ... })
        >>> rating.user, rating.up
        ('ann', True)
    """
    row = Row(values, "open-webui", 1, unit="row")
    missing = [name for name in ("id", "user_id", "data", "meta") if not row.has(name)]
    if missing:
        raise RowError(f"{row.where}: {missing[0]} is missing", "a field is missing")
    found = next(iter(read_feedback(iter([row]), ImportOptions())), None)
    match found:
        case RowError():
            raise found
        case RatingRow():
            chat, message = (str(child(values["meta"], f"{name}_id")) for name in _NAMES)
            up = as_number(child(values["data"], "rating")) > 0
            # A thumb may be corrected within the second that `updated_at` states.
            state = (row.identifier("id"), str(values.get("updated_at")), message, str(up))
            return WebuiRating(
                found.user,
                up,
                (answer_key(chat, message), answer_key(_last(found.prompt), _last(found.answer))),
                answer_key(*state),
            )
        case ChoiceRow():
            raise RowError(f"{row.where}: {_COMPARED}", _COMPARED)
        case Skipped():
            raise RowError(f"{found.where}: {found.reason}", found.reason)
    raise RowError(f"{row.where}: no rating", "no rating")


_NAMES = ("chat", "message")


def _last(text: Text | None) -> str:
    """The text, or the content of the last turn."""
    if text is None or isinstance(text, str):
        return text or ""
    return str(text[-1]["content"])


class Polled(NamedTuple):
    """What became of the rows of one poll.

    Attributes:
        joined: ratings whose answer was found.
        left: rows that are not used, by the reason.
    """

    joined: int
    left: dict[str, int]


class Poller:
    """Sends the new rows of open-webui's export to the service.

    Args:
        webui: client of open-webui, with the key of an administrator.
        service: client of the service, with the key that open-webui uses.
    """

    def __init__(self, webui: httpx.Client, service: httpx.Client) -> None:
        self._webui, self._service = webui, service
        self._sent: dict[str, str] = {}  # states of rows by their id

    def poll(self) -> Polled:
        """Send what is new or has changed since the last call, and return what became of it.

        Raises:
            InputError: one of the two servers cannot be reached or refuses; the rows that were not
                sent are sent by the next call.
        """
        joined, left = 0, dict[str, int]()
        for row in self._rows():
            key = str(row.get("id"))
            state = str((row.get("updated_at"), child(row, "data", "rating")))
            if self._sent.get(key) == state:
                continue
            reasons: Iterable[object]
            try:
                report = _json(self._service, "POST", RECEIVER, _needed(row))
            except RowError as error:
                reasons = (error.reason,)
            else:
                if not isinstance(report, Mapping):
                    raise InputError(
                        f"{self._service.base_url}: found no object, expected a report."
                    )
                joined += report.get("joined") == 1
                reasons = report["left"] if isinstance(report.get("left"), Mapping) else ()
            self._sent[key] = state
            for reason in reasons:
                left[str(reason)] = left.get(str(reason), 0) + 1
        return Polled(joined, left)

    def _rows(self) -> list[Mapping[str, object]]:
        found = _json(self._webui, "GET", EXPORT)
        if not isinstance(found, list) or not all(isinstance(row, Mapping) for row in found):
            raise InputError(
                f"{self._webui.base_url}: found no list of feedback at {EXPORT}; expected the "
                "address of open-webui."
            )
        return found


def _json(client: httpx.Client, method: str, path: str, row: object = None) -> object:
    """What a server answers; a row that cannot be sent, or that it refuses, is a RowError."""
    content = None if row is None else _encoded(row)
    try:
        response = client.request(method, path, content=content, headers=_HEADERS)
        response.raise_for_status()
        return response.json()
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        if row is not None and status in _OF_THE_ROW:
            reason = f"the service refused the row with status {status}"
            raise RowError(f"{client.base_url}{path}: {reason}", reason) from None
        remedy = "check the address, and the log of the server"
        if status in _OF_THE_KEY:
            remedy = f"check the keys in {_WEBUI_KEY} (of an administrator) and {_SERVICE_KEY}"
        raise InputError(
            f"{client.base_url}{path} answered with status {status}: {remedy}."
        ) from None
    except (httpx.HTTPError, ValueError) as error:
        raise InputError(
            f"{client.base_url}{path} gives no answer ({str(error) or type(error).__name__}): "
            "check that the server runs and the address."
        ) from None


def _encoded(row: object) -> bytes:
    try:
        return json.dumps(row, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise RowError("open-webui: a row is no JSON", "the row is no JSON") from None


def _needed(row: Mapping[str, object]) -> dict[str, object]:
    """The parts of a row that are read; a snapshot holds each message of the chat twice."""
    names = ("id", "user_id", "type", "data", "meta", "created_at", "updated_at")
    found = child(row, "snapshot", "chat", "chat", "history", "messages")
    messages = {
        key: {name: node[name] for name in ("role", "content", "parentId") if name in node}
        for key, node in (found.items() if isinstance(found, Mapping) else ())
        if isinstance(node, Mapping)
    }
    history = {"chat": {"chat": {"history": {"messages": messages}}}}
    return {**{name: row[name] for name in names if name in row}, "snapshot": history}


def main(words: Sequence[str] | None = None) -> int:
    """Poll until stopped, and say what became of the rows."""
    parser = argparse.ArgumentParser(
        prog="python -m jaxalign.integrations.open_webui",
        description="Send the ratings of open-webui to jaxalign serve.",
        epilog=f"{_WEBUI_KEY} holds the API key of an administrator of open-webui, {_SERVICE_KEY} "
        "the key of the service that open-webui uses.",
    )
    parser.add_argument("--webui", required=True, help="address of open-webui")
    parser.add_argument(
        "--service", default="http://127.0.0.1:8080", help="of jaxalign serve (%(default)s)"
    )
    parser.add_argument("--every", type=float, default=_SECONDS, help="seconds (%(default)g)")
    parser.add_argument("--once", action="store_true", help="poll once, and stop")
    arguments = parser.parse_args(words)
    if not 0 < arguments.every <= _MOST_SECONDS:
        parser.error(f"--every {arguments.every:g}: expected above 0 to {_MOST_SECONDS:g} seconds")
    for option in ("webui", "service"):
        if not is_address(url := getattr(arguments, option)):
            parser.error(f"--{option} {url}: expected an address such as http://127.0.0.1:3000")
    for variable in (_WEBUI_KEY, _SERVICE_KEY):
        if not (key := os.environ.get(variable, "")).isascii() or not key.isprintable():
            parser.error(f"{variable}: found other characters than those of a key")
    with (
        _client(arguments.webui, _WEBUI_KEY) as webui,
        _client(arguments.service, _SERVICE_KEY) as service,
    ):
        poller = Poller(webui, service)
        while True:
            try:
                found = poller.poll()
            except InputError as error:
                print(f"open-webui: {error}", file=sys.stderr)
                if arguments.once:
                    return 2
            else:
                reasons = "".join(f"; {count}: {why}" for why, count in found.left.items())
                print(f"{found.joined} ratings sent{reasons}", flush=True)
            if arguments.once:
                return 0
            time.sleep(arguments.every)


def is_address(url: str | None) -> bool:
    """Return whether a text is the address of a server of HTTP.

    Example:
        >>> from jaxalign.integrations.open_webui import is_address
        >>> [is_address(url) for url in ("http://127.0.0.1:8000/v1", "http://[::1/v1", "http://")]
        [True, False, False]
    """
    try:
        parsed = httpx.URL(url or "")
    except httpx.InvalidURL:
        return False
    return parsed.scheme in ("http", "https") and bool(parsed.host)


def _client(address: str, variable: str) -> httpx.Client:
    key = os.environ.get(variable)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=address.rstrip("/"), headers=headers, timeout=_TIMEOUT)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
