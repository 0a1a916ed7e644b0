"""Finds a model: a local directory, the local hub cache, or a hub (DESIGN 4.3)."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from dynamo.errors import ConfigError

__all__ = ["is_model_id", "resolve_model"]

logger = logging.getLogger(__name__)

#: ``name`` or ``organisation/name`` as hubs allow them.
_MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?\Z")
#: What an engine and a frontend need; weights in other formats stay on the hub.
_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "tokenizer*"]


def is_model_id(model: str) -> bool:
    """Whether `model` can only be an id: nothing of that name lies on this machine."""
    return not _local(model).exists() and _MODEL_ID.match(model) is not None


def resolve_model(model: str, *, revision: str = "") -> str:
    """The directory of `model`, downloading it when it is an id that is not in the cache.

    Downloads go by huggingface_hub: ``HF_TOKEN``, ``HF_ENDPOINT``, ``HF_HOME``, resumed, with progress. With
    ``HF_HUB_OFFLINE=1`` only the cache is looked at.

    Raises:
        ConfigError: there is no such directory, id or revision, or it cannot be fetched.
    """
    path = _local(model)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ConfigError(
                f"model directory {path} has no config.json",
                param="model",
                hint="point --model at the directory that holds config.json, tokenizer.json and the weights",
            )
        return str(path)
    if path.exists():
        raise ConfigError(f"--model {model} is a file", param="model", hint="point it at the model's directory")
    if not is_model_id(model):
        raise ConfigError(f"model directory {model} does not exist", param="model", hint="check --model")
    return _from_hub(model, revision)


def _local(model: str) -> Path:
    # Path.expanduser raises RuntimeError at the ~ of an unknown user; this leaves it as it is.
    return Path(os.path.expanduser(model))  # noqa: PTH111


def _from_hub(model: str, revision: str) -> str:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = f"model {model!r}" + (f" at revision {revision!r}" if revision else "")
    logger.info("looking for %s in the cache and on %s", what, _endpoint())
    try:
        return str(snapshot_download(model, revision=revision or None, allow_patterns=_PATTERNS))
    except GatedRepoError as error:
        raise ConfigError(
            f"{what} is gated", param="model", hint="accept its terms on the hub and set HF_TOKEN"
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(
            f"{what} does not exist on {_endpoint()}", param="revision", hint="check --revision"
        ) from error
    except RepositoryNotFoundError as error:
        raise ConfigError(
            f"{what} is not on {_endpoint()}, or is private",
            param="model",
            hint="check the spelling; set HF_TOKEN for a private model",
        ) from error
    except LocalEntryNotFoundError as error:
        raise ConfigError(
            f"{what} is not in the local cache, and {_why_not_fetched()}", param="model", hint=_HINT
        ) from error
    except Exception as error:
        # The hub client's own HTTP client differs between its versions, and so do the errors that pass through.
        raise ConfigError(f"{what} cannot be fetched from {_endpoint()}: {error}", param="model", hint=_HINT) from error


_HINT = (
    "give a local directory with --model, run without --model to serve the packaged demo model, "
    "or download it where there is a network: `hf download MODEL`"
)


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co")


def _why_not_fetched() -> str:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "on", "yes", "true"):
        return "HF_HUB_OFFLINE is set"
    return f"{_endpoint()} cannot be reached"
