"""What ``dynamo serve`` prints when it is ready: the address, and ways to ask that can be pasted."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec

__all__ = ["Serving", "reachable_host", "ready_text"]

_QUESTION = "What is the capital of Norway?"


class Serving(msgspec.Struct):
    """What a frontend says about itself (`dynamo.frontend.serving_page`)."""

    models: list[str]
    tls: bool = False
    client_certificate: bool = False
    api_key: bool = False


def reachable_host(host: str) -> str:
    """`host` as a client on this machine writes it in a URL."""
    if host in ("", "0.0.0.0"):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def ready_text(serving: Serving, host: str, port: int | None, components: str, seconds: float) -> str:
    """The snippets ask the first model at `host` and `port`, where the frontend listens."""
    url = f"{'https' if serving.tls else 'http'}://{reachable_host(host)}:{port}"
    model = serving.models[0]
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": _QUESTION}]}, ensure_ascii=False)
    quoted = body.replace("'", "'\\''")
    key_header = ' \\\n    -H "Authorization: Bearer $YOUR_KEY"' if serving.api_key else ""
    key_import = "import os\n  " if serving.api_key else ""
    key = 'os.environ["YOUR_KEY"]' if serving.api_key else '"not-needed"'
    key_flag = ' --api-key "$YOUR_KEY"' if serving.api_key else ""
    notes = "".join(f"{note}\n" for note in _notes(serving))
    return f"""
Ready in {seconds:.1f} s: {url}  (model {", ".join(serving.models)}; {components})

  curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key_header} \\
    -d '{quoted}'

  {key_import}from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key={key})
  answer = client.chat.completions.create(
      model={json.dumps(model)}, messages=[{{"role": "user", "content": "{_QUESTION}"}}]
  )
  print(answer.choices[0].message.content)

{notes}Talk to it with `dynamo chat --url {url}{key_flag}`. Ctrl-C stops everything.
"""


def _notes(serving: Serving) -> Iterator[str]:
    if serving.api_key:
        yield "It asks for an API key: put one into the variable YOUR_KEY."
    if serving.tls:
        yield "Ask by the name that is in its certificate. For one that no public authority has signed: curl --cacert"
        yield "FILE, the variable SSL_CERT_FILE=FILE for Python, dynamo chat --cacert FILE."
    if serving.client_certificate:
        yield "Clients must show a certificate of theirs: curl --cert FILE --key FILE."
