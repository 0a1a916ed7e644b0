"""``/v1/messages``: Anthropic's Messages API over the same pipeline as chat completions.

`request` is what clients send, `conversation` the chat messages in it, `format` what they get, `errors` how they are
told that something went wrong; `endpoint` puts it together.
"""

from dynamo.frontend.messages.endpoint import Messages
from dynamo.frontend.messages.errors import render_error
from dynamo.frontend.messages.request import MessageRequest, TokenCountRequest

__all__ = ["MessageRequest", "Messages", "TokenCountRequest", "render_error"]
