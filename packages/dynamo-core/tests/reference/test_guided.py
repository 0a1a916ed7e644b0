from __future__ import annotations

import json
import re

import pytest
from tokenizers import Tokenizer

from dynamo.errors import InvalidRequest
from dynamo.protocols.engine import EngineOptions
from dynamo.protocols.llm import GuidedDecoding
from dynamo.reference import demo_model_directory
from dynamo.reference.engine import ReferenceEngine
from dynamo.reference.guided import MAX_GRAMMAR_BYTES
from dynamo.runtime.context import Context

pytest.importorskip("llguidance", reason="guided decoding needs the extra dynamo-core[guided]")

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Oslo", "Rome"]}, "hot": {"type": "boolean"}},
    "required": ["city", "hot"],
    "additionalProperties": False,
}


@pytest.fixture
async def engine():
    engine = ReferenceEngine(EngineOptions())
    config = await engine.start()
    assert set(config.capabilities.guided) == {"json", "json_object", "regex", "choice", "grammar"}
    yield engine
    await engine.cleanup()


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(demo_model_directory() / "tokenizer.json"))


@pytest.fixture
def ask(engine, tokenizer, make_request):
    """Generate under a grammar; the text and the last output."""

    async def answer(kind, value="", **options):
        prompt = options.pop("prompt", None) or tokenizer.encode("Tell me something.").ids
        request = make_request(prompt, guided=GuidedDecoding(kind=kind, value=value), **{"max_tokens": 60, **options})
        outputs = [output async for output in engine.generate(request, Context("c"))]
        ids = [token for output in outputs for token in output.token_ids]
        return tokenizer.decode(ids, skip_special_tokens=False), outputs[-1], ids

    return answer


@pytest.mark.parametrize("seed", range(4))
async def test_json_follows_its_schema(ask, seed):
    text, last, _ = await ask("json", json.dumps(SCHEMA), temperature=1.0, seed=seed)
    answer = json.loads(text)
    assert answer.keys() == {"city", "hot"}
    assert answer["city"] in ("Oslo", "Rome")
    assert last.finish_reason == "stop"


async def test_regex(ask):
    text, last, _ = await ask("regex", r"[a-f]{3}-[0-9]{4}")
    assert re.fullmatch(r"[a-f]{3}-[0-9]{4}", text)
    assert last.finish_reason == "stop"


@pytest.mark.parametrize("choices", [["yes", "no"], ['say "hi"', "tab\there", "back\\slash"], ["é", "日本"]])
async def test_choice(ask, choices):
    text, last, _ = await ask("choice", json.dumps(choices))
    assert text in choices
    assert last.finish_reason == "stop"


async def test_grammar(ask):
    text, _, _ = await ask("grammar", 'start: "a" b+\nb: "b" | "c"', max_tokens=5)
    assert re.fullmatch(r"a[bc]+", text)


async def test_json_object_starts_as_one(ask):
    text, _, _ = await ask("json_object", max_tokens=10)
    assert text.startswith("{")


async def test_guided_and_free_requests_share_a_batch_and_a_migrated_one_goes_on(ask, tokenizer):
    text, _, ids = await ask("regex", r"[a-f]{3}-[0-9]{4}")
    prompt = tokenizer.encode("Tell me something.").ids
    rest, last, _ = await ask("regex", r"[a-f]{3}-[0-9]{4}", prompt=prompt + ids[:2], prior_output_tokens=2)
    assert tokenizer.decode(ids[:2]) + rest == text
    assert last.finish_reason == "stop"


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("json", "{"),
        ("json", '{"type": "nonsense"}'),
        ("regex", "(unclosed"),
        ("choice", "[]"),
        ("choice", "yes"),
        ("choice", '["a", 3]'),
        ("grammar", "not a grammar ::"),
        ("regex", "a" * (MAX_GRAMMAR_BYTES + 1)),
    ],
)
async def test_wrong_grammars_are_refused(ask, kind, value):
    with pytest.raises(InvalidRequest) as caught:
        await ask(kind, value)
    assert caught.value.param == "guided"


async def test_prior_output_that_breaks_the_grammar_is_refused(ask, tokenizer):
    prompt = tokenizer.encode("Tell me something.").ids
    with pytest.raises(InvalidRequest, match="does not follow"):
        await ask("regex", "[0-9]+", prompt=prompt, prior_output_tokens=1)
