"""`python3 -m dynamo.vllm --runner pooling --convert embed`: vectors of the demo model through the frontend."""

from __future__ import annotations

import base64

import httpx
import numpy as np
import pytest

from tests.e2e.vllm_processes import MARKS, MODEL, vllm_deployment

pytestmark = [*MARKS, pytest.mark.slow]

TEXTS = ["The lighthouse keeper climbed the stairs.", "7 plus 6 is 13."]
WIDTH = 128


def test_a_worker_that_embeds(tmp_path_factory) -> None:
    with vllm_deployment(tmp_path_factory.mktemp("vllm")) as made:
        made.vllm("--kv-cache-memory-bytes=16777216", "--max-model-len=512", "--runner=pooling", "--convert=embed")
        frontend = made.frontend()
        made.until_whole(frontend)

        def embed(**fields: object) -> dict:
            body = {"model": MODEL, "input": TEXTS, **fields}
            return httpx.post(f"{frontend.url}/v1/embeddings", json=body, timeout=60).raise_for_status().json()

        answer = embed()
        vectors = np.array([row["embedding"] for row in answer["data"]], np.float32)
        assert vectors.shape == (len(TEXTS), WIDTH)
        assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
        assert vectors[0] @ vectors[1] < 0.999
        assert answer["usage"]["prompt_tokens"] == answer["usage"]["total_tokens"] > 0
        packed = embed(encoding_format="base64", input=TEXTS[1])["data"][0]["embedding"]
        assert np.allclose(np.frombuffer(base64.b64decode(packed), "<f4"), vectors[1], atol=1e-4)

        body = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}]}
        assert httpx.post(f"{frontend.url}/v1/chat/completions", json=body, timeout=60).status_code == 400
