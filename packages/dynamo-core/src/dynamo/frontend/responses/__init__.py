"""``/v1/responses``: OpenAI's Responses API over the same pipeline as chat completions.

`request` is what clients send, `items` the conversation in it, `format` what they get; `endpoint` puts it together and
keeps responses for those who go on from them.
"""

from dynamo.frontend.responses.endpoint import Responses
from dynamo.frontend.responses.request import ResponseRequest, render_error

__all__ = ["ResponseRequest", "Responses", "render_error"]
