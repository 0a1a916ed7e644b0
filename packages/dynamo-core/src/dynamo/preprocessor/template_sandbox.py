"""The Jinja environment in which chat templates run: Hugging Face's dialect, with bounded time and memory.

Templates come with models, and some servers take them from requests, so they are hostile. Jinja's sandbox keeps them
from the interpreter's internals but not from using all its time and memory. Rendering happens on the event loop or on
a thread, where signals cannot stop it and `sys.settrace` would make it ten times slower, so everything in a template
that repeats or grows pays from a `Budget`:

- loops: the syntax tree is rewritten so that every iterable is counted, also those of recursive loops;
- calls, filters and intercepted operators: one step each, and their results by size;
- growth (``*``, ``**``, ``%``, ``~``, ``join``, ``replace``, padding, ...): the size is checked before it is made;
- printing, comparing and hashing of nested values, whose parts may be shared: they are measured first.

What is left is the straight-line work between two charges, which the length of the source bounds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, NoReturn, cast

from jinja2 import Template, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from dynamo.preprocessor.template_budget import current_budget
from dynamo.preprocessor.template_growth import WIDE_PERCENT, check_filter, check_method, check_operands, check_test

__all__ = ["ChatEnvironment", "TemplateRefusal"]

# fmt: off
#: Stock filters whose result is bounded by their input, or by a check in `template_growth`.
_FILTERS = (
    "abs", "attr", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
    "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower",
    "map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr",
    "sort", "string", "striptags", "sum", "title", "trim", "truncate", "unique", "upper", "urlencode",
    "wordcount",
)
_COMPARING_TESTS = (
    "!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan", "lt", "ne",
)
# fmt: on
_REFUSED_METHODS = frozenset({"translate", "maketrans", "to_bytes", "encode", "fromkeys"})
_MAX_STRFTIME_CHARACTERS = 256
_TEXTS = frozenset({str})


class TemplateRefusal(TemplateError):
    """The template itself refused the messages, by `raise_exception`."""


class _Generator(CodeGenerator):
    """Calls what `_through` names directly: a sandboxed call costs more than most of what is called by it."""

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:  # noqa: N802
        # No template can name an attribute of the environment: these are ours.
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.visit(node.node, frame)
        self.write("(")
        for argument in node.args:
            self.visit(argument, frame)
            self.write(", ")
        self.write(")")


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Compiles chat templates. One serves all templates of the process; rendering needs `template_budget.spending`."""

    code_generator_class = _Generator
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _GenerationBlock],
            finalize=_printed,
        )
        self.filters = {name: _charged(name, self.filters[name]) for name in _FILTERS}
        self.filters["tojson"] = _charged("tojson", _to_json)
        self.tests.update({name: _measured(self.tests[name]) for name in _COMPARING_TESTS})
        del self.globals["lipsum"]
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now

    def template(self, tree: nodes.Template) -> Template:
        """Compile a parsed template; changes `tree`."""
        made = self.from_string(_Bounding().visit(tree))
        # A chain of one map, which jinja would copy in Python for each rendering.
        made.globals = dict(made.globals)
        return made

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Every call of a template."""
        budget = current_budget()
        budget.charge()
        if isinstance(obj, LoopContext) and args:
            args = (_Counted(args[0]), *args[1:])
        elif isinstance(obj, Macro) and obj.catch_varargs:
            budget.measure(args)
        else:
            check_method(obj, args)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, str):
            budget.size(len(result))
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """``*``, ``**`` and ``%``."""
        check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No internals, and no methods whose result may be of any size."""
        if attr in _REFUSED_METHODS and isinstance(obj, (str, int, float, dict)):
            return False
        return super().is_safe_attribute(obj, attr, value)

    @staticmethod
    def concat(chunks: Iterable[str]) -> str:
        """Joins what a macro, a ``set`` block or a recursive loop has put out."""
        return current_budget().collect(chunks)

    @staticmethod
    def counted(iterable: Any) -> Any:
        """What every ``for`` iterates over."""
        return _Counted(iterable)

    @staticmethod
    def added(*values: Any) -> Any:
        """The ``+`` operator, over a whole chain: templates put prompts together with it."""
        if _TEXTS.issuperset(map(type, values)):
            current_budget().size(sum(map(len, values)))
            return "".join(values)
        total = values[0]
        for value in values[1:]:
            check_operands("+", total, value)
            total = total + value
        return total

    @staticmethod
    def joined(*values: Any) -> str:
        """The ``~`` operator."""
        current_budget().charge()
        return ChatEnvironment.concat([str(_printed(value)) for value in values])

    @staticmethod
    def measured(value: Any) -> Any:
        """An operand of a comparison, or a tuple (which may become a key)."""
        return _printed(value)


class _Counted:
    """An iterable that pays for its items; keeps `len`, which ``loop.length`` uses."""

    __slots__ = ("_iterable",)

    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        charge = current_budget().charge
        for item in self._iterable:
            charge()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


class _Bounding(NodeTransformer):
    """Rewrites a syntax tree so that loops, ``+``, ``~``, tuples and comparisons go through the environment."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.iter = _through("counted", cast("nodes.Expr", node.iter))
        return node

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        operands: list[nodes.Expr] = []
        left: nodes.Expr = node
        while isinstance(left, nodes.Add):
            operands.append(left.right)
            left = left.left
        return _through("added", *(self.visit(operand) for operand in (left, *reversed(operands))))

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("joined", *node.nodes)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        constant = all(isinstance(item, nodes.Const) for item in node.items)
        return node if constant or node.ctx != "load" else _through("measured", node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        # A comparison with a constant is cheap, and nearly all are: those stay as fast as they were.
        self.generic_visit(node)
        operands = [node.expr, *(operand.expr for operand in node.ops)]
        if not any(isinstance(operand, nodes.Const) for operand in operands):
            node.expr = _through("measured", node.expr)
            for operand in node.ops:
                operand.expr = _through("measured", operand.expr)
        return node


def _through(method: str, *arguments: nodes.Expr) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(method), list(arguments), [], None, None)
    call.set_lineno(arguments[0].lineno)
    return call


class _GenerationBlock(Extension):
    """``{% generation %}``: marks the assistant's tokens for training; here it prints what it encloses."""

    tags = {"generation"}  # noqa: RUF012 - the name and type are Jinja's

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _printed(value: Any) -> Any:
    """`value`, paid for as if printed."""
    if isinstance(value, (list, tuple, dict, set, frozenset, Namespace)):
        current_budget().measure(value)
    return value


def _measured(test: Any) -> Callable[..., bool]:
    """A test that pays for what it compares."""

    def measured(*args: Any) -> bool:
        check_test(args)
        return bool(test(*args))

    return measured


def _charged(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that pays for the call and its result."""
    passed = int(hasattr(function, "jinja_pass_arg"))  # the context comes before the value

    @functools.wraps(function)
    def charged(*args: Any, **kwargs: Any) -> Any:
        budget = current_budget()
        budget.charge()
        check_filter(name, args[passed:], kwargs)
        result = function(*args, **kwargs)
        if isinstance(result, str):
            budget.size(len(result))
        return result

    return charged


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which a prompt is not.
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys, check_circular=False
    )
    if indent is None and separators is None:
        return encoder.encode(value)
    return current_budget().collect(encoder.iterencode(value))


def _raise_exception(message: object) -> NoReturn:
    raise TemplateRefusal(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > _MAX_STRFTIME_CHARACTERS or WIDE_PERCENT.search(form):
        raise SecurityError("strftime_now takes a short format")
    return datetime.now(timezone.utc).astimezone().strftime(form)
