"""Finds names in an engine's source by ast: through re-exports, base classes and annotations; imports nothing.

Used by `check`. Where the source does not say (a value without annotation, a base class of another project), the
answer is `UNKNOWN`, which is neither there nor missing.
"""

from __future__ import annotations

import ast
import functools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from dynamo.errors import ConfigError

__all__ = ["UNKNOWN", "EngineSource", "Missing", "Node", "Parameters", "Thing"]

_Definition: TypeAlias = "ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef | ast.expr"
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Base classes that give no attributes that a contract could name.
_PLAIN_BASES = {"object", "ABC", "Protocol", "Generic", "Struct", "NamedTuple", "TypedDict", "Enum", "IntEnum", "str"}
_MAX_HOPS = 20


class Node(NamedTuple):
    """Something in the source, and the module whose names it uses."""

    module: str
    definition: _Definition
    """A class or function, or the expression of an annotation or an assigned value."""
    instance: bool = False
    """Whether an instance of the class is meant; of an expression: a value of that type."""


class Unknown:
    """The source does not say."""


class Missing(NamedTuple):
    """The source says that there is no such thing."""

    reason: str


UNKNOWN: Final = Unknown()
Thing: TypeAlias = "Node | Unknown | Missing"


class Parameters(NamedTuple):
    """What a function or class can be called with."""

    names: frozenset[str]
    positional: int
    any_keyword: bool
    any_positional: bool


class EngineSource:
    """The modules of one engine, in a wheel or in a directory of installed packages.

    Raises:
        ConfigError: the engine is not there.
    """

    def __init__(self, place: Path, engine: str) -> None:
        self.engine = engine
        self._root: Path | zipfile.Path = zipfile.Path(place) if zipfile.is_zipfile(place) else place
        if not (self._root / engine / "__init__.py").is_file():
            raise ConfigError(f"{place} has no package {engine!r}", hint="name a wheel, or a site-packages directory")
        self._trees: dict[str, ast.Module | None] = {}
        self._tables: dict[str, dict[str, ast.AST]] = {}
        self._members: dict[int, tuple[dict[str, Node], bool]] = {}

    def mentions(self, words: list[str]) -> set[str]:
        """Which of `words` occur in the modules at the top of the engine; environment variables are defined there."""
        texts = [path.read_text("utf-8") for path in (self._root / self.engine).iterdir() if path.name.endswith(".py")]
        return {word for word in words if any(word in text for text in texts)}

    def symbol(self, module: str, name: str, hops: int = 0) -> Thing:
        """What `name` is in `module`."""
        if module.partition(".")[0] != self.engine or hops > _MAX_HOPS:
            return UNKNOWN
        if self._tree(module) is None:
            return Missing(f"there is no module {module}")
        found = self._table(module).get(name)
        if isinstance(found, ast.ImportFrom):
            original = next(alias.name for alias in found.names if (alias.asname or alias.name) == name)
            source = self._absolute(module, found)
            if self._tree(f"{source}.{original}") is not None:
                return UNKNOWN
            return self.symbol(source, original, hops + 1)
        if isinstance(found, ast.Import):
            return UNKNOWN
        if isinstance(found, (ast.ClassDef, *_FUNCTIONS, ast.expr)):
            return Node(module, found)
        lazy = self._lazy(module, name)
        if lazy is not None:
            return self.symbol(*lazy, hops + 1)
        return Missing(f"{module} has no {name}")

    def attribute(self, thing: Node, name: str) -> Thing:
        """The attribute of a class, or of an instance."""
        owner = self._class_of(thing)
        if not isinstance(owner, Node):
            return owner
        assert isinstance(owner.definition, ast.ClassDef)
        members, complete = self.members(owner)
        found = members.get(name)
        if found is None:
            missing = Missing(f"{owner.definition.name} of {owner.module} has no {name}")
            return missing if complete and not name.startswith("__") else UNKNOWN
        if isinstance(found.definition, _FUNCTIONS) and _is_property(found.definition):
            return Node(found.module, found.definition.returns or ast.Constant(None), instance=True)
        return found

    def called(self, thing: Node) -> Thing:
        """What a call gives."""
        if isinstance(thing.definition, ast.ClassDef):
            return UNKNOWN if thing.instance else thing._replace(instance=True)
        if isinstance(thing.definition, _FUNCTIONS):
            return self._annotated(thing.module, thing.definition.returns)
        return UNKNOWN if thing.instance else thing._replace(instance=True)

    def element(self, thing: Node) -> Thing:
        """What a collection or iterator of this type holds."""
        node = _without_none(thing.definition)
        if not thing.instance or not isinstance(node, ast.Subscript):
            return UNKNOWN
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        name = ast.unparse(node.value).rpartition(".")[2]
        mapping = name in ("dict", "Mapping", "MutableMapping", "defaultdict")
        return self._annotated(thing.module, parts[-1] if mapping else parts[0])

    def parameters(self, thing: Node) -> Parameters | None:
        """What `thing` can be called with; None where the source does not say."""
        definition = thing.definition
        if isinstance(definition, _FUNCTIONS):
            return _signature(definition)
        if not isinstance(definition, ast.ClassDef) or thing.instance:
            return None
        members, complete = self.members(thing)
        constructor = members.get("__init__") or members.get("__new__")
        if constructor is not None and isinstance(constructor.definition, _FUNCTIONS):
            return _signature(constructor.definition)
        fields = [
            name for name, node in members.items() if not isinstance(node.definition, (ast.ClassDef, *_FUNCTIONS))
        ]
        return Parameters(frozenset(fields), len(fields), not complete, not complete) if fields else None

    def members(self, owner: Node) -> tuple[dict[str, Node], bool]:
        """Methods and fields, inherited ones included, and whether all base classes could be read."""
        assert isinstance(owner.definition, ast.ClassDef)
        known = self._members.get(id(owner.definition))
        if known is not None:
            return known
        found: dict[str, Node] = {}
        complete = True
        self._members[id(owner.definition)] = (found, True)
        for base in owner.definition.bases:
            plain = base.value if isinstance(base, ast.Subscript) else base
            thing = self._named(owner.module, plain)
            if isinstance(thing, Node) and isinstance(thing.definition, ast.ClassDef):
                inherited, whole = self.members(thing)
                found |= inherited
                complete = complete and whole
            elif ast.unparse(plain).rpartition(".")[2] not in _PLAIN_BASES:
                complete = False
        for statement in owner.definition.body:
            found |= dict(_members_of(owner.module, statement))
        self._members[id(owner.definition)] = (found, complete)
        return found, complete

    def _class_of(self, thing: Node) -> Thing:
        if isinstance(thing.definition, ast.ClassDef):
            return thing
        if thing.instance and isinstance(thing.definition, ast.expr):
            resolved = self._annotated(thing.module, thing.definition)
            if isinstance(resolved, Node) and isinstance(resolved.definition, ast.ClassDef):
                return resolved
        return UNKNOWN

    def _annotated(self, module: str, annotation: ast.expr | None) -> Thing:
        """A value of the type that an annotation names."""
        node = _without_none(annotation)
        if node is None:
            return UNKNOWN
        if isinstance(node, ast.Subscript):
            outer = ast.unparse(node.value).rpartition(".")[2]
            if outer in ("Optional", "Annotated", "Final", "ClassVar", "SkipValidation", "InitVar"):
                inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
                return self._annotated(module, inner)
            return Node(module, node, instance=True)
        thing = self._named(module, node)
        if not isinstance(thing, Node) or thing.definition is node:
            return UNKNOWN
        if isinstance(thing.definition, ast.expr):
            return self._annotated(thing.module, thing.definition)
        return thing._replace(instance=True) if isinstance(thing.definition, ast.ClassDef) else UNKNOWN

    def _named(self, module: str, node: ast.AST) -> Thing:
        return self.symbol(module, node.id) if isinstance(node, ast.Name) else UNKNOWN

    def _tree(self, module: str) -> ast.Module | None:
        if module not in self._trees:
            *parents, last = module.split(".")
            files = [self._root.joinpath(*parents, *rest) for rest in ([f"{last}.py"], [last, "__init__.py"])]
            file = next((file for file in files if file.is_file()), None)
            self._trees[module] = ast.parse(file.read_text("utf-8")) if file is not None else None
        return self._trees[module]

    def _table(self, module: str) -> dict[str, ast.AST]:
        """What the module's own statements bind, those within `if` and `try` too."""
        if module not in self._tables:
            tree = self._tree(module)
            self._tables[module] = dict(_bindings(tree.body)) if tree is not None else {}
        return self._tables[module]

    def _absolute(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = self._root.joinpath(*module.split("."), "__init__.py").is_file()
        parts = module.split(".")
        parent = parts[: len(parts) - node.level + is_package]
        return ".".join([*parent, node.module] if node.module else parent)

    def _lazy(self, module: str, name: str) -> tuple[str, str] | None:
        """A package with `__getattr__` keeps a table: name -> ``module:name``."""
        tree = self._tree(module)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and key.value == name and isinstance(value, ast.Constant):
                        target, colon, attribute = str(value.value).partition(":")
                        if colon:
                            return (f"{module}{target}" if target.startswith(".") else target), attribute
        return None


def _bindings(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    for node in statements:
        if isinstance(node, (ast.ClassDef, *_FUNCTIONS)):
            yield node.name, node
        elif isinstance(node, (ast.ImportFrom, ast.Import)):
            for alias in node.names:
                yield alias.asname or alias.name, node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value or node.annotation
        elif isinstance(node, (ast.If, ast.Try)):
            for handler in getattr(node, "handlers", []):
                yield from _bindings(handler.body)
            # What is tried first counts.
            yield from _bindings(node.orelse)
            yield from _bindings(node.body)


def _members_of(module: str, node: ast.stmt) -> Iterator[tuple[str, Node]]:
    if isinstance(node, _FUNCTIONS):
        yield node.name, Node(module, node)
        parameters = {each.arg: each.annotation for each in node.args.args + node.args.kwonlyargs}
        for inner in ast.walk(node):
            yield from _self_attribute(module, inner, parameters)
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id, Node(module, node.annotation, instance=True)
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, Node(module, node.value)
    elif isinstance(node, ast.ClassDef):
        yield node.name, Node(module, node)
    elif isinstance(node, ast.If):
        for inner in node.body + node.orelse:
            yield from _members_of(module, inner)


def _self_attribute(module: str, node: ast.AST, parameters: dict[str, ast.expr | None]) -> Iterator[tuple[str, Node]]:
    if not isinstance(node, (ast.Assign, ast.AnnAssign)):
        return
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            kind = node.annotation if isinstance(node, ast.AnnAssign) else None
            if kind is None and isinstance(node.value, ast.Name):
                kind = parameters.get(node.value.id)
            elif kind is None and isinstance(node.value, ast.Call):
                kind = node.value.func
            yield target.attr, Node(module, kind or ast.Constant(None), instance=True)


def _without_none(annotation: ast.AST | None) -> ast.expr | None:
    """The first type of a union that is not None."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return _without_none(_parsed(annotation.value))
    if isinstance(annotation, ast.BinOp):
        return _without_none(annotation.left) or _without_none(annotation.right)
    if isinstance(annotation, ast.Constant) or not isinstance(annotation, ast.expr):
        return None
    return annotation


@functools.cache
def _parsed(annotation: str) -> ast.expr | None:
    try:
        return ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return None


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Parameters:
    arguments = function.args
    by_position = [each.arg for each in arguments.posonlyargs + arguments.args]
    if by_position and by_position[0] in ("self", "cls"):
        del by_position[0]
    names = frozenset(by_position) | {each.arg for each in arguments.kwonlyargs}
    return Parameters(names, len(by_position), arguments.kwarg is not None, arguments.vararg is not None)


def _is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return any(ast.unparse(mark).rpartition(".")[2].endswith("property") for mark in function.decorator_list)
