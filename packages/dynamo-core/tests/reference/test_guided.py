from __future__ import annotations

import json
import re

import msgspec
import pytest
from tokenizers import Tokenizer

from dynamo.errors import EngineError, InvalidRequest
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


class Cat(msgspec.Struct, tag="cat", tag_field="kind", forbid_unknown_fields=True):
    lives: int


class Dog(msgspec.Struct, tag="dog", tag_field="kind", forbid_unknown_fields=True):
    barks: bool


class Owner(msgspec.Struct, forbid_unknown_fields=True):
    """What a discriminated union looks like in the JSON schemas of typed clients."""

    pet: Cat | Dog
    others: list[Cat | Dog]


def owner_schema():
    """As pydantic writes it: ``oneOf`` with a ``discriminator``, and references."""

    def animal(name, **field):
        properties = {"kind": {"const": name, "type": "string"}, **field}
        return {"properties": properties, "required": list(properties), "type": "object", "additionalProperties": False}

    mapping = {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}
    pet = {
        "discriminator": {"mapping": mapping, "propertyName": "kind"},
        "oneOf": [{"$ref": place} for place in mapping.values()],
    }
    return {
        "$defs": {
            "Cat": animal("cat", lives={"type": "integer", "minimum": 0, "maximum": 9}),
            "Dog": animal("dog", barks={"type": "boolean"}),
        },
        "properties": {"pet": pet, "others": {"items": pet, "maxItems": 2, "type": "array"}},
        "required": ["pet", "others"],
        "type": "object",
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


@pytest.mark.parametrize("seed", range(4))
async def test_discriminated_unions_are_followed(ask, seed):
    text, last, _ = await ask("json", json.dumps(owner_schema()), temperature=1.0, seed=seed, max_tokens=100)
    assert last.finish_reason == "stop"
    owner = msgspec.json.decode(text, type=Owner)
    assert all(0 <= animal.lives <= 9 for animal in (owner.pet, *owner.others) if isinstance(animal, Cat))


async def test_thousands_of_choices(ask):
    choices = [f"c{number}" for number in range(10_000)]
    text, last, _ = await ask("choice", json.dumps(choices))
    assert text in choices
    assert last.finish_reason == "stop"


async def test_a_grammar_that_turns_out_too_large_fails_the_request(ask):
    """What it made so far is no answer, though nothing can follow it."""
    alternatives = " | ".join(f'"c{number}"' for number in range(5000))
    with pytest.raises(EngineError, match="no token can follow"):
        await ask("grammar", f"start: {alternatives}")


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


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("json", '{"type": "nonsense"}', "the JSON schema is not valid: .*nonsense"),
        ("regex", "(unclosed", "the regular expression is not valid"),
        ("choice", "[]", "the list of choices is not valid"),
    ],
)
async def test_refusals_say_what_is_wrong_in_words_that_clients_know(engine, make_request, kind, value, message):
    request = make_request([1, 2], guided=GuidedDecoding(kind, value, "response_format"))
    with pytest.raises(InvalidRequest, match=message) as caught:
        await anext(engine.generate(request, Context("c")))
    assert caught.value.param == "response_format"


async def test_prior_output_that_breaks_the_grammar_is_refused(ask, tokenizer):
    prompt = tokenizer.encode("Tell me something.").ids
    with pytest.raises(InvalidRequest, match="does not follow"):
        await ask("regex", "[0-9]+", prompt=prompt, prior_output_tokens=1)
