import copy

import pytest

from dynamo.errors import InvalidRequest
from dynamo.preprocessor import ChatTemplate, normalise_messages
from dynamo.preprocessor.messages import argument_object
from dynamo.preprocessor.template_analysis import TemplateNeeds, template_needs
from dynamo.preprocessor.template_sandbox import ChatEnvironment

STRINGS = TemplateNeeds()
PARTS = TemplateNeeds(content_parts=True)


def needs(source):
    return template_needs(ChatEnvironment().parse(source))


def one(message, wants=STRINGS):
    return normalise_messages([message], wants)[0]


def call(arguments):
    function = {"name": "f", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def test_text_parts_are_joined_for_templates_that_read_strings():
    content = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}, {"type": "refusal", "refusal": "c"}]
    assert one({"role": "user", "content": content})["content"] == "a\nb\nc"
    assert one({"role": "user", "content": []})["content"] == ""


def test_strings_become_parts_for_templates_that_loop_over_parts():
    part = [{"type": "text", "text": "a"}]
    assert one({"role": "user", "content": "a"}, PARTS)["content"] == part
    assert one({"role": "user", "content": part}, PARTS)["content"] == part
    both = TemplateNeeds(content_parts=True, tests_strings=True)
    assert one({"role": "user", "content": "a"}, both)["content"] == "a"


@pytest.mark.parametrize("message", [{"role": "assistant", "content": None}, {"role": "assistant"}])
def test_null_and_missing_content_are_empty_unless_the_template_asks_for_null(message):
    assert one(message)["content"] == ""
    assert one(message, PARTS)["content"] == []
    assert one(message, TemplateNeeds(content_parts=True, tests_strings=True))["content"] == ""
    assert one(message, TemplateNeeds(tests_none=True))["content"] is None


def test_arguments_are_parsed_and_empty_ones_are_an_empty_object():
    for given, expected in (('{"a": 1}', {"a": 1}), ("", {}), (None, {}), ({"a": 1}, {"a": 1})):
        message = one(call(given))
        assert message["tool_calls"][0]["function"]["arguments"] == expected
        assert message["tool_calls"][0]["id"] == "1"


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ('{"a": [1]}', {"a": [1]}),
        ("", {}),
        (" \n", {}),
        ('{"a": ', {"INVALID_JSON": '{"a": '}),
        ("[1]", {"INVALID_JSON": "[1]"}),
        ("null", {"INVALID_JSON": "null"}),
        ("[" * 100_000, {"INVALID_JSON": "[" * 100_000}),
        ('"\ud800', {"INVALID_JSON": '"\ud800'}),
    ],
)
def test_arguments_are_always_an_object(arguments, value):
    assert argument_object(arguments) == value


def test_what_a_model_wrote_wrong_does_not_end_its_conversation():
    message = one(call('{"city": "Os'))
    assert message["tool_calls"][0]["function"]["arguments"] == {"INVALID_JSON": '{"city": "Os'}


def test_arguments_stay_text_for_templates_that_add_them_to_text():
    message = one(call('{"a": 1}'), TemplateNeeds(arguments_text=True))
    assert message["tool_calls"] == call('{"a": 1}')["tool_calls"]


def test_developer_is_system_for_templates_that_do_not_know_it():
    message = {"role": "developer", "content": "x"}
    assert one(message)["role"] == "system"
    assert one(message, TemplateNeeds(developer_role=True))["role"] == "developer"


def test_input_is_not_changed_and_twice_is_once():
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}]}, call('{"a": 1}')]
    before = copy.deepcopy(messages)
    for wants in (STRINGS, PARTS):
        once = normalise_messages(messages, wants)
        assert messages == before
        assert normalise_messages(once, wants) == once


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[0]"),
        ({"content": "x"}, "messages[0].role"),
        ({"role": 7, "content": "x"}, "messages[0].role"),
        ({"role": "user", "content": 7}, "messages[0].content"),
        ({"role": "user", "content": {"text": "x"}}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text", "text": "a"}, 7]}, "messages[0].content[1]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {}}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": ["text"]}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0].text"),
        ({"role": "assistant", "tool_calls": "x"}, "messages[0].tool_calls"),
        ({"role": "assistant", "tool_calls": ["x"]}, "messages[0].tool_calls[0].function"),
        (call(7), "messages[0].tool_calls[0].function.arguments"),
        (call([1]), "messages[0].tool_calls[0].function.arguments"),
    ],
)
def test_malformed_messages_name_the_field(message, param):
    with pytest.raises(InvalidRequest) as caught:
        one(message)
    assert caught.value.param == param


def test_no_messages():
    with pytest.raises(InvalidRequest, match="must not be empty"):
        normalise_messages([], STRINGS)


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for p in m.get('content') %}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% set body = m.content %}{% for p in body %}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for p in m.content | selectattr('type', 'equalto', 'text') %}{% endfor %}{% endfor %}",
        "{% for m in messages %}{% for p in (m.content if m.content else []) %}{% endfor %}{% endfor %}",
        "{% macro show(c) %}{% for p in c %}{% endfor %}{% endmacro %}{% for m in messages %}{{ show(m.content) }}{% endfor %}",
    ],
)
def test_templates_that_loop_over_content_are_recognised(source):
    assert needs(source).content_parts


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.content }}{% endfor %}",
        "{% for m in messages %}{% for c in m.tool_calls %}{{ m.content }}{% endfor %}{% endfor %}",
        "{% for m in messages[1:] %}{{ m['content'] | trim }}{% endfor %}",
    ],
)
def test_templates_that_read_strings_are_recognised(source):
    assert not needs(source).content_parts


def test_other_needs():
    assert needs("{% if m.content is string %}{% endif %}").tests_strings
    assert needs("{% if message['content'] is not none %}{% endif %}").tests_none
    assert not needs("{% if tools is none %}{% endif %}").tests_none
    assert needs("{{ 'x' + tool['function']['arguments'] + 'y' }}").arguments_text
    assert needs("{{ 'x' ~ tool.function.arguments }}").arguments_text
    assert not needs("{{ 'x' + (tool.arguments | tojson) }}").arguments_text
    assert needs("{% if m.role == 'developer' %}{% endif %}").developer_role


def test_render_brings_messages_to_the_templates_form():
    looping = "{% for m in messages %}{% for p in m.content %}[{{ p.text }}]{% endfor %}{% endfor %}"
    reading = "{% for m in messages %}{{ m.content }}{% endfor %}"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert ChatTemplate(looping).render(parts) == "[a][b]"
    assert ChatTemplate(looping).render([{"role": "user", "content": "ab"}]) == "[ab]"
    assert ChatTemplate(reading).render(parts) == "a\nb"
