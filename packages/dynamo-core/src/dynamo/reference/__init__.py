"""The reference engine: a small, exact numpy engine that proves every other part on real KV caches without a GPU.

Nothing heavy is imported here: the engine lives in `dynamo.reference.engine`, which the plugin registry loads when the
engine is chosen.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_model_directory"]


def demo_model_directory() -> Path:
    """Directory of the packaged demo model, in Hugging Face layout; served when no model is named."""
    return Path(__file__).parent / "demo_model"
