"""A plugin and an engine, both as source only: what is used is found, what is missing is named."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from dynamo.errors import ConfigError
from dynamo.testing.api_contract import Contract, Use, adapter_uses, check_contract, load_contract, write_contract
from dynamo.testing.command import conformance

ENGINE = {
    "__init__.py": "LAZY = {'Engine': '.core.engine:Engine'}\nraise ImportError('nobody imports me')\n",
    "envs.py": "KNOWN = ['MOTOR_THREADS']\n",
    "core/__init__.py": "from .engine import Engine as Engine\n",
    "core/engine.py": """
from __future__ import annotations
import os
from foreign import Something
from motor.outputs import Output
from motor.outputs import Config

class Base:
    def stop(self, timeout: float | None = None) -> None: ...

class Engine(Base):
    def __init__(self, config: Config, *, log: bool = False):
        self.config = config
        self.name: str = 'x'
    @classmethod
    def start(cls, config: Config, log: bool = False) -> Engine: ...
    def run(self, prompt, *, seed=None) -> AsyncIterator[Output]: ...
    @property
    def outputs(self) -> "list[Output]": ...

class Open(Something):
    pass

if os.name == 'posix':
    def open_engine(**options) -> Engine | None: ...
else:
    open_engine = None
""",
    "outputs.py": """
import dataclasses
from typing import Optional
@dataclasses.dataclass
class Part:
    ids: list[int]
@dataclasses.dataclass
class Output:
    parts: dict[str, Part]
    first: Optional[Part] = None
@dataclasses.dataclass
class Config:
    size: int
    kind: str = ''
""",
}
ADAPTER = """
from __future__ import annotations
import dataclasses, os
from collections.abc import Callable
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    from motor.core import Engine
    from motor.outputs import Output

@dataclasses.dataclass
class Facts:
    engine: Engine

class Adapter:
    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._log = os.environ.get("MOTOR_THREADS")

    def start(self) -> None:
        from motor import Engine
        from motor.outputs import Config
        self._engine = Engine.start(Config(8, kind="a"), log=True)

    def _running(self) -> tuple[Engine, Facts]: ...

    async def generate(self):
        engine, facts = self._running()
        async for output in engine.run("p", seed=1):
            yield self._ids(output)
        print(facts.engine.config.size, [each.first for each in engine.outputs])

    def _ids(self, output: Output) -> list[int]:
        return [part.ids for part in output.parts.values()] if output.parts else output.parts["x"].ids

    async def stop(self) -> None:
        if (engine := self._engine) is not None:
            engine.stop(timeout=1)
"""


def write_tree(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    write_tree(tmp_path / "site" / "motor", ENGINE)
    return tmp_path / "site"


@pytest.fixture
def adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path / "plugins"))
    return write_tree(tmp_path / "plugins" / "motor_adapter", {"__init__.py": "", "adapter.py": ADAPTER})


def failures(engine: Path, *uses: Use) -> dict[str, str]:
    report = check_contract(Contract("motor", "1", [], list(uses)), engine, "adapter")
    return {result.id: result.seen for result in report.results if result.status == "failed"}


def test_what_an_adapter_uses_is_found(adapter):
    found = adapter_uses(adapter, "motor")
    uses = {use.path: use for use in found.uses}
    assert found.environment == ["MOTOR_THREADS"]
    assert uses["motor:Engine.start"] == Use("motor:Engine.start", ("log",), 1)
    assert uses["motor.outputs:Config"] == Use("motor.outputs:Config", ("kind",), 1)
    assert uses["motor.core:Engine().run"] == Use("motor.core:Engine().run", ("seed",), 1)
    assert uses["motor.core:Engine().stop"].keywords == ("timeout",)
    assert {
        "motor.core:Engine().config.size",
        "motor.core:Engine().outputs[].first",
        "motor.outputs:Output().parts[].ids",
    } <= uses.keys()


def test_an_engine_that_has_it_all_passes_without_being_imported(adapter, engine):
    found = adapter_uses(adapter, "motor")
    report = check_contract(Contract("motor", "1", found.environment, found.uses), engine, "adapter")
    assert report.passed, report.to_json().decode()
    assert len(report.named("ok")) >= 12


@pytest.mark.parametrize(
    ("file", "old", "new", "path", "seen"),
    [
        ("core/engine.py", "def stop", "def halt", "motor.core:Engine().stop(timeout=)", "has no stop"),
        ("core/engine.py", "timeout: float", "limit: float", "motor.core:Engine().stop(timeout=)", "takes no timeout"),
        ("core/engine.py", "seed=None", "random=None", "motor.core:Engine().run(seed=)", "takes no seed"),
        ("core/engine.py", "def run(self, prompt, *", "def run(self, *", "motor.core:Engine().run(seed=)", "takes 0"),
        (
            "outputs.py",
            "    ids:",
            "    token_ids:",
            "motor.outputs:Output().parts[].ids",
            "Part of motor.outputs has no ids",
        ),
        (
            "outputs.py",
            "    size:",
            "    length:",
            "motor.core:Engine().config.size",
            "Config of motor.outputs has no size",
        ),
        ("outputs.py", "    kind:", "    sort:", "motor.outputs:Config(kind=)", "takes no kind"),
        ("outputs.py", "class Output:", "class Result:", "motor.outputs:Output", "motor.outputs has no Output"),
        ("__init__.py", "'Engine'", "'Motor'", "motor:Engine", "motor has no Engine"),
        ("envs.py", "MOTOR_THREADS", "MOTOR_CORES", "MOTOR_THREADS", "no module at the top"),
    ],
)
def test_what_changed_in_the_engine_is_named(adapter, engine, file, old, new, path, seen):
    text = ENGINE[file]
    assert old in text
    write_tree(engine / "motor", {file: text.replace(old, new)})
    found = adapter_uses(adapter, "motor")
    report = check_contract(Contract("motor", "1", found.environment, found.uses), engine, "adapter")
    failed = {result.id: result.seen for result in report.results if result.status == "failed"}
    assert path in failed
    assert seen in failed[path]


def test_unknown_is_neither_there_nor_missing(engine):
    uses = [Use("motor.core.engine:Open().anything"), Use("motor.core:Engine().name.upper"), Use("other:Thing")]
    report = check_contract(Contract("motor", "1", [], uses), engine, "adapter")
    assert [result.status for result in report.results] == ["skipped"] * 3


def test_optional_definitions_and_any_keyword(engine):
    use = Use("motor.core.engine:open_engine", ("anything",))
    assert failures(engine, use, Use("motor.core.engine:open_engine().config.kind")) == {}
    assert failures(engine, Use("motor.gone:Engine")) == {"motor.gone:Engine": "there is no module motor.gone"}


def test_a_wheel_is_read_as_it_is(adapter, engine, tmp_path):
    wheel = tmp_path / "motor-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for file in engine.rglob("*.py"):
            archive.write(file, str(file.relative_to(engine)))
    found = adapter_uses(adapter, "motor")
    assert check_contract(Contract("motor", "1", [], found.uses), wheel, "adapter").passed


def test_by_hand_survives_a_new_generation(adapter, engine):
    run = CliRunner().invoke
    first = run(conformance, ["api", "motor_adapter", "--write", "--engine", "motor", "--engine-version", "1.0"])
    assert first.exit_code == 0, first.output
    file = adapter / "api_contract.json"
    contract = load_contract(file)
    contract.by_hand.append(Use("motor.outputs:Config", ("weight",)))
    write_contract(file, contract)
    again = run(conformance, ["api", "motor_adapter", "--write", "--wheel", str(engine)])
    assert again.exit_code == 1
    assert "motor.outputs:Config(weight=)" in again.output
    assert "it takes no weight" in again.output
    assert load_contract(file) == contract


def test_wrong_arguments(adapter, engine, tmp_path):
    run = CliRunner().invoke
    assert run(conformance, ["api", "motor_adapter"]).exit_code == 2
    assert "there is no contract" in str(run(conformance, ["api", "motor_adapter", "--write"]).exception)
    assert "no package 'motor_plugin'" in str(run(conformance, ["api", "motor_plugin", "--write"]).exception)
    with pytest.raises(ConfigError, match="no package 'motor'"):
        check_contract(Contract("motor", "1"), tmp_path, "adapter")
    (tmp_path / "bad.json").write_text("[]")
    with pytest.raises(ConfigError, match="no contract can be read"):
        load_contract(tmp_path / "bad.json")
