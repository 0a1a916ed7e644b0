"""The one HTTP/1.1 server: system ports and debug pages use it as it is, the OpenAI frontend builds on it.

A route handler is a plain function that gets an :class:`Exchange` (request in, response out) and returns at once; it
answers when it can. There is no task, no queue and no header dictionary copy per request or chunk, which is what keeps
a streamed token at a few microseconds. Input is hostile: head, body, pipelining and idle time are bounded.
"""

from dynamo.runtime.http.body import BodyStream
from dynamo.runtime.http.exchange import Exchange
from dynamo.runtime.http.limits import HttpLimits
from dynamo.runtime.http.local import LocalExchange, LocalResponse
from dynamo.runtime.http.server import HttpServer, RouteHandler

__all__ = [
    "BodyStream",
    "Exchange",
    "HttpLimits",
    "HttpServer",
    "LocalExchange",
    "LocalResponse",
    "RouteHandler",
]
