"""Errors in the shape and with the status codes of the OpenAI API."""

from collections.abc import Mapping
from typing import TypedDict

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
}


class ErrorDetail(TypedDict):
    """What an error says."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(TypedDict):
    """The body of every response that is an error."""

    error: ErrorDetail


_TEXT_OR_NULL = {"type": ["string", "null"]}
ERROR_SCHEMA = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": _TEXT_OR_NULL,
                "code": _TEXT_OR_NULL,
            },
        }
    },
}
"""`ErrorBody` as OpenAPI states it."""


class ApiError(Exception):
    """A request that is refused, or that failed.

    Args:
        status: of HTTP.
        message: one sentence for the client: what was found, what was expected.
        code: for programs.
        param: the field of the request that is wrong.
        headers: of the response.

    Example:
        >>> from jaxalign.serve.api_errors import ApiError
        >>> error = ApiError(404, "There is no model 'x'.", "model_not_found", "model")
        >>> error.body()["error"]["type"]
        'invalid_request_error'
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    def body(self) -> ErrorBody:
        """Return the body of the response."""
        kind = _TYPES.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }
