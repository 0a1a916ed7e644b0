"""Every command of a manifest parses: the project's own manifests always, a directory of published ones where given."""

from __future__ import annotations

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import click
import pytest

from dynamo.config import settings_from_flags, settings_options
from dynamo.config.foreign_flags import without_foreign_flags
from dynamo.errors import ConfigError
from dynamo.frontend.__main__ import main as frontend
from dynamo.frontend.foreign_flags import FOREIGN_FLAGS
from dynamo.frontend.settings import FrontendSettings
from dynamo.mocker.command_line import worker_arguments
from dynamo.router.settings import RouterSettings
from dynamo.runtime.settings import RuntimeSettings
from dynamo.vllm.args import engine_arguments, requested_mode, split_flags
from dynamo.worker.settings import WorkerSettings
from tests.manifests.commands import Command, commands

#: vLLM imports torch, which warns about itself.
pytestmark = pytest.mark.filterwarnings("default::DeprecationWarning")

DATA = Path(__file__).parent / "data"
#: Flags of vLLM's AsyncEngineArgs at the supported version; `test_the_list_of_flags` compares them with vLLM.
VLLM_FLAGS = set(json.loads((DATA / "vllm_flags.json").read_text()))
HAS_VLLM = importlib.util.find_spec("vllm") is not None
PUBLISHED = os.environ.get("DYNAMO_TEST_MANIFESTS", "")

OWN = [each for path in sorted(DATA.glob("*.yaml")) for each in commands(path)]
OTHERS = [each for path in sorted(Path(PUBLISHED).rglob("*.yaml")) for each in commands(path)] if PUBLISHED else []


@click.command(context_settings={"ignore_unknown_options": True})
@settings_options(WorkerSettings, RuntimeSettings)
@click.argument("engine_args", nargs=-1, type=click.UNPROCESSED)
def worker(**_flags: Any) -> None:
    """Parsed as the worker host does, never run."""


def worker_flags(arguments: list[str]) -> tuple[WorkerSettings, list[str]]:
    # click empties the list that it is given
    parsed = worker.make_context("worker", list(arguments)).params
    rest = list(parsed.pop("engine_args"))
    settings_from_flags(RuntimeSettings, parsed)
    return settings_from_flags(WorkerSettings, parsed), rest


def parse_vllm(arguments: list[str]) -> None:
    settings, rest = worker_flags(arguments)
    ours, engine = split_flags(rest)
    requested_mode(ours, settings.mode)
    unknown = [flag for flag in engine if flag.startswith("-") and flag.partition("=")[0] not in VLLM_FLAGS]
    assert not unknown
    if HAS_VLLM:
        assert len(engine_arguments(engine)) == sum(flag.startswith("-") for flag in engine)


def parse_frontend(arguments: list[str]) -> None:
    parsed = frontend.make_context("frontend", list(without_foreign_flags(arguments, FOREIGN_FLAGS))).params
    for settings in (FrontendSettings, RouterSettings, RuntimeSettings):
        settings_from_flags(settings, parsed)


def parse_mocker(arguments: list[str]) -> None:
    worker_flags(worker_arguments(arguments))


PARSERS = {"dynamo.vllm": parse_vllm, "dynamo.frontend": parse_frontend, "dynamo.mocker": parse_mocker}


def parse(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in command.environment.items():
        monkeypatch.setenv(name, value)
    try:
        PARSERS[command.module](command.arguments)
    except (click.ClickException, ConfigError) as error:
        pytest.fail(f"{command.origin}: {' '.join(command.arguments)}: {error}")


def name_of(command: Command) -> str:
    return f"{command.origin} {command.module}"


def ours(found: list[Command]) -> list[Command]:
    return [command for command in found if command.module in PARSERS]


@pytest.mark.parametrize("command", ours(OWN), ids=name_of)
def test_own_manifests(command, monkeypatch):
    parse(command, monkeypatch)


@pytest.mark.skipif(not PUBLISHED, reason="DYNAMO_TEST_MANIFESTS names no directory of manifests")
def test_published_manifests(monkeypatch):
    found = ours(OTHERS)
    assert {command.module for command in found} >= {"dynamo.vllm"}
    for command in found:
        with monkeypatch.context() as patch:
            parse(command, patch)


def test_what_is_extracted():
    found = {(command.origin, command.module): command for command in OWN}
    assert [(origin.partition(" ")[0], module) for origin, module in found] == [
        ("aggregated.yaml", "dynamo.frontend"),
        ("aggregated.yaml", "dynamo.vllm"),
        ("args_only.yaml", "dynamo.vllm"),
        ("args_only.yaml", "dynamo.mocker"),
        ("args_only.yaml", "dynamo.vllm"),
        ("shell.yaml", "dynamo.vllm"),
        ("shell.yaml", "dynamo.vllm"),
    ]
    prefill, decode = OWN[-2:]
    assert prefill.arguments == [
        *(
            "--model",
            "example/tiny",
            "--served-model-name",
            "example/tiny",
            "--is-prefill-worker",
            "--block-size",
            "64",
        ),
        *("--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'),
    ]
    assert decode.arguments == ["--model", "example/tiny", "--is-decode-worker", "--no-enable-prefix-caching"]
    assert OWN[0].environment == {"DYN_LOGGING_JSONL": "true"}


def test_flags_without_a_meaning_warn_by_name(caplog):
    parse_vllm(["--model", "example/tiny", "--port", "9000"])
    assert "--port has no meaning here" in caplog.text


@pytest.mark.parametrize("flag", ["--tensor-paralel-size=2", "--speculate"])
def test_a_flag_that_nobody_knows_is_found(flag):
    with pytest.raises((AssertionError, ConfigError)):
        parse_vllm(["--model", "example/tiny", flag])


@pytest.mark.vllm
@pytest.mark.skipif(not HAS_VLLM, reason='vLLM is not installed; nox -s "engine(vllm)" has it')
def test_the_list_of_flags():
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = AsyncEngineArgs.add_cli_args(FlexibleArgumentParser(add_help=False))
    assert {flag for action in parser._actions for flag in action.option_strings} == VLLM_FLAGS
