"""Hostile templates: each must end in an error, soon and in little memory."""

import pytest

from dynamo.errors import InvalidRequest
from dynamo.preprocessor import ChatTemplate, TemplateLimits

USER = {"role": "user", "content": "hi"}
#: Small bounds show that the bound, not the machine, ends a template.
LIMITS = TemplateLimits(steps=20_000, text_characters=100_000)


def render(source, limits=LIMITS, **variables):
    return ChatTemplate(source, name="m", limits=limits).render([USER], variables=variables)


LOOPS = {
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "one range in a variable": "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    "filtered loop": "{% for a in range(99999) if false %}{% endfor %}",
    "loop.length over a filtered loop": "{% for a in range(99999) if a %}{{ loop.length }}{% endfor %}",
    "characters": "{% for a in 'x' * 90000 %}{% endfor %}",
    "recursive loop": "{% for a in range(9) recursive %}{% if loop.depth < 9 %}{{ loop(range(99)) }}{% endif %}{% endfor %}",
    "recursive loop without output": (
        "{% for a in range(9999) recursive %}{% if a == 0 and loop.depth < 99 %}{% set x = loop(range(9999)) %}{% endif %}"
        "{% endfor %}"
    ),
    "macro calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "filters": "{% for a in range(9999) %}{{ a | abs | abs | abs }}{% endfor %}",
    "call block": "{% macro m() %}{% for i in range(999) %}{{ caller() }}{% endfor %}{% endmacro %}"
    "{% call m() %}{% call m() %}{% endcall %}{% endcall %}",
    "messages by messages": "{% for a in x %}{% for b in x %}{% for c in x %}{% endfor %}{% endfor %}{% endfor %}",
}


@pytest.mark.parametrize("name", LOOPS)
def test_endless_loops_run_out_of_steps(name):
    with pytest.raises(InvalidRequest, match=r"chat template of model 'm' was stopped: .* more than 20000 steps"):
        render(LOOPS[name], x=[0] * 1000)


GROWTH = {
    "output": "{% for a in range(9999) %}{{ 'x' * 99 }}{% endfor %}",
    "times": "{{ 'x' * 10 ** 12 }}",
    "times from the left": "{{ 10 ** 12 * 'x' }}",
    "list times": "{{ ([0] * 10 ** 12) | length }}",
    "list of text times": "{{ (['x' * 1000] * 1000) | length }}",
    "tilde": "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "plus": "{% set ns = namespace(s='x') %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "list plus": "{% set ns = namespace(s=[1]) %}{% for a in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "set block": (
        "{% set ns = namespace(s='x') %}{% for a in range(60) %}"
        "{% set b %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = b %}{% endfor %}"
    ),
    "macro": (
        "{% macro m(s) %}{% for a in range(99) %}{{ s }}{% endfor %}{% endmacro %}{% set a = m(m(m(m('xxxx')))) %}"
    ),
    "filter block": "{% filter upper %}{% for a in range(9999) %}xxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfilter %}",
    "replace filter": "{{ ('x' * 9999) | replace('x', 'y' * 9999) | length }}",
    "replace method": "{{ ('x' * 9999).replace('x', 'y' * 9999) | length }}",
    "replace nothing": "{{ ('x' * 9999).replace('', 'y' * 9999) | length }}",
    "join filter": "{{ range(9999) | list | join('x' * 9999) | length }}",
    "join method": "{{ ('x' * 9999).join(['a'] * 9999) | length }}",
    "indent": "{{ ('\n' * 9999) | indent(9999) | length }}",
    "indent by text": "{{ ('\n' * 9999) | indent('x' * 9999) | length }}",
    "split": "{{ (',' * 90000).split(',') | length }}",
    "percent placeholders": "{{ (('%(a)s' * 9999) % {'a': 'x' * 9999}) | length }}",
    "format placeholders": "{{ ('{0}' * 9999).format('x' * 9999) | length }}",
    "tojson indent": "{{ x | tojson(indent=9999) | length }}",
}


@pytest.mark.parametrize("name", GROWTH)
def test_growing_values_are_refused_before_they_are_made(name):
    with pytest.raises(InvalidRequest, match="larger than 100000 characters"):
        render(GROWTH[name], x=[[0] * 99])


REFUSED = {
    "percent width": "{{ '%999999999d' % 1 }}",
    "percent width with a key": "{{ '%(a)999999999d' % {'a': 1} }}",
    "percent width argument": "{{ '%*d' % (999999999, 1) }}",
    "format filter": "{{ '%999999999s' | format('x') }}",
    "format width": "{{ '{:>999999999}'.format('x') }}",
    "format width argument": "{{ '{:>{}}'.format('x', 999999999) }}",
    "format_map": "{{ '{a:>999999999}'.format_map({'a': 1}) }}",
    "center": "{{ 'x' | center(999999999) }}",
    "ljust": "{{ 'x'.ljust(999999999) }}",
    "zfill": "{{ 'x'.zfill(999999999) }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "product": "{% set ns = namespace(n=99) %}{% for a in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "round": "{{ 1.5 | round(999999999, 'ceil') }}",
    "sum of lists": "{{ [[1]] | sum(start=[]) }}",
    "tuple sum": "{{ (1, 2) + (3,) }}",
    "strftime": "{{ strftime_now('%999999999d') }}",
    "strftime length": "{{ strftime_now('%c' * 999) }}",
    "range": "{{ range(10 ** 9) | list }}",
    "to_bytes": "{{ (1).to_bytes(999999999, 'big') }}",
    "encode": "{{ 'x'.encode('utf-8') }}",
}


@pytest.mark.parametrize("name", REFUSED)
def test_operations_without_a_bound_are_refused(name):
    with pytest.raises(InvalidRequest, match=r"was stopped: |cannot render these messages: Range too big"):
        render(REFUSED[name])


DOUBLING = "{% set ns = namespace(v=[1], w=[1]) %}{% for a in range(60) %}{% set ns.v = DOUBLE %}{% endfor %}"
SHARED = {
    "printed list": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]") + "{{ ns.v }}",
    "printed dict": DOUBLING.replace("DOUBLE", "{'a': ns.v, 'b': ns.v}") + "{{ ns.v }}",
    "json": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]") + "{{ ns.v | tojson }}",
    "text filter": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]") + "{{ ns.v | trim }}",
    "joined": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]") + "{{ ns.v | join }}",
    "tilde": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]") + "{% set x = ns.v ~ '' %}",
    "compared": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]").replace(
        "{% endfor %}", "{% set ns.w = [ns.w, ns.w] %}{% endfor %}{% if ns.v == ns.w %}{% endif %}"
    ),
    "compared by a test": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]").replace(
        "{% endfor %}", "{% set ns.w = [ns.w, ns.w] %}{% endfor %}{% if ns.v is equalto(ns.w) %}{% endif %}"
    ),
    "compared by select": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]").replace(
        "{% endfor %}",
        "{% set ns.w = [ns.w, ns.w] %}{% endfor %}{{ [ns.v] | select('equalto', ns.w) | list | length }}",
    ),
    "compared by count": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]").replace(
        "{% endfor %}", "{% set ns.w = [ns.w, ns.w] %}{% endfor %}{{ [ns.v].count(ns.w) }}"
    ),
    "compared by the loop": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]").replace(
        "{% endfor %}",
        "{% set ns.w = [ns.w, ns.w] %}{% endfor %}{% for x in [ns.v, ns.w] %}{{ loop.changed(x) }}{% endfor %}",
    ),
    "sorted": DOUBLING.replace("DOUBLE", "[ns.v, ns.v]") + "{{ [ns.v, ns.v] | sort | length }}",
    "hashed tuple": DOUBLING.replace("DOUBLE", "(ns.v, ns.v)").replace("[1]", "1") + "{{ {ns.v: 1} | length }}",
    "hashed varargs": (
        "{% set ns = namespace(v=1) %}{% macro m() %}{% set ns.v = varargs %}{% endmacro %}"
        "{% for a in range(60) %}{{ m(ns.v, ns.v) }}{% endfor %}{{ {ns.v: 1} | length }}"
    ),
    "dict()": DOUBLING.replace("DOUBLE", "dict(a=ns.v, b=ns.v)") + "{{ ns.v }}",
}


@pytest.mark.parametrize("name", SHARED)
def test_nested_values_with_shared_parts_cost_what_they_print(name):
    with pytest.raises(InvalidRequest, match="was stopped"):
        render(SHARED[name])


@pytest.mark.parametrize("source", ["{{ ns }}", "{{ [ns] }}", "{{ ns ~ '' }}", "{{ [ns] | string }}"])
def test_namespaces_are_not_printed(source):
    with pytest.raises(InvalidRequest, match="namespace"):
        render("{% set ns = namespace() %}{% set ns.self = ns %}" + source)


ESCAPES = {
    "class": "{{ ''.__class__.__mro__ }}",
    "attr filter": "{{ (''|attr('__class__')).mro() }}",
    "map attribute": "{{ ['']|map(attribute='__class__')|list|first|attr('mro') }}",
    "item": "{{ ''['__class__'].mro() }}",
    "format": "{{ '{0.__class__.mro}'.format('') }}",
    "function globals": "{{ raise_exception.__globals__.x }}",
    "environment": "{{ self.__init__.__globals__ }}",
    "loop internals": "{% for i in [1] %}{{ loop._iterable._iterable.x }}{{ loop.__init__ }}{% endfor %}",
    "mutation": "{{ messages.append(1) }}",
    "dict mutation": "{{ messages[0].update({'a': 1}) }}",
    "lipsum": "{{ lipsum() }}",
}


@pytest.mark.parametrize("name", ESCAPES)
def test_internals_are_out_of_reach(name):
    with pytest.raises(InvalidRequest, match="chat template of model 'm'"):
        render(ESCAPES[name])


def test_deep_recursion_is_an_error():
    with pytest.raises(InvalidRequest, match="recurses too deep"):
        render("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}")


def test_constants_are_not_folded_into_something_large_while_compiling():
    template = ChatTemplate("{{ 'x' | center(999999999) }}{{ 'x' * 10 ** 12 }}", name="m")
    with pytest.raises(InvalidRequest):
        template.render([USER])


def test_time_is_the_last_resort():
    with pytest.raises(InvalidRequest, match="longer than 0 s"):
        render("{% for a in range(99999) %}{% endfor %}", TemplateLimits(seconds=0))


def test_a_long_conversation_stays_far_within_the_default_limits():
    source = (
        "{% set ns = namespace(seen=[], last='') %}{% for m in messages %}"
        "{% if m.role == 'user' and not loop.last %}{% set ns.seen = ns.seen + [m.content] %}{% endif %}"
        "{% if loop.index0 == messages | length - 1 %}{% set ns.last = m.content | trim %}{% endif %}"
        "{{ '<|' ~ m.role ~ '|>' + m.content | trim + '\n' }}{% endfor %}{{ ns.seen | length }}{{ ns.last }}"
    )
    template = ChatTemplate(source, limits=TemplateLimits(steps=100_000))
    messages = [{"role": "user", "content": "word " * 20}] * 2000
    assert template.render(messages).endswith("1999" + ("word " * 20).strip())


SUMS = {
    "texts": ("{{ 'a' + x + 'b' + x + 'c' }}", "ahbhc"),
    "numbers": ("{{ 1 + 2 - 4 + n + 0.5 }}", "6.5"),
    "lists": ("{{ ([1] + [2] + [n])[2] + (2 + 3) * 2 }}", "17"),
    "in a set": (
        "{% set ns = namespace(t='') %}{% for i in 'ab' %}{% set ns.t = ns.t + i + '-' %}{% endfor %}{{ ns.t }}",
        "a-b-",
    ),
    "with joins": ("{{ 'a' + ('b' ~ (n + 1)) + 'c' }}", "ab8c"),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_what_they_are_in_python(name):
    source, expected = SUMS[name]
    assert render(source, x="h", n=7) == expected


@pytest.mark.parametrize("source", ["{{ 'a' + 1 }}", "{{ 'a' + 'b' + missing }}", "{{ [] + 'a' + 'b' }}"])
def test_sums_of_what_does_not_add_up_are_refused(source):
    with pytest.raises(InvalidRequest, match="cannot render these messages"):
        render(source)


def test_a_long_sum_is_refused_before_it_is_made():
    with pytest.raises(InvalidRequest, match="larger than 100000 characters"):
        render("{{ x + x + x }}", x="x" * 40_000)
