"""What the engine's tokens of one choice become for a client: text up to stop strings, reasoning and tool calls.

`dynamo.frontend.generation` feeds it; formats turn the deltas into JSON.
"""

from __future__ import annotations

import msgspec

from dynamo.frontend.reasoning_tokens import ReasoningTokens
from dynamo.parsers import OutputParser
from dynamo.preprocessor.detokenizer import Detokenizer
from dynamo.preprocessor.tokenizer import Tokenizer
from dynamo.protocols.llm import LLMEngineOutput, TokenLogprob, Usage
from dynamo.protocols.parsing import ParsedDelta, ToolCallDelta

__all__ = ["Delta", "DeltaReader"]


class Delta(msgspec.Struct):
    """What one wake-up adds to a choice."""

    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    reasoning: str = ""
    tool_calls: list[ToolCallDelta] = []
    reasoning_tokens: int = 0
    """See `dynamo.frontend.reasoning_tokens`; tokens of earlier deltas whose text comes now are among them."""
    last: bool = False
    """Nothing but the finish of the choice comes after it, and that at once."""


class DeltaReader:
    """Reads the outputs of one choice, over all workers that it goes to."""

    __slots__ = (
        "_detokenizer", "_parser", "_reasoning_tokens", "cached_tokens", "has_prompt_logprobs", "token_ids",
    )  # fmt: skip

    def __init__(self, detokenizer: Detokenizer, parser: OutputParser | None, tokenizer: Tokenizer) -> None:
        self._detokenizer = detokenizer
        self._parser = parser
        self._reasoning_tokens: ReasoningTokens | None = None
        if parser is not None and parser.reads_reasoning:
            self._reasoning_tokens = ReasoningTokens(tokenizer, special_tokens=parser.needs_special_tokens)
        self.cached_tokens = 0
        """Prompt tokens that an engine had in its cache."""
        self.token_ids: list[int] = []
        """All that was generated, also what came behind a stop string."""
        self.has_prompt_logprobs = False

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the choice, if one did."""
        return self._detokenizer.stopped

    def read(self, output: LLMEngineOutput) -> Delta | None:
        """What `output` adds; None: nothing to tell the client.

        Raises:
            Exception: whatever a plugin's parser raises.
        """
        ids = output.token_ids
        if output.usage is not None:
            self.cached_tokens = max(self.cached_tokens, output.usage.cached_tokens)
        detokenizer = self._detokenizer
        text = ""
        if ids:
            self.token_ids += ids
            text = detokenizer.feed(ids)
        ends = output.finish_reason not in (None, "cancelled")
        if ends and detokenizer.stopped is None:
            text += detokenizer.finish()
        last = ends or detokenizer.stopped is not None
        if output.prompt_logprobs:
            self.has_prompt_logprobs = True
        if not (ids or text or output.prompt_logprobs or (last and self._parser is not None)):
            return None
        delta = Delta(text, ids, output.logprobs, output.prompt_logprobs, last=last)
        if self._parser is not None:
            self._parse(self._parser, delta, last=last)
        return delta

    def finish_reason(self, reason: str) -> str:
        """What the client is told for the engine's `reason`."""
        if self._detokenizer.stopped is not None:
            reason = "stop"
        made_calls = self._parser is not None and self._parser.made_tool_calls
        return "tool_calls" if made_calls and reason == "stop" else reason

    def usage(self, prompt_tokens: int) -> Usage:
        """The count of tokens; what came behind a stop string counts for nothing."""
        completion_tokens = len(self.token_ids)
        if self._detokenizer.stopped is not None:
            completion_tokens = self._detokenizer.completion_tokens
        reasoning_tokens = min(self._reasoning_tokens.count, completion_tokens) if self._reasoning_tokens else 0
        return Usage(prompt_tokens, completion_tokens, self.cached_tokens, reasoning_tokens)

    def _parse(self, parser: OutputParser, delta: Delta, *, last: bool) -> None:
        """Replace the text of `delta` by what the parser makes of it, and with `last` of what it held back."""
        parsed = parser.feed(delta.text) if delta.text else ParsedDelta()
        if last:
            rest = parser.finish()
            parsed = ParsedDelta(
                parsed.content + rest.content, parsed.reasoning + rest.reasoning, parsed.tool_calls + rest.tool_calls
            )
        if self._reasoning_tokens is not None:
            delta.reasoning_tokens = self._reasoning_tokens.add(delta.token_ids, delta.text, parsed)
        delta.text, delta.reasoning, delta.tool_calls = parsed.content, parsed.reasoning, parsed.tool_calls
