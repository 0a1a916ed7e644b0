"""Every hook: validated at load, used by something built in, and documented with its exact signature."""

import inspect

import pytest

from dynamo.plugins import builtin
from dynamo.plugins.loading import Plugins
from tests.architecture.tree import ROOT
from tools.docs.hooks import Hook, hooks

HOOKS = hooks()


def test_every_hook_is_called_with_its_arguments():
    called = {name: sorted(arguments) for name, arguments in Plugins().hook_arguments("any").items()}
    assert called == {hook.name: sorted(inspect.signature(hook.function).parameters) for hook in HOOKS}


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_a_hook_has_a_built_in_user(hook: Hook):
    assert hasattr(builtin, hook.name)


@pytest.mark.parametrize("hook", HOOKS, ids=lambda hook: hook.name)
def test_a_hook_is_documented_with_its_exact_signature(hook: Hook):
    page = (ROOT / "docs/reference/hooks.md").read_text("utf-8")
    assert f"## {hook.name}\n" in page
    assert hook.signature in page
    assert inspect.getdoc(hook.function) is not None
