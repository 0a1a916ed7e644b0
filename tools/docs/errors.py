"""docs/reference/errors.md: what a client or another process can see, and what it may do about it."""

from __future__ import annotations

from collections.abc import Iterator

from dynamo.errors import DynamoError, Retry
from tools.docs.markdown import GENERATED, docstring, table

__all__ = ["page"]

_RETRY = {Retry.NEVER: "no", Retry.SAME_WORKER: "same worker", Retry.OTHER_WORKER: "another worker"}


def page() -> str:
    """The page."""
    rows = [
        (
            "&nbsp;" * 4 * depth + f"`{cls.__name__}`",
            f"`{cls.code}`",
            str(cls.http_status),
            f"`{cls.openai_type}`",
            _RETRY[cls.retry],
            docstring(cls).split("\n\n")[0],
        )
        for cls, depth in _walk(DynamoError, 0)
    ]
    return f"""# Errors

{GENERATED}

Every error that leaves a process is one of these classes of `dynamo.errors`. Programs read the code, people the
message; a second line, where there is one, says how to fix it. Clients of the HTTP API get OpenAI's body:

```json
{{"error": {{"message": "...", "type": "invalid_request_error", "param": "max_tokens", "code": "invalid_request"}}}}
```

"Retry" is what the stack itself does with a request whose stream has not ended; 429 and 503 carry `Retry-After`.

{table(["class", "code", "HTTP", "type", "retry", "meaning"], rows)}
"""


def _walk(cls: type[DynamoError], depth: int) -> Iterator[tuple[type[DynamoError], int]]:
    yield cls, depth
    for child in cls.__subclasses__():
        if child.__module__ == cls.__module__:
            yield from _walk(child, depth + 1)
