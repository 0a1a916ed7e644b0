import json
import re
import threading

import pytest

from dynamo.errors import ConfigError, InvalidRequest
from dynamo.preprocessor import ChatTemplate

USER = {"role": "user", "content": "hi"}
CHATML = (
    "{%- for message in messages %}\n"
    "    {{- '<|im_start|>' + message.role + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}"
)


def render(source, messages=(USER,), **options):
    return ChatTemplate(source, name="m").render(list(messages), **options)


def test_blocks_are_trimmed_as_hugging_face_does():
    assert render("  {% if true %}\n  a\n  {% endif %}\nb") == "  a\nb"
    assert render(CHATML) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert render(CHATML, add_generation_prompt=False) == "<|im_start|>user\nhi<|im_end|>\n"


def test_special_tokens_variables_tools_and_documents_are_visible():
    template = ChatTemplate(
        "{{ bos_token }}|{{ flag }}|{{ tools | length }}|{{ documents[0].title }}", special_tokens={"bos_token": "<s>"}
    )
    text = template.render([USER], tools=[{"a": 1}], documents=[{"title": "T"}], variables={"flag": 7})
    assert text == "<s>|7|1|T"


def test_no_tools_are_none():
    assert render("{% if tools is none %}no{% endif %}{% if documents is none %}ne{% endif %}", tools=[]) == "none"


def test_tojson_is_plain_json_in_unicode():
    value = {"a": "<é&'", "b": [1, True, None]}
    assert render("{{ x | tojson }}", variables={"x": value}) == json.dumps(value, ensure_ascii=False)
    assert render("{{ x | tojson(indent=2) }}", variables={"x": value}) == json.dumps(
        value, ensure_ascii=False, indent=2
    )
    assert render("{{ x | tojson(separators=(',', ':')) }}", variables={"x": [1, 2]}) == "[1,2]"


def test_loop_controls_generation_blocks_and_strftime():
    assert render("{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "01"
    assert render("a{% generation %}b{% set x = 1 %}{% endgeneration %}c{{ x is defined }}") == "abcFalse"
    assert re.fullmatch(r"\d{4}-\d\d", render("{{ strftime_now('%Y-%m') }}"))


def test_loop_variables_keep_working_over_counted_iterables():
    source = "{% for m in messages %}{{ loop.index }}/{{ loop.length }}{{ loop.last }} {% endfor %}"
    assert render(source, [USER, USER]) == "1/2False 2/2True "
    assert render("{% for k, v in x.items() %}{{ k }}={{ v }};{% endfor %}", variables={"x": {"a": 1}}) == "a=1;"
    assert render("{% for i in missing %}x{% else %}none{% endfor %}") == "none"
    tree = {"n": 1, "c": [{"n": 2, "c": []}]}
    recursive = "{% for t in [x] recursive %}{{ t.n }}({{ loop(t.c) }}){% endfor %}"
    assert render(recursive, variables={"x": tree}) == "1(2())"
    assert render("{% for i in range(6) if i % 2 %}{{ i }}{{ loop.nextitem }}{% endfor %}") == "13355"


def test_operators_keep_their_meaning():
    assert render("{{ 'a' ~ 1 ~ none }} {{ [1] + [2] }} {{ 2 ** 3 }} {{ 'x' * 3 }} {{ '%03d-%s' % (7, 'a') }}") == (
        "a1None [1, 2] 8 xxx 007-a"
    )
    assert render("{{ '{{{}}} {:>4}'.format('a', 'b') }} {{ 'a,b'.split(',') | join('-') }}") == "{a}    b a-b"
    assert render("{% set t = (x, 1) %}{{ t[0] }} {{ x == y }} {{ x in [y] }}", variables={"x": [1], "y": [1]}) == (
        "[1] True True"
    )


def test_raise_exception_reaches_the_client_word_for_word():
    with pytest.raises(InvalidRequest) as caught:
        render("{{ raise_exception('Conversation roles must alternate') }}")
    assert caught.value.message == "Conversation roles must alternate"
    assert caught.value.param == "messages"


@pytest.mark.parametrize(
    "source",
    ["{{ 1 / 0 }}", "{{ messages[9].content.x }}", "{{ undefined_function() }}", "{% include 'x' %}", "{{ 1 + 'a' }}"],
)
def test_what_fails_in_the_template_is_an_invalid_request_that_names_the_model(source):
    with pytest.raises(InvalidRequest, match="chat template of model 'm' cannot render"):
        render(source)


@pytest.mark.parametrize(
    "source", ["{% for %}", "{{ x", "{% endif %}", "{{ x | nofilter }}", "{{" + "(" * 5000, "{% unknown %}"]
)
def test_templates_that_do_not_parse_are_configuration_errors(source):
    with pytest.raises(ConfigError, match="chat template of model 'm'"):
        ChatTemplate(source, name="m")


def test_syntax_error_names_the_line():
    with pytest.raises(ConfigError, match="line 3"):
        ChatTemplate("a\nb\n{% for %}", name="m")


def test_overlong_source_is_refused():
    with pytest.raises(ConfigError, match="longer than"):
        ChatTemplate("x" * (256 * 1024 + 1))


def test_model_without_template_says_how_to_fix(tmp_path):
    template = ChatTemplate.from_directory(tmp_path, name="base")
    assert not template.available
    with pytest.raises(InvalidRequest, match="'base' has no chat template") as caught:
        template.render([USER])
    assert "/v1/completions" in caught.value.hint


def test_jinja_file_wins_over_the_config(model_directory):
    (model_directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": "config", "bos_token": "<s>"}))
    assert ChatTemplate.from_directory(model_directory).render([USER]) == "<s>user: hi\n"
    (model_directory / "chat_template.jinja").unlink()
    assert ChatTemplate.from_directory(model_directory).render([USER]) == "config"


def test_named_templates(model_directory):
    (model_directory / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}, "junk", {"name": 1}]
    (model_directory / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    template = ChatTemplate.from_directory(model_directory)
    assert template.render([USER]) == "plain"
    assert template.render([USER], tools=[{"type": "function"}]) == "tools"


def test_template_file_that_is_no_utf8(model_directory):
    (model_directory / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        ChatTemplate.from_directory(model_directory, name="m")


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "continue_final_message", "documents"])
def test_request_fields_cannot_come_as_variables(name):
    with pytest.raises(InvalidRequest, match=name) as caught:
        render("x", variables={name: 1})
    assert caught.value.param == "chat_template_kwargs"


def test_special_tokens_can_be_overridden_by_variables():
    template = ChatTemplate("{{ bos_token }}", special_tokens={"bos_token": "<s>"})
    assert template.render([USER], variables={"bos_token": ""}) == ""


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("The answer", "<|im_start|>assistant\nThe answer"),
        ("  The answer  ", "<|im_start|>assistant\nThe answer"),
        ([{"type": "text", "text": "The answer"}], "<|im_start|>assistant\nThe answer"),
    ],
)
def test_continue_final_message_ends_inside_it(content, expected):
    messages = [USER, {"role": "assistant", "content": content}]
    text = render(CHATML, messages, add_generation_prompt=False, continue_final_message=True)
    assert text == "<|im_start|>user\nhi<|im_end|>\n" + expected


def test_continue_final_message_keeps_trailing_spaces_that_the_template_keeps():
    source = "{% for m in messages %}[{{ m.content }}]{% endfor %}"
    messages = [USER, {"role": "assistant", "content": " so "}]
    assert render(source, messages, add_generation_prompt=False, continue_final_message=True) == "[hi][ so "


@pytest.mark.parametrize("content", ["", "   ", None, []])
def test_continue_final_message_needs_text(content):
    with pytest.raises(InvalidRequest, match="needs text"):
        render(
            "x", [{"role": "assistant", "content": content}], add_generation_prompt=False, continue_final_message=True
        )


def test_continue_final_message_that_the_template_hides():
    with pytest.raises(InvalidRequest, match="does not show"):
        render("x", [{"role": "assistant", "content": "a"}], add_generation_prompt=False, continue_final_message=True)


def test_continue_final_message_excludes_generation_prompt():
    with pytest.raises(InvalidRequest) as caught:
        render("x", continue_final_message=True)
    assert caught.value.param == "continue_final_message"


def test_renderings_on_threads_do_not_share_state():
    template = ChatTemplate(
        "{% set ns = namespace(n=0) %}{% for i in range(500) %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ messages[0].content }}"
    )
    results = {}

    def work(index):
        results[index] = template.render([{"role": "user", "content": f"-{index}"}])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {index: f"500-{index}" for index in range(8)}


def test_lone_surrogates_pass_through_to_the_tokenizer_which_refuses_them(bpe):
    text = render("{{ messages[0].content }}", [{"role": "user", "content": "\ud800"}])
    with pytest.raises(InvalidRequest):
        bpe.encode(text)
