"""Reads a plugin's modules and finds what they use of their engine.

Names that are imported from the engine are followed: through annotations, assignments, attributes of the plugin's own
classes, what calls return, loops. What cannot be followed (values out of dictionaries, ``**arguments``) is not found;
the contract's `by_hand` is for that. Nothing is imported.
"""

from __future__ import annotations

import ast
import re
from collections import ChainMap, defaultdict
from pathlib import Path
from typing import NamedTuple, TypeAlias

from dynamo.testing.api_contract.contract import Use

__all__ = ["AdapterUses", "adapter_uses"]


class Own(NamedTuple):
    """An instance of a class of the plugin."""

    name: str


class Many(NamedTuple):
    """A collection or iterator."""

    element: Type


class Several(NamedTuple):
    """A tuple."""

    parts: tuple[Type, ...]


class Callable(NamedTuple):
    """A function or class of the plugin."""

    result: Type


#: A string is a path within the engine, see `Use`.
Type: TypeAlias = "str | Own | Many | Several | Callable | None"


class AdapterUses(NamedTuple):
    """What a plugin uses."""

    uses: list[Use]
    environment: list[str]


def adapter_uses(folder: Path, engine: str) -> AdapterUses:
    """What the modules in `folder` use of the package `engine`."""
    package = _Package(engine)
    modules = [ast.parse(path.read_text("utf-8"), str(path)) for path in sorted(folder.rglob("*.py"))]
    # Attributes that one module sets are read in others: the second reading knows them all, the third what follows.
    for _ in range(3):
        for module in modules:
            _Reader(package, ChainMap({})).block(module.body)
    return AdapterUses(package.uses(), sorted(package.environment))


class _Package:
    """What is known of the whole plugin."""

    def __init__(self, engine: str) -> None:
        self.engine = engine
        self.environment: set[str] = set()
        self.members: defaultdict[str, dict[str, Type]] = defaultdict(dict)
        self.names: dict[str, Type] = {}
        self._variable = re.compile(rf"{engine.upper()}_[A-Z0-9_]+\Z")
        self._calls: dict[str, tuple[set[str], int]] = {}
        self._touched: set[str] = set()

    def touch(self, path: str) -> str:
        self._touched.add(path)
        return path

    def call(self, path: str, keywords: set[str], positional: int) -> str:
        known, most = self._calls.get(path, (set(), 0))
        self._calls[path] = (known | keywords, max(most, positional))
        return f"{path}()"

    def constant(self, value: object) -> None:
        if isinstance(value, str) and self._variable.match(value):
            self.environment.add(value)

    def uses(self) -> list[Use]:
        plain = {Use(path) for path in self._touched if path not in self._calls}
        calls = {Use(path, tuple(sorted(words)), count) for path, (words, count) in self._calls.items()}
        return sorted(plain | calls)


class _Reader:
    """Reads statements; `names` has the types of what is in scope."""

    def __init__(self, package: _Package, names: ChainMap[str, Type], own_class: str = "") -> None:
        self._package = package
        self._names = names
        self._class = own_class

    def block(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ImportFrom):
            self._import(node)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._function(node)
        elif isinstance(node, ast.ClassDef):
            self._class_definition(node)
        elif isinstance(node, ast.Assign):
            value = self.infer(node.value)
            for target in node.targets:
                self._bind(target, value)
        elif isinstance(node, ast.AnnAssign):
            given = self.infer(node.value) if node.value else None
            self._bind(node.target, self.annotation(node.annotation) or given)
        elif isinstance(node, (ast.For, ast.AsyncFor)):
            self._bind(node.target, _element(self.infer(node.iter)))
            self.block(node.body + node.orelse)
        elif isinstance(node, (ast.With, ast.AsyncWith)):
            for item in node.items:
                value = self.infer(item.context_expr)
                if item.optional_vars is not None:
                    self._bind(item.optional_vars, value)
            self.block(node.body)
        else:
            self._children(node)

    def _import(self, node: ast.ImportFrom) -> None:
        module = node.module or ""
        for alias in node.names:
            if module.split(".")[0] == self._package.engine:
                self._names[alias.asname or alias.name] = self._package.touch(f"{module}:{alias.name}")
            elif alias.name in self._package.names:
                self._names[alias.asname or alias.name] = self._package.names[alias.name]

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        inner = self._names.new_child()
        parameters = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
        for parameter in parameters:
            inner[parameter.arg] = self.annotation(parameter.annotation) if parameter.annotation else None
        is_property = any(isinstance(mark, ast.Name) and mark.id.endswith("property") for mark in node.decorator_list)
        result = self.annotation(node.returns) if node.returns else None
        known: Type = result if is_property else Callable(result)
        if self._class:
            if parameters:
                inner[parameters[0].arg] = Own(self._class)
            self._package.members[self._class][node.name] = known
        else:
            self._names[node.name] = self._package.names[node.name] = known
        _Reader(self._package, inner).block(node.body)

    def _class_definition(self, node: ast.ClassDef) -> None:
        bases = [self.infer(base) for base in node.bases]
        for base in bases:
            if isinstance(base, str):
                for method in node.body:
                    if isinstance(method, (ast.FunctionDef, ast.AsyncFunctionDef)) and method.name[0] != "_":
                        self._package.touch(f"{base}.{method.name}")
        self._names[node.name] = self._package.names[node.name] = Callable(Own(node.name))
        for base in bases:
            if isinstance(base, Callable) and isinstance(base.result, Own):
                inherited = self._package.members[base.result.name]
                self._package.members[node.name] = {**inherited, **self._package.members[node.name]}
        reader = _Reader(self._package, self._names.new_child(), node.name)
        for statement in node.body:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                self._package.members[node.name][statement.target.id] = reader.annotation(statement.annotation)
        reader.block(node.body)

    def _bind(self, target: ast.expr, value: Type) -> None:
        if isinstance(target, ast.Name):
            if value is not None or target.id not in self._names:
                self._names[target.id] = value
        elif isinstance(target, ast.Attribute):
            owner = self.infer(target.value)
            if isinstance(owner, Own) and value is not None:
                # An annotation, which comes first, says more than what is assigned later.
                self._package.members[owner.name].setdefault(target.attr, value)
        elif isinstance(target, ast.Tuple):
            parts = value.parts if isinstance(value, Several) else (_element(value),) * len(target.elts)
            for part, inner in zip(target.elts, parts, strict=False):
                self._bind(part, inner)

    def infer(self, node: ast.expr) -> Type:
        """The type of an expression, noting what it uses."""
        if isinstance(node, ast.Name):
            return self._names.get(node.id) or self._package.names.get(node.id)
        if isinstance(node, ast.Attribute):
            return self._attribute(self.infer(node.value), node.attr)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Subscript):
            self.infer(node.slice)
            return _element(self.infer(node.value))
        if isinstance(node, (ast.Await, ast.Starred)):
            return self.infer(node.value)
        if isinstance(node, ast.NamedExpr):
            value = self.infer(node.value)
            self._bind(node.target, value)
            return value
        if isinstance(node, (ast.BoolOp, ast.IfExp)):
            values = node.values if isinstance(node, ast.BoolOp) else [node.body, node.orelse]
            if isinstance(node, ast.IfExp):
                self.infer(node.test)
            return next(iter([found for value in values if (found := self.infer(value)) is not None]), None)
        return self._literal(node)

    def _literal(self, node: ast.expr) -> Type:
        if isinstance(node, ast.Constant):
            self._package.constant(node.value)
            return None
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            for generator in node.generators:
                self._bind(generator.target, _element(self.infer(generator.iter)))
                for condition in generator.ifs:
                    self.infer(condition)
            if isinstance(node, ast.DictComp):
                self.infer(node.key)
                return Many(self.infer(node.value))
            return Many(self.infer(node.elt))
        if isinstance(node, ast.Tuple):
            return Several(tuple(self.infer(part) for part in node.elts))
        self._children(node)
        return None

    def _attribute(self, owner: Type, name: str) -> Type:
        if isinstance(owner, str):
            return self._package.touch(f"{owner}.{name}")
        return self._package.members[owner.name].get(name) if isinstance(owner, Own) else None

    def _call(self, node: ast.Call) -> Type:
        called = self.infer(node.func)
        arguments = [self.infer(argument) for argument in node.args]
        keywords = {keyword.arg for keyword in node.keywords if keyword.arg}
        for keyword in node.keywords:
            self.infer(keyword.value)
        if isinstance(called, str):
            exact = [argument for argument in node.args if not isinstance(argument, ast.Starred)]
            return self._package.call(called, keywords, len(exact))
        if isinstance(called, Callable):
            return called.result
        # aclosing(x), iter(x) and the like hand on what they are given.
        known = [argument for argument in arguments if argument is not None]
        return known[0] if isinstance(node.func, ast.Name) and len(node.args) == 1 and known else None

    def annotation(self, node: ast.expr | None) -> Type:
        """The type that an annotation names."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return self.annotation(ast.parse(node.value, mode="eval").body)
        if isinstance(node, ast.BinOp):
            return self.annotation(node.left) or self.annotation(node.right)
        if isinstance(node, ast.Subscript) and isinstance(node.value, (ast.Name, ast.Attribute)):
            return self._generic(node)
        named = self.infer(node) if isinstance(node, (ast.Name, ast.Attribute)) else None
        if isinstance(named, str):
            return named if named.endswith(("()", "[]")) else f"{named}()"
        return named.result if isinstance(named, Callable) else named

    def _generic(self, node: ast.Subscript) -> Type:
        name = node.value.id if isinstance(node.value, ast.Name) else ""
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        types = tuple(self.annotation(part) for part in parts)
        if name == "tuple":
            return Several(types)
        if name in ("Optional", "ClassVar", "Final", "Annotated", "type"):
            return types[0]
        if name == "Callable":
            return Callable(types[-1])
        return Many(types[-1] if name in ("dict", "Mapping", "MutableMapping") else types[0])

    def _children(self, node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                self._statement(child)
            elif isinstance(child, ast.expr):
                self.infer(child)
            else:
                self._children(child)


def _element(of: Type) -> Type:
    if isinstance(of, str):
        return f"{of}[]"
    if isinstance(of, Several):
        return next((part for part in of.parts if part is not None), None)
    return of.element if isinstance(of, Many) else None
