"""``dynamo chat``: ask an OpenAI-compatible server one question, or talk to it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

from dynamo.errors import DynamoError, ModelNotFound

if TYPE_CHECKING:
    from dynamo.cli.openai_client import OpenAIClient

__all__ = ["Conversation", "chat"]

_HELP = """/reset  forget the conversation
/system TEXT  set the system prompt (without TEXT: none) and forget the conversation
/quit  leave (also Ctrl-D); Ctrl-C stops an answer"""


@click.command("chat")
@click.argument("question", nargs=-1)
@click.option(
    "--url", envvar="OPENAI_BASE_URL", show_envvar=True, default="http://127.0.0.1:8000", show_default=True,
    help="Server to talk to.",
)  # fmt: skip
@click.option("--model", help="Model to ask.  [default: the first that the server lists]")
@click.option("--api-key", envvar="OPENAI_API_KEY", show_envvar=True, help="Key that the server asks for.")
@click.option("--cacert", metavar="FILE", help="PEM certificates to trust; SSL_CERT_FILE does the same.")
@click.option("--system", help="System prompt.")
@click.option("--temperature", type=float, help="0: always the likeliest token.")
@click.option("--max-tokens", type=click.IntRange(min=1), help="Longest answer, in tokens.")
@click.option("--no-stream", is_flag=True, help="Show each answer only when it is whole.")
def chat(
    question: tuple[str, ...],
    url: str,
    model: str | None,
    api_key: str | None,
    cacert: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    no_stream: bool,
) -> None:
    """Talk to any OpenAI-compatible server.

    With QUESTION, or with a question on stdin, prints the answer and ends.
    """
    from dynamo.cli.openai_client import OpenAIClient

    interactive = not question and sys.stdin.isatty()
    text = " ".join(question) if question or interactive else sys.stdin.read().strip()
    if not text and not interactive:
        raise click.UsageError("no question: give one as an argument or on stdin")
    with OpenAIClient(url, api_key=api_key, cacert=cacert) as client:
        conversation = Conversation(
            client,
            model or _first_model(client),
            system=system,
            temperature=temperature,
            max_tokens=max_tokens,
            stream=not no_stream,
        )
        if interactive:
            _interact(conversation)
        else:
            conversation.ask(text)


@dataclass
class Conversation:
    """What was said so far, and how to ask the next question."""

    client: OpenAIClient
    model: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    stream: bool = True
    history: list[dict[str, str]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Print the answer as it comes; question and answer join the history.

        Raises:
            DynamoError: the server failed; the history is as before.
            KeyboardInterrupt: the user stopped it; what came so far is kept.
        """
        asked = {"role": "user", "content": question}
        system = [{"role": "system", "content": self.system}] if self.system else []
        pieces = self.client.chat(
            self.model,
            [*system, *self.history, asked],
            stream=self.stream,
            temperature=self.temperature,
            max_tokens=self.max_tokens,
        )
        printer = _AnswerPrinter()
        try:
            for piece in pieces:
                printer.reasoning(piece.reasoning)
                printer.text(piece.text)
        except KeyboardInterrupt:
            self._remember(asked, printer.answer)
            raise
        finally:
            pieces.close()
            printer.end()
        self._remember(asked, printer.answer)

    def reset(self) -> None:
        """Forget what was said."""
        self.history.clear()

    def _remember(self, asked: dict[str, str], answer: str) -> None:
        self.history += [asked, {"role": "assistant", "content": answer}]


#: A model can be talked into escape sequences, which would reach the user's terminal.
_CONTROL_CHARACTERS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class _AnswerPrinter:
    """Prints an answer while it comes; reasoning dimmed, and apart from the answer."""

    def __init__(self) -> None:
        self.answer = ""
        self._reasoned = False

    def reasoning(self, text: str) -> None:
        if text:
            self._reasoned = True
            click.secho(text.translate(_CONTROL_CHARACTERS), dim=True, nl=False)

    def text(self, text: str) -> None:
        if text:
            if self._reasoned and not self.answer:
                click.echo("\n")
            self.answer += text
            click.echo(text.translate(_CONTROL_CHARACTERS), nl=False)

    def end(self) -> None:
        click.echo()


def _first_model(client: OpenAIClient) -> str:
    models = client.models()
    if not models:
        raise ModelNotFound(f"{client.url} serves no model now", hint="is its worker still starting?")
    return models[0]


def _interact(conversation: Conversation) -> None:
    try:
        import readline  # noqa: F401 - gives input() history and editing
    except ImportError:
        click.echo("(no line editing: this Python has no readline)", err=True)
    click.secho(f"{conversation.model} at {conversation.client.url}. /help lists commands, Ctrl-D leaves.", dim=True)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            click.echo()
            return
        except KeyboardInterrupt:
            click.echo()
            continue
        if line == "/quit":
            return
        if line.startswith("/"):
            _run_command(conversation, line)
        elif line:
            _ask(conversation, line)


def _ask(conversation: Conversation, question: str) -> None:
    try:
        conversation.ask(question)
    except KeyboardInterrupt:
        click.secho("(stopped)", dim=True)
    except DynamoError as error:
        click.secho(f"Error: {error}", fg="red", err=True)


def _run_command(conversation: Conversation, line: str) -> None:
    name, _, rest = line.partition(" ")
    commands: dict[str, Callable[[], None]] = {
        "/reset": conversation.reset,
        "/system": lambda: _set_system(conversation, rest.strip()),
        "/help": lambda: click.echo(_HELP),
    }
    if name in commands:
        commands[name]()
    else:
        click.echo(f"there is no command {name}\n{_HELP}")


def _set_system(conversation: Conversation, text: str) -> None:
    conversation.system = text or None
    conversation.reset()
