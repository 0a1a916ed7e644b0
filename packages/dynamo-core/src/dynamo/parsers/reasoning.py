"""Reasoning between tags, as most models write it.

    <think>
    The user greets me.
    </think>

    Hello!

Rules:

- Reasoning and content are verbatim; white space before the opening tag is dropped, tags never show.
- Where the prompt ends with the opening tag, the text begins within the reasoning; where it ends with the closing one,
  behind it. Without either a model's habit decides: DeepSeek-R1 begins within.
- A tag out of place is dropped; an opening one in the content begins reasoning again.
- Behind a tool call everything is content: tags belong to its arguments.
- If the text ends before the closing tag, all of it was reasoning.
"""

from __future__ import annotations

import enum
from typing import ClassVar

from dynamo.parsers.markers import markers
from dynamo.protocols.parsing import ReasoningOptions

__all__ = [
    "BasicReasoning",
    "DeepSeekR1Reasoning",
    "GraniteReasoning",
    "KimiReasoning",
    "MistralReasoning",
    "SeedReasoning",
    "TaggedReasoning",
]

#: White space held back until it is known whether an opening tag follows.
_BLANK_LIMIT = 4096


class _State(enum.Enum):
    BEGIN = enum.auto()
    """Nothing but white space has come."""
    REASONING = enum.auto()
    CONTENT = enum.auto()
    REST = enum.auto()
    """Content to the end, tags or not."""


class TaggedReasoning:
    """Base of the parsers for tags.

    Attributes:
        opening: tags that begin reasoning.
        closing: tags that end it.
        begins_within: the text begins within the reasoning unless the prompt says otherwise.
        tool_call_closes: a tool call ends reasoning, as the model may leave the closing tag out.
        only_first: tags count only where the answer begins: they are phrases that may occur in content.
    """

    needs_special_tokens: ClassVar[bool] = False
    opening: ClassVar[tuple[str, ...]] = ("<think>",)
    closing: ClassVar[tuple[str, ...]] = ("</think>",)
    begins_within: ClassVar[bool] = False
    tool_call_closes: ClassVar[bool] = False
    only_first: ClassVar[bool] = False

    def __init__(self, options: ReasoningOptions) -> None:
        tail = options.prompt_tail.rstrip()
        within = tail.endswith(self.opening) or (self.begins_within and not tail.endswith(self.closing))
        # Tags that are tool markers too would make the two parsers disagree.
        calls = tuple(text for text in options.tool_markers if text not in self.opening + self.closing)
        tags = self.opening + self.closing
        self._outside = markers(*tags, *calls)
        self._inside = markers(*tags, *calls) if self.tool_call_closes else markers(*tags)
        self._state = _State.REASONING if within else _State.BEGIN
        self._held = ""

    def feed(self, text: str) -> tuple[str, str]:
        """See `dynamo.protocols.parsing.ReasoningParser`."""
        state = self._state
        if not self._held:
            if state is _State.REST:
                return "", text
            if state is _State.REASONING and self._inside.absent(text):
                return text, ""
            if state is _State.CONTENT and self._outside.absent(text):
                return "", text
        return self._read(self._held + text, ended=False)

    def finish(self) -> tuple[str, str]:
        """See `dynamo.protocols.parsing.ReasoningParser`."""
        return self._read(self._held, ended=True)

    def _read(self, text: str, *, ended: bool) -> tuple[str, str]:
        self._held = ""
        reasoning: list[str] = []
        content: list[str] = []
        position = 0
        if self._state is _State.BEGIN:
            position = self._begin(text, ended=ended)
        while position < len(text):
            if self._state is _State.REST:
                content.append(text[position:])
                break
            searched = self._inside if self._state is _State.REASONING else self._outside
            target = reasoning if self._state is _State.REASONING else content
            match = searched.search(text, position)
            if match is None:
                end = len(text) if ended else len(text) - searched.held(text, position)
                target.append(text[position:end])
                self._held = text[end:]
                break
            target.append(text[position : match.start()])
            position = self._pass(match[0], match.start())
        return "".join(reasoning), "".join(content)

    def _pass(self, marker: str, position: int) -> int:
        """Change the state at `marker`; return where to go on."""
        if marker in self.opening:
            self._state = _State.REASONING
        elif marker in self.closing:
            self._state = _State.REST if self.only_first else _State.CONTENT
        else:
            self._state = _State.REST
            return position
        return position + len(marker)

    def _begin(self, text: str, *, ended: bool) -> int:
        """Decide what the text begins with, or hold it; return where to go on."""
        begin = len(text) - len(text.lstrip())
        rest = text[begin:]
        if begin <= _BLANK_LIMIT:
            opened = next((tag for tag in self.opening if rest.startswith(tag)), None)
            if opened is not None:
                self._state = _State.REASONING
                return begin + len(opened)
            if not ended and any(tag.startswith(rest) for tag in self.opening):
                self._held = text
                return len(text)
        self._state = _State.REST if self.only_first else _State.CONTENT
        return 0


class BasicReasoning(TaggedReasoning):
    """``<think>``, and the model writes the tag itself: Qwen3, GLM-4.5, hybrid DeepSeek models."""


class DeepSeekR1Reasoning(TaggedReasoning):
    """``<think>``, and the text begins within, opening tag or not: DeepSeek-R1, Step3, MiniMax-M2."""

    begins_within = True


class KimiReasoning(TaggedReasoning):
    """Kimi's tags, old and new; the closing one may be missing before a tool call."""

    needs_special_tokens = True
    opening = ("<think>", "◁think▷")
    closing = ("</think>", "◁/think▷")
    tool_call_closes = True


class MistralReasoning(TaggedReasoning):
    """``[THINK]``: Magistral."""

    needs_special_tokens = True
    opening = ("[THINK]",)
    closing = ("[/THINK]",)


class SeedReasoning(TaggedReasoning):
    """``<seed:think>``: Seed-OSS."""

    opening = ("<seed:think>",)
    closing = ("</seed:think>",)
    begins_within = True


class GraniteReasoning(TaggedReasoning):
    """Granite 3.2: two phrases, only where the answer begins."""

    opening = ("Here is my thought process:", "Here's my thought process:")
    closing = ("Here is my response:", "Here's my response:")
    only_first = True
