"""guided_json: calls that a JSON schema forces, whatever the model's own format is.

For `tool_choice` ``required`` the schema is a list of calls, for ``named`` it is the function's arguments::

    [{"name": "get_weather", "parameters": {"city": "Oslo"}}]
    {"city": "Oslo"}

The frontend takes this parser in place of the model's where it guides decoding so.
"""

from __future__ import annotations

from dynamo.parsers.json_blocks import Hermes
from dynamo.parsers.json_calls import read_arguments, read_calls
from dynamo.parsers.source import Malformed, Reading

__all__ = ["GuidedCalls"]


class GuidedCalls(Hermes):
    """Bare JSON; where the engine could not be guided, hermes, which many models fall back to."""

    needs_special_tokens = False

    def beginning(self) -> Reading[None]:
        """Read what the schema forces."""
        character = yield from self.leading_space()
        if self.options.tool_choice == "named" and self.options.named_function:
            yield from self.attempt(self._arguments(self.options.named_function))
        elif character in "{[":
            yield from read_calls(self)

    def _arguments(self, function: str) -> Reading[None]:
        if (yield from self.source.peek()) != "{":
            raise Malformed
        self.begin_call(function)
        yield from read_arguments(self)
