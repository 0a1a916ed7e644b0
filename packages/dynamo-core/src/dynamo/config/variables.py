"""Finds environment variables that are misspelt: a program that ignores one in silence does not do what it was told.

`dynamo.runtime.distributed.run_process` and the ``dynamo`` command look once at their start. What is known is in
``variables.txt``, which `nox -s docs -- --write` writes from all settings classes: a process imports its own only, but
shares the environment of a shell or pod with the others.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["READ_WITHOUT_SETTINGS", "misspelt_variables", "warned_of", "without_misspelling"]

_PREFIXES = ("DYN_", "DYNAMO_")
_WARNED = "DYN_WARNED_VARIABLES"
#: Looked at before there are settings, or by what runs graphs and tests.
READ_WITHOUT_SETTINGS = (
    "DYNAMO_PORT",
    "DYNAMO_TEST_SERVERS",
    "DYN_DEBUG",
    "DYN_DISABLE_PLUGINS",
    "DYN_HEALTH_CHECK_ENABLED",
    "DYN_PARENT_DGD_K8S_NAME",
    "DYN_PARENT_DGD_K8S_NAMESPACE",
    "DYN_SYSTEM_ENABLED",
    "DYN_SYSTEM_USE_ENDPOINT_HEALTH_STATUS",
    _WARNED,
)
#: Of `difflib`: one wrong letter in a short name passes, another word does not.
_NEAR = 0.85


def misspelt_variables(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each name that nothing reads and that is near a known one; other unknown names are others' own.

    What a parent process has said already (:func:`warned_of`) is left out.
    """
    return [f"{name} is set, but nothing reads it; is {meant} meant?" for name, meant in _misspelt(environ).items()]


def warned_of(environ: Mapping[str, str]) -> dict[str, str]:
    """For the environment of children: they do not say again what this process has said of `environ`."""
    names = [*environ.get(_WARNED, "").split(), *_misspelt(environ)]
    return {_WARNED: " ".join(names)} if names else {}


def _misspelt(environ: Mapping[str, str]) -> dict[str, str]:
    """Name to what is meant by it."""
    warned = environ.get(_WARNED, "").split()
    ours = sorted(name for name in environ if name.startswith(_PREFIXES) and name not in warned)
    if not ours:
        return {}
    known = Path(__file__).with_name("variables.txt").read_text("utf-8").split()
    found = {name: without_misspelling(name, known) for name in ours if name not in known}
    return {name: meant for name, meant in found.items() if meant}


def without_misspelling(name: str, known: Sequence[str]) -> str | None:
    """The one of `known` that `name` is a misspelling of, or lacks the last word of.

    A name of more words is that of something else (DYN_VLLM_..., DYN_RL_...), unless only its underscores differ.
    """
    for whole in known:
        if whole.rpartition("_")[0] == name:
            return whole
    bare = name.replace("_", "")
    candidates = [k for k in known if name.count("_") <= k.count("_") or bare == k.replace("_", "")]
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=_NEAR)
    return close[0] if close else None
