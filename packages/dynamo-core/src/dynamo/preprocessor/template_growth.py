"""Operations of a template whose result can be far larger than their operands: checked before they run.

`template_sandbox` calls these; each pays the current `Budget` for the size to come, or refuses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError
from jinja2.runtime import LoopContext

from dynamo.preprocessor.template_budget import Budget, current_budget

__all__ = ["WIDE_PERCENT", "check_filter", "check_method", "check_operands", "check_test"]

#: Placeholders with a width or precision of five digits and more, or with one that comes from an argument.
WIDE_PERCENT = re.compile(r"%(?:\([^)%]*\))?[^a-zA-Z%]*(?:\d{5}|\*)")
_WIDE_BRACES = re.compile(r"\{[^{}:]*:[^{}]*\d{5}|\{[^{}]*\{")
_MAX_PADDING_CHARACTERS = 10_000
_MAX_INTEGER_BITS = 4096
#: Memory of one list item, in characters.
_ITEM_CHARACTERS = 8
_PADDING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs"})
_SPLITTING = frozenset({"split", "rsplit", "splitlines"})
_SPLITTING_FILTERS = frozenset({"list", "map", "sort", "striptags", "title", "unique", "urlencode", "wordcount"})
# fmt: off
#: Filters that print or compare what they get.
_PRINTING = frozenset({
    "capitalize", "dictsort", "e", "escape", "forceescape", "format", "groupby", "lower", "max", "min", "sort",
    "string", "striptags", "title", "tojson", "trim", "truncate", "unique", "upper", "urlencode", "wordcount",
})
# fmt: on


def check_operands(operator: str, left: Any, right: Any) -> None:
    """Before ``left operator right``."""
    budget = current_budget()
    if operator == "+":
        _check_sum(budget, left, right)
    elif operator == "*":
        _check_product(budget, left, right)
    elif operator == "**":
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _MAX_INTEGER_BITS:
            raise SecurityError("the template makes a number of more than 4096 bits")
    elif isinstance(left, str):
        _check_percent(budget, left, right)


def check_method(method: Any, args: Sequence[Any]) -> None:
    """Before a method of a string, container or loop is called; anything else passes."""
    # Jinja hands out `str.format` in a wrapper of its own.
    owner = getattr(getattr(method, "__wrapped__", method), "__self__", None)
    budget = current_budget()
    if isinstance(owner, str):
        _check_text_method(budget, owner, method.__name__, args)
    elif args and isinstance(owner, (list, tuple, dict, LoopContext)):
        budget.measure(args)  # `count`, `index` and `changed` compare


def check_test(args: Sequence[Any]) -> None:
    """Before an ``is`` test that compares."""
    if any(isinstance(arg, (list, tuple, dict)) for arg in args):
        current_budget().measure(args)


def _check_text_method(budget: Budget, text: str, name: str, args: Sequence[Any]) -> None:
    if name in _PADDING:
        _check_padding(args)
    elif name in _SPLITTING:
        separator = args[0] if name != "splitlines" and args else None
        pieces = text.count(separator) if isinstance(separator, str) and separator else len(text) // 2
        budget.size(pieces * _ITEM_CHARACTERS)
    elif name == "join":
        _check_join(budget, text, args[0] if args else ())
    elif name == "replace" and len(args) >= 2:
        _check_replace(budget, text, args[0], args[1])
    elif name in {"format", "format_map"}:
        _check_braces(budget, text, args)


def check_filter(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Before a filter runs on ``args[0]``."""
    budget = current_budget()
    value = args[0]
    given = [*args[1:], *kwargs.values()]
    if name in _PRINTING:
        budget.measure(list(args))
    if name == "join":
        _check_join(budget, given[0] if given else "", value)
    elif name == "replace" and len(given) >= 2:
        budget.measure(value)
        _check_replace(budget, str(value), *given[:2])
    elif name == "format":
        _check_percent(budget, str(value), tuple(given))
    elif name in {"center", "round"}:
        _check_padding(given)
    elif name == "indent":
        text, width = str(value), given[0] if given else 4
        budget.size(len(text) + (text.count("\n") + 1) * (len(width) if isinstance(width, str) else int(width)))
    elif name == "sum":
        if any(isinstance(start, (str, list, tuple)) for start in (*args[2:], kwargs.get("start"))):
            raise SecurityError("sum adds numbers only")
    elif hasattr(value, "__len__"):
        budget.size(len(value) * (_ITEM_CHARACTERS if name in _SPLITTING_FILTERS else 1))


def _check_sum(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, str) and isinstance(right, str):
        budget.size(len(left) + len(right))
    elif isinstance(left, list) and isinstance(right, list):
        budget.size((len(left) + len(right)) * _ITEM_CHARACTERS)
    elif isinstance(left, tuple):
        # Tuples may be keys, and hashing them visits shared parts each time.
        raise SecurityError("the template adds tuples; use lists")


def _check_product(budget: Budget, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
            raise SecurityError("the template makes a number of more than 4096 bits")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(value, (str, list, tuple)) and isinstance(times, int):
            budget.size(budget.measure(value) * max(times, 0))


def _check_join(budget: Budget, separator: Any, items: Any) -> None:
    if isinstance(items, (list, tuple, dict, str)):
        budget.size(budget.measure(items) + len(items) * len(str(separator)))


def _check_replace(budget: Budget, text: str, old: Any, new: Any) -> None:
    if isinstance(old, str) and isinstance(new, str):
        budget.size(len(text) + text.count(old) * len(new))


def _check_percent(budget: Budget, text: str, arguments: Any) -> None:
    if WIDE_PERCENT.search(text):
        raise _wide()
    _check_placeholders(budget, text, text.count("%"), arguments)


def _check_braces(budget: Budget, text: str, arguments: Any) -> None:
    if _WIDE_BRACES.search(text.replace("{{", "").replace("}}", "")):
        raise _wide()
    _check_placeholders(budget, text, text.count("{"), arguments)


def _check_placeholders(budget: Budget, text: str, places: int, arguments: Any) -> None:
    # Each placeholder may print every argument.
    budget.size(len(text) + places * budget.measure(arguments))


def _wide() -> SecurityError:
    return SecurityError("the template formats with a very large or computed width")


def _check_padding(arguments: Iterable[Any]) -> None:
    for width in arguments:
        if isinstance(width, int) and width > _MAX_PADDING_CHARACTERS:
            raise SecurityError(f"the template pads to more than {_MAX_PADDING_CHARACTERS} characters")
