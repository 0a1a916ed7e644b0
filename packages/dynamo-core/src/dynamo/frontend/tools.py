"""Tools of a chat request: checked, and turned into the parser that reads the model's calls out of its text."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from dynamo.errors import InvalidRequest
from dynamo.frontend.body_bounds import schema_text
from dynamo.frontend.grammars import forces_text, names_grammar
from dynamo.frontend.models import ServedModel
from dynamo.frontend.requests import ChatRequest
from dynamo.frontend.sampling import wants_format
from dynamo.parsers import OutputParser, make_output_parser
from dynamo.plugins import plugins
from dynamo.protocols.llm import GuidedDecoding
from dynamo.protocols.parsing import ReasoningOptions, ToolCallOptions, ToolFunction

__all__ = ["chat_parser", "check_tool_name", "check_tools", "tool_grammar"]

#: OpenAI takes no dots and slashes, and 64 characters; tools of MCP servers have them (SEP-986).
_NAME = re.compile(r"[a-zA-Z0-9_./-]{1,128}\Z")
#: What OpenAI takes a function for that says nothing of its parameters.
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}
#: Of a name that is refused, which may be as long as a body.
_SHOWN_CHARACTERS = 64
#: Enough of the prompt's end to see whether the template opened the reasoning there.
_PROMPT_TAIL_CHARACTERS = 256


def check_tools(request: ChatRequest) -> None:
    """Check ``tools`` and ``tool_choice``.

    Raises:
        InvalidRequest: `param` names the entry at fault.
    """
    for index, tool in enumerate(request.tools or []):
        _check_tool(f"tools[{index}]", tool)
    choice = request.tool_choice
    if choice is None or choice in ("auto", "none"):
        return
    if not request.tools:
        raise InvalidRequest("'tool_choice' needs 'tools'", param="tool_choice")
    if choice == "required":
        return
    name = _named_function(choice)
    if name is None:
        raise InvalidRequest(
            '\'tool_choice\' must be auto, none, required, or {"type": "function", "function": {"name": ...}}',
            param="tool_choice",
        )
    if name not in {tool["function"]["name"] for tool in request.tools}:
        raise InvalidRequest(f"'tool_choice' names {name!r}, which is not among 'tools'", param="tool_choice")


def check_tool_name(name: str, param: str) -> None:
    """Check the name of a function.

    Raises:
        InvalidRequest: it has characters that parsers and models may take for something else, or too many.
    """
    if not _NAME.match(name):
        raise InvalidRequest(
            f"'{param}' is {name[:_SHOWN_CHARACTERS]!r}; use 1 to 128 letters, digits and any of _ - . /", param=param
        )


def chat_parser(request: ChatRequest, model: ServedModel, prompt: str) -> OutputParser | None:
    """The parser of one choice, as the model's card says; None when there is nothing to parse."""
    tool_parser = model.tool_call_parser if request.tools and request.tool_choice != "none" else None
    forces_calls = tool_grammar(request, model.card.capabilities.guided) is not None
    if forces_calls:
        tool_parser = "guided_json"
    if tool_parser is None and model.reasoning_parser is None:
        return None
    return make_output_parser(
        plugins(),
        reasoning=model.reasoning_parser,
        tool_calls=tool_parser,
        reasoning_options=ReasoningOptions(prompt_tail=prompt[-_PROMPT_TAIL_CHARACTERS:]),
        tool_call_options=_options(request),
        guided=forces_calls or wants_format(request) or names_grammar(request),
        guided_text=forces_text(request),
    )


def tool_grammar(request: ChatRequest, supported: list[str]) -> GuidedDecoding | None:
    """The JSON schema that makes a model call a tool, when the client insists and the engine can be guided.

    Where it cannot, ``required`` and a named function are wishes: the model sees the tools and may answer in text.
    """
    if not request.tools or "json" not in supported or wants_format(request):
        return None
    functions = {
        tool["function"]["name"]: tool["function"].get("parameters") or _NO_PARAMETERS for tool in request.tools
    }
    if isinstance(request.tool_choice, dict):
        function = functions[str(_named_function(request.tool_choice))]
        return GuidedDecoding("json", schema_text(function, "tools"), "tools")
    if request.tool_choice != "required":
        return None
    calls = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, "parameters": {"$ref": f"#/$defs/{index}"}},
            "required": ["name", "parameters"],
            "additionalProperties": False,
        }
        for index, name in enumerate(functions)
    ]
    definitions = {str(index): _part(schema, f"/$defs/{index}") for index, schema in enumerate(functions.values())}
    schema: dict[str, Any] = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, "$defs": definitions}
    if request.parallel_tool_calls is False:
        schema["maxItems"] = 1
    return GuidedDecoding("json", schema_text(schema, "tools"), "tools")


def _part(schema: dict[str, Any], place: str) -> msgspec.Raw:
    """`schema` as a part of another one: what it refers to from its own root is below `place` there."""
    # With a name of its own it would stay a root, for some of those who read it.
    text = msgspec.json.encode({key: value for key, value in schema.items() if key != "$id"})
    # In JSON no text holds a quote as it is: these are keys, and nothing else.
    text = text.replace(b'"$ref":"#/', b'"$ref":"#%b/' % place.encode())
    return msgspec.Raw(text.replace(b'"$ref":"#"', b'"$ref":"#%b"' % place.encode()))


def _options(request: ChatRequest) -> ToolCallOptions:
    tools = [
        ToolFunction(tool["function"]["name"], tool["function"].get("parameters") or {}) for tool in request.tools or []
    ]
    choice = request.tool_choice
    if isinstance(choice, dict):
        return ToolCallOptions(tools, "named", _named_function(choice))
    return ToolCallOptions(tools, "required" if choice == "required" else "auto")


def _check_tool(param: str, tool: dict[str, Any]) -> None:
    function = tool.get("function")
    if tool.get("type", "function") != "function":
        raise InvalidRequest(f"'{param}.type' is {tool['type']!r}; only 'function' is served", param=f"{param}.type")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidRequest(f"'{param}.function.name' is missing", param=f"{param}.function.name")
    check_tool_name(function["name"], f"{param}.function.name")
    if not isinstance(function.get("parameters") or {}, dict):
        raise InvalidRequest(f"'{param}.function.parameters' must be an object", param=f"{param}.function.parameters")


def _named_function(choice: str | dict[str, Any]) -> str | None:
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None
