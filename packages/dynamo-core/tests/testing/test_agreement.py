"""Equal up to the first close call, and no further."""

from __future__ import annotations

import pytest

from dynamo.protocols.llm import LLMEngineOutput, PreprocessedRequest, TokenLogprob
from dynamo.testing.engine_conformance.agreement import CLOSE_CALL, disagreement
from dynamo.testing.engine_conformance.driver import Generation


def _generation(*tokens: tuple[int, float | None]) -> Generation:
    """Ids with the margin of each over the next likeliest; None: no logprobs."""
    outputs = []
    for token, margin in tokens:
        entries = None if margin is None else [TokenLogprob(token, -0.1, [(token, -0.1), (0, -0.1 - margin)])]
        outputs.append(LLMEngineOutput([token], logprobs=entries))
    return Generation(PreprocessedRequest("r", "m", b""), outputs)


SURE = _generation((5, 1.0), (6, 1.0), (7, 1.0))
CLOSE = _generation((5, 1.0), (6, CLOSE_CALL / 2), (7, 1.0))
SILENT = _generation((5, None), (6, None))


@pytest.mark.parametrize(
    ("expected", "ids", "difference"),
    [
        (SURE, [5, 6, 7], None),
        (SURE, [5, 6, 8], "token 2 is 8 in place of 7"),
        (SURE, [5, 6], "token 2 is the end in place of 7"),
        (SURE, [5, 6, 7, 8], "token 3 is 8 in place of the end"),
        (CLOSE, [5, 9, 9, 9], None),
        (CLOSE, [4, 6, 7], "token 0 is 4 in place of 5"),
        (CLOSE, [], "token 0 is the end in place of 5"),
        (SILENT, [5, 7], "token 1 is 7 in place of 6"),
    ],
)
def test_streams_agree_up_to_a_close_call(expected: Generation, ids: list[int], difference: str | None) -> None:
    assert disagreement(expected, ids) == difference


def test_exact_leaves_no_room() -> None:
    assert disagreement(CLOSE, [5, 9, 7], exact=True) == "token 1 is 9 in place of 6"
