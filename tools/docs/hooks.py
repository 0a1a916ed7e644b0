"""docs/reference/hooks.md: every hook with its exact signature and built-in users, and every Protocol behind them."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from typing_extensions import is_protocol

import dynamo.hookspecs
import dynamo.protocols
from dynamo.hookspecs import PLUGIN_API_VERSION, PROJECT_NAME
from dynamo.plugins import builtin
from dynamo.plugins.loading import Plugins, PluginSource, load_plugins
from dynamo.plugins.registry import NamedRegistry
from tools.docs.markdown import GENERATED, docstring, table

__all__ = ["Hook", "hooks", "page"]


@dataclass(frozen=True)
class Hook:
    """One hook as its module defines it."""

    name: str
    module: ModuleType
    function: Callable[..., None]

    @property
    def signature(self) -> str:
        """The ``def`` line(s), as written."""
        return _header(self.function)


def hooks() -> list[Hook]:
    """All hooks, by module and in order of definition."""
    found = []
    for module in _modules(dynamo.hookspecs):
        for name, value in vars(module).items():
            if hasattr(value, f"{PROJECT_NAME}_spec"):
                found.append(Hook(name, module, value))
    return found


def page() -> str:
    """The page."""
    plugins = load_plugins([PluginSource("builtin", "dynamo-core", "", "", lambda: builtin)])
    major, minor = PLUGIN_API_VERSION
    intro = f"""# Hooks

{GENERATED}

A plugin is a module named by an entry point in the group `{PROJECT_NAME}`. Each hook is called once at start-up with
registries; it registers names and returns nothing. The work goes through the Protocols at the end of this page.
The version of this API is {major}.{minor}: a plugin that declares another major in `DYNAMO_PLUGIN_API` is refused.
An argument may be added to a hook, never renamed or removed; an implementation takes the arguments that it needs.

```
start of a process
  └─ every entry point of the group `{PROJECT_NAME}`, one by one: import the module, check DYNAMO_PLUGIN_API
       └─ call each hook that the module implements, with a registry per argument
            └─ registry.register(name, "package.module:attribute", stability=..., summary=...)
a name is chosen (--backend NAME, --router-mode NAME, ...)
  └─ import "package.module", take the attribute, call it: from here on only the Protocol is used
```
"""
    parts = [intro]
    parts += [_hook_section(hook, plugins) for hook in hooks()]
    parts.append(
        "# Protocols\n\nWhat the targets make. Any object with these methods will do; nothing is subclassed.\n"
    )
    parts += [_protocol_section(cls) for cls in _protocols()]
    return "\n".join(parts)


def _modules(package: ModuleType) -> Iterator[ModuleType]:
    for info in sorted(pkgutil.iter_modules(package.__path__), key=lambda info: info.name):
        yield importlib.import_module(f"{package.__name__}.{info.name}")


def _header(function: Callable[..., Any]) -> str:
    """The source of a function from ``def`` to the colon before its body."""
    source = textwrap.dedent(inspect.getsource(function))
    node = ast.parse(source).body[0]
    assert isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    lines = source.splitlines()[node.lineno - 1 : node.body[0].lineno]
    if node.body[0].lineno > node.lineno:
        lines = lines[: node.body[0].lineno - node.lineno]
    return "\n".join(lines).rstrip().removesuffix("...").rstrip().removesuffix(":")


def _hook_section(hook: Hook, plugins: Plugins) -> str:
    arguments = plugins.hook_arguments("dynamo-core")[hook.name]
    registered: list[tuple[str, ...]] = []
    for argument, owned in arguments.items():
        registry = getattr(owned, "registry", None)
        if isinstance(registry, NamedRegistry):
            registered += [
                (f"`{argument}`", f"`{entry.name}`", f"`{entry.target}`", entry.stability, entry.summary)
                for entry in registry
            ]
    if not registered:  # commands
        registered = [
            ("`group`", f"`{entry.name}`", f"`{entry.target}`", "", entry.summary)
            for entry in plugins.commands.values()
        ]
    heading = docstring(hook.module).splitlines()[0]
    return f"""## {hook.name}

{heading} Defined in `{hook.module.__name__}`.

```python
{hook.signature}: ...
```

{docstring(hook.function)}

Built in:

{table(["argument", "name", "target", "stability", "summary"], registered)}
"""


def _protocols() -> list[type]:
    return [
        value
        for module in _modules(dynamo.protocols)
        for value in vars(module).values()
        if isinstance(value, type) and value.__module__ == module.__name__ and is_protocol(value)
    ]


def _protocol_section(cls: type) -> str:
    members = []
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else inspect.unwrap(value) if callable(value) else None
        if not inspect.isfunction(function) or (name.startswith("_") and name != "__call__") or name == "__init__":
            continue
        prefix = "@property\n" if isinstance(value, property) else ""
        members.append(f"```python\n{prefix}{_header(function)}: ...\n```\n\n{docstring(function)}\n".rstrip() + "\n")
    return f"## {cls.__name__}\n\n`{cls.__module__}.{cls.__name__}`. {docstring(cls)}\n\n" + "\n".join(members)
