"""What is known of a batch, and how clients see it."""

from __future__ import annotations

import secrets
from typing import Any, Literal, TypeAlias

import msgspec

from dynamo.errors import InvalidRequest

__all__ = ["ENDED", "BatchEnded", "BatchFault", "BatchNotKept", "BatchRecord", "BatchState", "Status", "new_batch_id"]

Status: TypeAlias = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]


#: A batch does not leave these.
ENDED = frozenset[Status]({"failed", "completed", "expired", "cancelled"})


class BatchEnded(InvalidRequest):
    """The batch has ended, so that it cannot be cancelled; OpenAI has the same status for it."""

    code = "batch_ended"
    http_status = 409


class BatchNotKept(InvalidRequest):
    """There is no such batch (any more), or it belongs to another API key."""

    code = "not_found"
    http_status = 404


class BatchFault(msgspec.Struct, omit_defaults=True):
    """Why a batch failed; of a line, or of all of it."""

    code: str
    message: str
    line: int | None = None
    """From 1."""
    param: str | None = None


class BatchState(msgspec.Struct):
    """What changes a few times in the life of a batch. Times are Unix seconds; None: it did not happen."""

    endpoint: str
    completion_window: str
    expires_at: float
    metadata: dict[str, str] | None = None
    output_expiry_seconds: float | None = None
    models: list[str] = []
    """What the requests name, once the input has been read; empty when they are very many."""
    total: int = 0
    errors: list[BatchFault] = []
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None


class BatchRecord(msgspec.Struct):
    """One batch."""

    number: int
    """Of the row; older batches have smaller ones."""
    id: str
    owner: str
    """Name of the API key that it belongs to."""
    status: Status
    input_file_id: str
    created_at: float
    completed: int
    """Requests that were answered with a success."""
    failed: int
    """Requests that were not."""
    state: BatchState

    def body(self) -> dict[str, Any]:
        """OpenAI's batch object."""
        state = self.state
        times = {
            name: None if value is None else int(value)
            for name, value in msgspec.structs.asdict(state).items()
            if name.endswith("_at")
        }
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": state.endpoint,
            "model": state.models[0] if len(state.models) == 1 else None,
            "errors": {"object": "list", "data": state.errors} if state.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": state.completion_window,
            "status": self.status,
            "output_file_id": state.output_file_id,
            "error_file_id": state.error_file_id,
            "created_at": int(self.created_at),
            **times,
            "request_counts": {"total": state.total, "completed": self.completed, "failed": self.failed},
            "metadata": state.metadata,
        }


def new_batch_id() -> str:
    """An id that cannot be guessed."""
    return f"batch_{secrets.token_hex(16)}"
