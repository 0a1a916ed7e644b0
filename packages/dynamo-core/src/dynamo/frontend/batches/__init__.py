"""``/v1/batches``: many requests of one file, answered when there is room, into another file.

A batch is a row in SQLite. Any frontend process of the machine may take it, by a lease that it renews; when it dies,
another one goes on. Each answer becomes a row of its own as soon as it is there, at most one per line of the input, so
that a line that was asked twice is still answered once. The rows become the output file at the end.

`endpoint` takes the clients' requests, `claims` takes batches, `model_names` remembers which of them may be for others,
`run` does one, `line` answers one request of it by the same route handlers that answer live ones. `service` puts them
together.
"""

from dynamo.frontend.batches.service import BatchService

__all__ = ["BatchService"]
