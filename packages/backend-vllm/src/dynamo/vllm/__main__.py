"""``python3 -m dynamo.vllm``: a worker with vLLM."""

from __future__ import annotations

from dynamo.vllm.settings import VllmSettings
from dynamo.worker import main

if __name__ == "__main__":
    main("vllm", engine_settings=VllmSettings)
