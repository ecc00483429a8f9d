"""What the service counts and logs: never a text, and never a user's id."""

import json
import logging
import sys
import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

LOGGER = logging.getLogger("jaxalign.serve")
_SECONDS = (0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 120.0)


class Telemetry:
    """Counters of one service, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "jaxalign_requests", "Requests by route, method and status.",
            ("route", "method", "status"), registry=self._registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "jaxalign_request_seconds", "Time until a response began, by route.", ("route",),
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.answers = Counter(
            "jaxalign_answers", "Answers by strategy.", ("strategy",), registry=self._registry
        )
        self.feedback = Counter(
            "jaxalign_feedback", "Rows of feedback by kind, and whether they are learned from.",
            ("kind", "used"), registry=self._registry,
        )  # fmt: skip
        self.tokens = Counter(
            "jaxalign_tokens_drawn", "Tokens that engines drew.", registry=self._registry
        )
        self.in_flight = Gauge(
            "jaxalign_requests_in_flight", "Requests being answered.", registry=self._registry
        )

    def text(self) -> bytes:
        """Return all of them in the format of Prometheus."""
        return generate_latest(self._registry)


class JsonLines(logging.Formatter):
    """One JSON object for each record; `extra={"fields": {...}}` adds to it."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            trace = record.exc_info[2]
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            if trace is not None:
                # The place alone: the message of an exception may hold a text.
                line["at"] = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
        return json.dumps(line, ensure_ascii=False, default=str)


def log_to_stderr() -> None:
    """Write the service's log to standard error, a JSON object a line."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    LOGGER.handlers[:] = [handler]
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False


def log(event: str, level: int = logging.INFO, **fields: object) -> None:
    """Log an event with its fields, none of which may be a text or a user's id."""
    LOGGER.log(level, event, extra={"fields": fields})
