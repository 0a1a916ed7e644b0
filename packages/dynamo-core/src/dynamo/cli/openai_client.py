"""The few calls of an OpenAI-compatible server that ``dynamo chat`` needs, with errors that say what to do."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
from typing_extensions import Self

from dynamo.cli.connection import connection_errors, http_client
from dynamo.errors import ConfigError, DynamoError, error_from_wire

__all__ = ["ChatPiece", "Message", "OpenAIClient", "base_url"]

Message = Mapping[str, str]
#: Between two pieces of an answer; a long prompt on a busy machine is slow to give its first token.
_READ_TIMEOUT_SECONDS = 600.0


class ChatPiece(NamedTuple):
    """The next part of an answer."""

    text: str = ""
    reasoning: str = ""
    finish_reason: str | None = None


def base_url(url: str) -> str:
    """`url` with the ``/v1`` that OpenAI's paths start with, if it has no path of its own.

    Raises:
        ConfigError: it is not an http or https URL.
    """
    parts = urlsplit(url if "://" in url else f"http://{url}")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"{url!r} is not the URL of a server", param="--url", hint="for example http://127.0.0.1:8000"
        )
    path = parts.path.rstrip("/") or "/v1"
    return f"{parts.scheme}://{parts.netloc}{path}"


class OpenAIClient:
    """One server. A context manager; closing it, also in the middle of an answer, closes its connection."""

    def __init__(self, url: str, *, api_key: str | None = None, cacert: str | None = None) -> None:
        """`cacert` is a PEM file of authorities to trust beside the public ones; raises ConfigError if it is none."""
        self.url = base_url(url)
        timeout = httpx.Timeout(10.0, read=_READ_TIMEOUT_SECONDS)
        self._http = http_client(self.url, api_key=api_key, cacert=cacert, timeout=timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def models(self) -> list[str]:
        """Ids of the models that the server lists.

        Raises:
            CannotConnect: nobody answers.
            DynamoError: the server refuses, or is no OpenAI server.
        """
        with connection_errors(self.url):
            response = self._http.get(f"{self.url}/models")
            response.read()
        document = self._checked(response)
        try:
            return [str(model["id"]) for model in document["data"]]
        except (KeyError, TypeError) as error:
            raise DynamoError(f"{self.url}/models gives no list of models", hint="is it an OpenAI server?") from error

    def chat(
        self, model: str, messages: Sequence[Message], *, stream: bool = True, **options: float | None
    ) -> Generator[ChatPiece, None, None]:
        """The answer, piece by piece, or in one piece without `stream`; `options` that are None are not sent.

        Raises:
            CannotConnect, Disconnected, ResponseTimeout: the connection failed.
            DynamoError: the server refuses, or fails on the way.
        """
        body: dict[str, Any] = {"model": model, "messages": list(messages), "stream": stream}
        body.update({name: value for name, value in options.items() if value is not None})
        url = f"{self.url}/chat/completions"
        with connection_errors(self.url), self._http.stream("POST", url, json=body) as response:
            if response.is_error or not stream:
                response.read()
                yield _piece(self._checked(response), "message")
                return
            for line in response.iter_lines():
                data = line.removeprefix("data:").strip() if line.startswith("data:") else ""
                if data == "[DONE]":
                    return
                if data:
                    yield _piece(_decode(data), "delta")

    def _checked(self, response: httpx.Response) -> Any:
        try:
            document = response.json()
        except ValueError:
            document = None
        if response.is_error:
            detail = document.get("error", document.get("detail")) if isinstance(document, dict) else response.text
            message = detail.get("message") if isinstance(detail, dict) else detail
            raise DynamoError(
                f"{self.url} answers {response.status_code}: {str(message or response.reason_phrase).strip()[:500]}",
                hint="give the key with --api-key or OPENAI_API_KEY" if response.status_code == 401 else None,
            )
        if document is None:
            raise DynamoError(f"{response.url} does not answer in JSON", hint="is it an OpenAI server?")
        return document


def _decode(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise DynamoError(f"the server sent a chunk that is not JSON: {data[:200]}") from error


def _piece(document: Any, key: str) -> ChatPiece:
    """The first choice of a response or chunk; a chunk without choices (usage) is an empty piece."""
    if not isinstance(document, dict):
        raise DynamoError(f"the server sent something that is no chat completion: {str(document)[:200]}")
    if isinstance(document.get("error"), dict):
        raise error_from_wire(document["error"])
    choices = document.get("choices")
    if not isinstance(choices, list) or not choices:
        return ChatPiece()
    message = choices[0].get(key) or {}
    reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
    return ChatPiece(message.get("content") or "", reasoning, choices[0].get("finish_reason"))
