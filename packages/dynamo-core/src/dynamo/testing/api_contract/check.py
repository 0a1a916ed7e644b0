"""Compares a contract with an engine's source; one result per use."""

from __future__ import annotations

import re
from pathlib import Path

from dynamo.testing.api_contract.contract import Contract, Use
from dynamo.testing.api_contract.engine_source import EngineSource, Missing, Node, Thing
from dynamo.testing.report import CheckResult, Report

__all__ = ["check_contract"]

_STEP = re.compile(r"\.(\w+)|\(\)|\[\]")
_FIX = "change the adapter, then make the contract anew: `dynamo conformance api MODULE --write`"


def check_contract(contract: Contract, place: Path, subject: str) -> Report:
    """Whether everything in `contract` is in the engine at `place` (a wheel or a directory of packages).

    Results are ``skipped`` where the engine's source does not say, as for values without annotation.

    Raises:
        ConfigError: the engine is not there.
    """
    source = EngineSource(place, contract.engine)
    results = [_check(source, use) for use in [*contract.uses, *contract.by_hand]]
    known = source.mentions(contract.environment)
    results += [_variable(name, found=name in known) for name in contract.environment]
    return Report(subject, results)


def _variable(name: str, *, found: bool) -> CheckResult:
    seen = "" if found else "no module at the top of the engine mentions it"
    return CheckResult(name, "the engine reads this variable", "ok" if found else "failed", seen, "" if found else _FIX)


def _check(source: EngineSource, use: Use) -> CheckResult:
    identifier = use.path + (f"({', '.join(f'{word}=' for word in use.keywords)})" if use.keywords else "")
    thing = _resolve(source, use.path)
    if isinstance(thing, Missing):
        return CheckResult(identifier, "the engine has it", "failed", thing.reason, _FIX)
    if not isinstance(thing, Node):
        return CheckResult(identifier, "the engine has it", "skipped", "its source does not say")
    wrong = _wrong_call(source, thing, use)
    if wrong:
        return CheckResult(identifier, "it can be called so", "failed", wrong, _FIX)
    return CheckResult(identifier, "the engine has it", "ok")


def _resolve(source: EngineSource, path: str) -> Thing:
    module, _, rest = path.partition(":")
    name = re.match(r"\w+", rest)
    assert name is not None, path
    thing = source.symbol(module, name[0])
    for step in _STEP.finditer(rest, name.end()):
        if not isinstance(thing, Node):
            return thing
        if step[1]:
            thing = source.attribute(thing, step[1])
        else:
            thing = source.called(thing) if step[0] == "()" else source.element(thing)
    return thing


def _wrong_call(source: EngineSource, thing: Node, use: Use) -> str:
    if not use.keywords and not use.positional:
        return ""
    parameters = source.parameters(thing)
    if parameters is None:
        return ""
    unknown = [word for word in use.keywords if word not in parameters.names and not parameters.any_keyword]
    if unknown:
        return f"it takes no {', '.join(unknown)}"
    if use.positional > parameters.positional and not parameters.any_positional:
        return f"it takes {parameters.positional} arguments by position, not {use.positional}"
    return ""
