"""What a chat template expects of its messages, read from its syntax tree once, at load."""

from __future__ import annotations

from typing import NamedTuple

from jinja2 import nodes

__all__ = ["TemplateNeeds", "template_needs"]


class TemplateNeeds(NamedTuple):
    """The forms of a message that differ between templates."""

    content_parts: bool = False
    """It loops over ``message.content``: content goes in as a list of parts."""
    tests_strings: bool = False
    """It asks ``is string`` somewhere: strings may stay strings."""
    tests_none: bool = False
    """It asks whether content ``is none``: null content stays null."""
    arguments_text: bool = False
    """It adds a tool call's arguments to text: they stay a JSON string."""
    developer_role: bool = False
    """It knows the ``developer`` role."""


def template_needs(tree: nodes.Template) -> TemplateNeeds:
    """Read an unchanged syntax tree."""
    aliases = _content_names(tree)
    joins = [part for node in tree.find_all((nodes.Add, nodes.Concat)) for part in _operands(node)]
    return TemplateNeeds(
        content_parts=any(_is_content(loop.iter, aliases) for loop in tree.find_all(nodes.For)),
        tests_strings=any(test.name == "string" for test in tree.find_all(nodes.Test)),
        tests_none=any(test.name == "none" and _is_content(test.node, aliases) for test in tree.find_all(nodes.Test)),
        arguments_text=any(_attribute(part) == "arguments" for part in joins),
        developer_role=any(const.value == "developer" for const in tree.find_all(nodes.Const)),
    )


def _content_names(tree: nodes.Template) -> set[str]:
    """Variables and macro parameters that hold a message's content."""
    names = {"content"}
    for assign in tree.find_all(nodes.Assign):
        if isinstance(assign.target, nodes.Name) and _is_content(assign.node, names):
            names.add(assign.target.name)
    macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
    for call in tree.find_all(nodes.Call):
        macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
        if macro is not None:
            pairs = zip(macro.args, call.args, strict=False)
            names.update(parameter.name for parameter, argument in pairs if _is_content(argument, names))
    return names


def _is_content(node: nodes.Node | None, aliases: set[str]) -> bool:
    while isinstance(node, (nodes.Filter, nodes.Test)) and node.node is not None:
        node = node.node
    if isinstance(node, nodes.CondExpr):
        return _is_content(node.expr1, aliases) or _is_content(node.expr2, aliases)
    if isinstance(node, nodes.Name):
        return node.name in aliases
    return _attribute(node) == "content"


def _attribute(node: nodes.Node | None) -> str | None:
    """The last name of ``a.name``, ``a['name']`` or ``a.get('name')``."""
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return str(node.arg.value)
    if isinstance(node, nodes.Call) and _attribute(node.node) == "get" and node.args:
        first = node.args[0]
        return str(first.value) if isinstance(first, nodes.Const) else None
    return None


def _operands(node: nodes.Node) -> list[nodes.Node]:
    if isinstance(node, nodes.Concat):
        return list(node.nodes)
    return [node.left, node.right] if isinstance(node, nodes.Add) else []
