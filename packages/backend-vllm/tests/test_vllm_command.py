"""What ``python3 -m dynamo.vllm --help`` shows; it takes no vLLM."""

from __future__ import annotations

import subprocess
import sys


def test_help_shows_the_flags_of_the_adapter_beside_those_of_the_worker():
    done = subprocess.run(
        [sys.executable, "-m", "dynamo.vllm", "--help"], capture_output=True, text=True, timeout=60, check=True
    )
    engine, _, worker = done.stdout.partition("\nOptions:")
    assert "--engine-start-timeout-seconds" in engine
    assert "--is-prefill-worker" in engine
    assert "--served-model-name" in worker
