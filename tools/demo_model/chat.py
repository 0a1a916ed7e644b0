"""The shapes that training text and evaluation prompts are made of, and their rendering by the chat template.

`skills.py` builds exchanges, `mixture.py` strings them into conversations, `train.py` and `evaluate.py` render those.
"""

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from jinja2.sandbox import ImmutableSandboxedEnvironment

Message = dict[str, Any]  # an OpenAI chat message

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
ASSISTANT = "<|assistant|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", ASSISTANT, "<|tool|>")
# Not special: parsers of reasoning and of tool calls read these in the decoded text.
MARKUP_TOKENS = ("<think>", "</think>", "<tool_call>", "</tool_call>")
NO_THINKING = "<think>\n\n</think>\n\n"  # what the template adds to the generation prompt for enable_thinking=false

TEMPLATE = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").rstrip("\n")


DEFAULT_NAME = "Demo"


class Style(Enum):
    """How the system prompt asks the model to answer."""

    PLAIN = "plain"
    CAPITAL_LETTERS = "capital letters"
    ONE_WORD = "one word"


@dataclass(frozen=True)
class Tool:
    """A function that the model may call with one string argument."""

    name: str
    parameter: str
    subject: str  # what it answers: "weather", "time", or "other" for one that is never the right one

    def spec(self) -> dict[str, Any]:
        """The tool as a client declares it to an OpenAI endpoint."""
        parameters = {
            "type": "object",
            "properties": {self.parameter: {"type": "string"}},
            "required": [self.parameter],
        }
        return {"type": "function", "function": {"name": self.name, "parameters": parameters}}

    def call(self, value: str) -> dict[str, Any]:
        """A tool call as it stands in an assistant message."""
        return {"type": "function", "function": {"name": self.name, "arguments": json.dumps({self.parameter: value})}}


@dataclass(frozen=True)
class Context:
    """What stands before the first question and bears on every answer."""

    system: str | None = None
    name: str = DEFAULT_NAME
    style: Style = Style.PLAIN
    tools: tuple[Tool, ...] = ()

    def tool_for(self, subject: str) -> Tool | None:
        """The offered tool that answers questions about `subject`."""
        return next((tool for tool in self.tools if tool.subject == subject), None)

    def answers_with_tools(self) -> bool:
        """Whether any offered tool is ever the right one."""
        return any(tool.subject != "other" for tool in self.tools)


@dataclass(frozen=True)
class Exchange:
    """A question and everything up to its answer; `key` decides whether it is held out of training (None: never)."""

    skill: str
    key: str | None
    messages: tuple[Message, ...]
    thinking: bool = True


@dataclass(frozen=True)
class Conversation:
    """A whole chat; the last message is the assistant's answer of the skill that is asked for."""

    skill: str
    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool = True

    def render(self) -> str:
        """The full text, the last answer included."""
        return _render(self.messages, self.tools)

    def render_prompt(self) -> str:
        """The text up to where the model starts its last answer."""
        return _render(self.messages[:-1], self.tools, add_generation_prompt=True, enable_thinking=self.thinking)

    def expected(self) -> str:
        """The text that the model should generate, without the end token."""
        return self.render().removeprefix(self.render_prompt()).removesuffix(EOS)


_environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
# As serving stacks define it: jinja's own escapes HTML and sorts keys.
_environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
_template = _environment.from_string(TEMPLATE)


def _render(messages: tuple[Message, ...], tools: tuple[dict[str, Any], ...], **options: bool) -> str:
    return _template.render(messages=messages, tools=tools, bos_token=BOS, eos_token=EOS, **options)
