"""Logs and metrics of one process.

Log lines go to stderr, one event a line, as text or JSON. Metrics live in one registry per process, which the system
port and the frontend render; nothing on a hot path touches more than a counter.
"""

from __future__ import annotations

import datetime as dt
import logging
import sys
from typing import Any

import msgspec
from prometheus_client import exposition
from prometheus_client.registry import Collector

__all__ = ["METRICS_CONTENT_TYPE", "configure_logging", "render_metrics"]

METRICS_CONTENT_TYPE = exposition.CONTENT_TYPE_LATEST


class _JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id where the line is about one, exception."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.timezone.utc).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        request_id = getattr(record, "request_id", None)
        if request_id is not None:
            event["request_id"] = request_id
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(event).decode()


def configure_logging(level: str, log_format: str) -> None:
    """Send all logs to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if log_format == "json":
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("httpx", "httpcore", "urllib3", "filelock"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, logging.getLogger().level))


def render_metrics(registry: Collector) -> bytes:
    """The registry, or whatever else has metrics, in Prometheus' text format."""
    return exposition.generate_latest(registry)
