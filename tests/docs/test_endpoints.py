"""docs/reference/endpoints.md names every parameter that a request body may have."""

from __future__ import annotations

import re

import pytest

from dynamo.frontend.batches.request import BatchRequest
from dynamo.frontend.embeddings import EmbeddingRequest
from dynamo.frontend.messages import MessageRequest, TokenCountRequest
from dynamo.frontend.nvext import AgentHints, Nvext
from dynamo.frontend.requests import ChatRequest, CompletionRequest
from dynamo.frontend.responses import ResponseRequest
from dynamo.frontend.tokenization import DetokenizeRequest, TokenizeRequest
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "reference" / "endpoints.md").read_text("utf-8")
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
COMPLETIONS = SECTIONS["`POST /v1/completions`"] + SECTIONS["Sampling"]


@pytest.mark.parametrize(
    ("request_type", "text"),
    [
        (ChatRequest, SECTIONS["`POST /v1/chat/completions`"]),
        (CompletionRequest, COMPLETIONS),
        (Nvext, SECTIONS["nvext"]),
        (AgentHints, SECTIONS["nvext"]),
        (EmbeddingRequest, SECTIONS["`POST /v1/embeddings`"]),
        (TokenizeRequest, SECTIONS["`POST /tokenize`, `POST /detokenize`"]),
        (DetokenizeRequest, SECTIONS["`POST /tokenize`, `POST /detokenize`"]),
        (BatchRequest, SECTIONS["`/v1/files` and `/v1/batches`"]),
        (ResponseRequest, SECTIONS["`POST /v1/responses`"]),
        (MessageRequest, SECTIONS["`POST /v1/messages`"]),
        (TokenCountRequest, SECTIONS["`POST /v1/messages`"]),
    ],
)
def test_every_parameter_is_documented(request_type, text):
    named = set(re.findall(r"`(\w+)`", text))
    assert set(request_type.__struct_fields__) - named == set()
