"""Chat messages to the prompt text of a model, by the model's own Jinja template. The frontend holds one per model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Template
from jinja2.exceptions import SecurityError, TemplateError, TemplateSyntaxError

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.preprocessor.messages import normalise_messages
from dynamo.preprocessor.model_files import json_object, read_model_files
from dynamo.preprocessor.template_analysis import TemplateNeeds, template_needs
from dynamo.preprocessor.template_budget import Budget, TemplateLimits, spending
from dynamo.preprocessor.template_sandbox import ChatEnvironment, TemplateRefusal
from dynamo.preprocessor.tokenizer import special_tokens_of

__all__ = ["ChatTemplate"]

#: The longest template of a public model has about 20,000 characters.
SOURCE_LIMIT_CHARACTERS = 256 * 1024
#: Variables that `render` sets; a client cannot give them.
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"})


class ChatTemplate:
    """A compiled template. Immutable; `render` may run on any thread.

    Args:
        source: Jinja source; None makes an object that refuses to render, for models without a template.
        special_tokens: ``bos_token``, ``eos_token``, ... as the template may name them.
        name: the model, for messages.
        tool_source: another template for requests with tools.
        limits: bounds of one rendering.

    Raises:
        ConfigError: a template does not parse.
    """

    def __init__(
        self,
        source: str | None,
        *,
        special_tokens: Mapping[str, str] | None = None,
        name: str = "",
        tool_source: str | None = None,
        limits: TemplateLimits | None = None,
    ) -> None:
        self.name = name
        self._special_tokens = dict(special_tokens or {})
        self._limits = limits or TemplateLimits()
        self._plain = None if source is None else _compile(source, name)
        self._with_tools = self._plain if tool_source is None else _compile(tool_source, name)

    @classmethod
    def from_directory(cls, path: Path | str, *, name: str = "") -> ChatTemplate:
        """The template of a model directory.

        Raises:
            ConfigError: the directory does not exist, or a file of it is corrupt.
        """
        names = ("chat_template.jinja", "tokenizer_config.json", "special_tokens_map.json")
        return cls.from_files(read_model_files(path, names), name=name or Path(path).name)

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, name: str = "") -> ChatTemplate:
        """``chat_template.jinja`` if there is one, else what ``tokenizer_config.json`` says.

        Raises:
            ConfigError: a file is corrupt or a template does not parse.
        """
        config = json_object(files, "tokenizer_config.json")
        sources = _config_sources(config)
        if "chat_template.jinja" in files:
            try:
                sources["default"] = files["chat_template.jinja"].decode()
            except UnicodeDecodeError as error:
                raise ConfigError(f"chat_template.jinja of model {name!r} is not UTF-8: {error}") from error
        tokens = special_tokens_of(config, json_object(files, "special_tokens_map.json"))
        return cls(sources.get("default"), special_tokens=tokens, name=name, tool_source=sources.get("tool_use"))

    @property
    def available(self) -> bool:
        """Whether there is a template at all."""
        return self._plain is not None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt for OpenAI `messages`, which are brought to the template's form first.

        `variables` are further ones of the template's own (``enable_thinking``, ...), as clients send them in
        ``chat_template_kwargs``. With `continue_final_message` the prompt ends within the last message, so that the
        model goes on with it. The prompt has its special tokens already: encode it without adding any.

        Raises:
            InvalidRequest: there is no template, a message is malformed, or the template refuses or fails.
        """
        compiled = self._with_tools if tools else self._plain
        if compiled is None:
            raise self._missing()
        if continue_final_message and add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", param="continue_final_message"
            )
        taken = _RESERVED.intersection(variables or ())
        if taken:
            raise InvalidRequest(
                f"{min(taken)!r} is a field of the request, not a template variable", param="chat_template_kwargs"
            )
        plain = normalise_messages(messages, compiled.needs)
        text = self._run(
            compiled.template,
            {
                **self._special_tokens,
                **(variables or {}),
                "messages": plain,
                "tools": tools or None,
                "documents": documents or None,
                "add_generation_prompt": add_generation_prompt,
            },
        )
        return _cut_after_final_message(text, plain[-1]) if continue_final_message else text

    def _run(self, template: Template, variables: dict[str, Any]) -> str:
        budget = Budget(self._limits)
        try:
            with spending(budget):
                # As `Template.generate`, without its work on tracebacks that nobody sees.
                return budget.collect(template.root_render_func(template.new_context(variables)))
        except TemplateRefusal as error:
            raise InvalidRequest(str(error), param="messages") from error
        except SecurityError as error:
            raise InvalidRequest(f"the chat template of model {self.name!r} was stopped: {error}") from error
        except RecursionError as error:
            raise InvalidRequest(f"the chat template of model {self.name!r} recurses too deep") from error
        except Exception as error:  # a template raises whatever Python's operators do
            raise InvalidRequest(
                f"the chat template of model {self.name!r} cannot render these messages: {error}", param="messages"
            ) from error

    def _missing(self) -> InvalidRequest:
        return InvalidRequest(
            f"model {self.name!r} has no chat template",
            param="messages",
            hint="use /v1/completions, or add chat_template.jinja to the model directory and restart its workers",
        )


class _Compiled:
    __slots__ = ("needs", "template")

    def __init__(self, template: Template, needs: TemplateNeeds) -> None:
        self.template = template
        self.needs = needs


@lru_cache(maxsize=1)
def _environment() -> ChatEnvironment:
    return ChatEnvironment()


def _compile(source: str, name: str) -> _Compiled:
    if len(source) > SOURCE_LIMIT_CHARACTERS:
        raise ConfigError(f"the chat template of model {name!r} is longer than {SOURCE_LIMIT_CHARACTERS} characters")
    environment = _environment()
    try:
        tree = environment.parse(source)
        needs = template_needs(tree)
        return _Compiled(environment.template(tree), needs)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"the chat template of model {name!r} does not parse: line {error.lineno}: {error.message}",
            hint="fix chat_template.jinja, or chat_template in tokenizer_config.json",
        ) from error
    except (TemplateError, RecursionError, SyntaxError, MemoryError) as error:
        raise ConfigError(f"the chat template of model {name!r} does not compile: {error}") from error


def _config_sources(config: Mapping[str, Any]) -> dict[str, str]:
    """Template name to source: tokenizer_config.json has one string, or a list of ``{name, template}``."""
    value = config.get("chat_template")
    if isinstance(value, str):
        return {"default": value}
    named = value if isinstance(value, list) else []
    return {
        entry["name"]: entry["template"]
        for entry in named
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("template"), str)
    }


def _cut_after_final_message(text: str, message: Mapping[str, Any]) -> str:
    """`text` up to the end of the last message's content; templates may have stripped that."""
    content = message.get("content")
    if isinstance(content, list):
        content = content[-1]["text"] if content else ""
    if not isinstance(content, str) or not content.strip():
        raise InvalidRequest("continue_final_message needs text in the last message", param="messages")
    body, full = content.strip(), content.lstrip()
    start = text.rfind(body)
    if start < 0:
        raise InvalidRequest(
            "continue_final_message: the chat template does not show the last message as it is", param="messages"
        )
    return text[: start + (len(full) if text.startswith(full, start) else len(body))]
