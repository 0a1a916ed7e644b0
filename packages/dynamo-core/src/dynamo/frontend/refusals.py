"""What every endpoint that works for a model does first: count its refusals, and take nothing beyond the limit."""

from __future__ import annotations

import logging
import re
import secrets

from dynamo.errors import DynamoError, EngineError, Overloaded
from dynamo.frontend.metrics import FrontendMetrics, RequestMetrics
from dynamo.runtime.http import Exchange

__all__ = ["Answering", "Ending", "Refusals", "check_room", "request_id"]

logger = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[\w.:-]{1,128}\Z", re.ASCII)


class Answering:
    """Answers a request with the error that came while it was worked on; our own mistakes go to the log.

    For tasks that nobody waits for: what they raise would leave the client without an answer.
    """

    def __init__(self, exchange: Exchange, what: str) -> None:
        """`what` is worked on; for the log."""
        self._exchange = exchange
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        if error is None or not isinstance(error, Exception):
            return False
        if not isinstance(error, DynamoError):
            logger.error("%s failed", self._what, exc_info=error)
            error = EngineError("internal error; the server's log has the details")
        self._note(error)
        self._exchange.respond_error(error)
        return True

    def _note(self, error: DynamoError) -> None:
        """The client is about to be told of `error`."""


class Refusals(Answering):
    """Answers a request with the error that its preparation raised, and counts it."""

    def __init__(self, metrics: FrontendMetrics, exchange: Exchange, endpoint: str) -> None:
        super().__init__(exchange, f"preparing a request for {endpoint}")
        self._metrics = metrics
        self._endpoint = endpoint

    def _note(self, error: DynamoError) -> None:
        self._metrics.refused(self._endpoint, error.code, error.http_status)


class Ending(Answering):
    """Answers a request with the error that came after it was begun, and ends what counts it."""

    def __init__(self, metrics: RequestMetrics, exchange: Exchange) -> None:
        super().__init__(exchange, f"starting a request for {metrics.endpoint}")
        self._metrics = metrics

    def _note(self, error: DynamoError) -> None:
        self._metrics.end(error.http_status, error.code)


def check_room(metrics: FrontendMetrics, max_inflight_requests: int) -> None:
    """Refuse before anything is read when too much is open already.

    Raises:
        Overloaded: this frontend has as many open requests as it may.
    """
    if metrics.open_requests >= max_inflight_requests:
        raise Overloaded(f"this frontend has {metrics.open_requests} open requests, its limit", retry_after_seconds=1)


def request_id(exchange: Exchange) -> str:
    """The client's ``x-request-id`` with something unique behind it, or only that; the answer has it as a header."""
    unique = secrets.token_hex(16)
    given = exchange.headers.get("x-request-id", "")
    made = f"{given}-{unique[:8]}" if _REQUEST_ID.match(given) else unique
    exchange.extra_head += b"x-request-id: %b\r\n" % made.encode()
    return made
