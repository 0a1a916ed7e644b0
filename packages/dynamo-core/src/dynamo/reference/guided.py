"""Guided decoding: output that follows a JSON schema, a regular expression, a list of choices or a grammar.

The grammars are compiled and followed by ``llguidance``, which is an extra; without it the engine announces no guided
kinds, and says how to get them when a request asks.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.protocols.llm import GuidedDecoding, PreprocessedRequest
from dynamo.reference.model_config import ModelConfig

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

__all__ = ["GrammarGuide", "Grammars"]

KINDS = ["json", "json_object", "regex", "choice", "grammar"]
#: Larger ones are refused before they are parsed.
MAX_GRAMMAR_BYTES = 256 * 1024
#: JSON is written on one line, as models see it most: where any whitespace may follow, small models write nothing else.
#: ``oneOf`` is read as ``anyOf``: a grammar cannot say "and no other", and the alternatives of a discriminated union
#: exclude one another by themselves.
JSON_OPTIONS: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "coerce_one_of": True,
}
#: For messages to clients, who know them by these names.
_IN_WORDS = {
    "json": "JSON schema",
    "json_object": "JSON object",
    "regex": "regular expression",
    "choice": "list of choices",
}


class GrammarGuide:
    """Implements `dynamo.reference.sampling.Guide`."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @property
    def finished(self) -> bool:
        """See `Guide`. Not after an error, of which `mask` makes the request fail."""
        return bool(self._matcher.is_stopped()) and not self._matcher.is_error()

    def mask(self, logits: npt.NDArray[np.float32]) -> None:
        """See `Guide`. After an error in the grammar engine every token is masked, which fails the request."""
        if self._matcher.is_error():
            logits[:] = -np.inf
            return
        allowed = np.unpackbits(np.frombuffer(self._matcher.compute_bitmask(), np.uint8), bitorder="little")
        width = min(len(allowed), len(logits))
        logits[:width][allowed[:width] == 0] = -np.inf
        logits[width:] = -np.inf

    def accept(self, token_id: int) -> None:
        """See `Guide`."""
        self._matcher.consume_token(token_id)


class Grammars:
    """Compiles the grammars of requests for one model."""

    def __init__(self, directory: Path, config: ModelConfig) -> None:
        self._path = directory / "tokenizer.json"
        self._config = config
        self._tokenizer: LLTokenizer | None = None

    def kinds(self) -> list[str]:
        """Kinds of guided decoding that requests may ask for."""
        available = importlib.util.find_spec("llguidance") is not None and self._path.is_file()
        return list(KINDS) if available else []

    async def guide(self, request: PreprocessedRequest) -> GrammarGuide | None:
        """The guide of a request, past the output that an earlier worker made; None without guided decoding.

        Raises:
            InvalidRequest: the grammar is wrong or too large, or guided decoding is not available.
        """
        spec = request.guided
        if spec is None:
            return None
        prior = request.prompt()[-request.prior_output_tokens :].tolist() if request.prior_output_tokens else []
        return await asyncio.to_thread(self._compile, spec, prior)  # large schemas take up to a second

    def _compile(self, spec: GuidedDecoding, prior: list[int]) -> GrammarGuide:
        name = _IN_WORDS.get(spec.kind, spec.kind)
        if len(spec.value.encode()) > MAX_GRAMMAR_BYTES:
            raise _invalid(spec, f"the {name} is larger than {MAX_GRAMMAR_BYTES} bytes")
        try:
            from llguidance import LLMatcher
        except ImportError as error:
            raise InvalidRequest(
                "guided decoding is not available on this worker",
                param=spec.param or "guided",
                hint="install dynamo-core[guided] where the worker runs",
            ) from error
        try:
            matcher = LLMatcher(self._ll_tokenizer(), _grammar(spec), log_level=0)
        except ValueError as error:
            raise _invalid(spec, f"the {name} is not valid: {error}") from error
        if prior and not matcher.consume_tokens(prior):
            raise _invalid(spec, f"the output so far does not follow the {name}")
        if matcher.is_error():
            raise _invalid(spec, f"the {name} is not valid: {matcher.get_error()}")
        return GrammarGuide(matcher)

    def _ll_tokenizer(self) -> LLTokenizer:
        from llguidance import LLTokenizer

        if self._tokenizer is None:
            try:
                text = self._path.read_text("utf-8")
            except OSError as error:
                raise ConfigError(f"guided decoding needs {self._path}: {error.strerror}") from error
            eos = list(self._config.eos_token_ids) or None
            self._tokenizer = LLTokenizer(text, n_vocab=self._config.vocab_size, eos_token=eos)
        return self._tokenizer


def _grammar(spec: GuidedDecoding) -> str:
    """The grammar in llguidance's own form.

    Raises:
        ValueError: it is malformed.
    """
    from llguidance import LLMatcher

    if spec.kind == "json":
        return str(LLMatcher.grammar_from_json_schema(spec.value, JSON_OPTIONS))
    if spec.kind == "json_object":
        return str(LLMatcher.grammar_from_json_schema({"type": "object"}, JSON_OPTIONS))
    if spec.kind == "regex":
        return str(LLMatcher.grammar_from_regex(spec.value))
    if spec.kind == "grammar":
        return str(LLMatcher.grammar_from_lark(spec.value))
    choices: Any = json.loads(spec.value)
    if not isinstance(choices, list) or not choices or not all(isinstance(c, str) and c for c in choices):
        raise ValueError("expected a JSON list of strings that are not empty")
    alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    # As one terminal: with one for each choice some thousands are more than its lexer takes.
    return str(LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {alternatives}"))


def _invalid(spec: GuidedDecoding, message: str) -> InvalidRequest:
    return InvalidRequest(message, param=spec.param or "guided")
