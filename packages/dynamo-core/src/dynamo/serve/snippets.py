"""What ``dynamo serve`` prints when it is ready: the address, and two ways to ask that can be pasted."""

from __future__ import annotations

import json

__all__ = ["reachable_host", "ready_text"]

_QUESTION = "What is the capital of Norway?"


def reachable_host(host: str) -> str:
    """`host` as a client on this machine writes it in a URL."""
    if host in ("", "0.0.0.0"):
        return "127.0.0.1"
    if host == "::":
        return "[::1]"
    return f"[{host}]" if ":" in host else host


def ready_text(url: str, models: list[str], components: str, seconds: float) -> str:
    """`url` is the root of the API without ``/v1``; the snippets ask the first of `models`."""
    body = json.dumps({"model": models[0], "messages": [{"role": "user", "content": _QUESTION}]}, ensure_ascii=False)
    quoted = body.replace("'", "'\\''")
    return f"""
Ready in {seconds:.1f} s: {url}  (model {", ".join(models)}; {components})

  curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{quoted}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="not-needed")
  answer = client.chat.completions.create(
      model={json.dumps(models[0])}, messages=[{{"role": "user", "content": "{_QUESTION}"}}]
  )
  print(answer.choices[0].message.content)

Talk to it with `dynamo chat --url {url}`. Ctrl-C stops everything.
"""
