"""``python3 -m dynamo.vllm``: a worker with vLLM."""

from __future__ import annotations

from dynamo.worker import main

if __name__ == "__main__":
    main("vllm")
