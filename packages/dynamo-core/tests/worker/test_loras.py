"""LoRA adapters of a worker: what may be loaded from where, under which names, and what is announced."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from dynamo.errors import ConfigError, DiscoveryError, InvalidRequest, ModelNotFound, Overloaded
from dynamo.worker.loras import LoraAdapters, LoraNameTaken
from dynamo.worker.settings import WorkerSettings

TIMEOUT = 10.0


class Host:
    """An engine's adapters: loads and unloads wait for `gate`, when there is one."""

    def __init__(self) -> None:
        self.paths: dict[str, str] = {}
        self.gate: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def _pass(self) -> None:
        self.entered.set()
        if self.gate is not None:
            await asyncio.wait_for(self.gate.wait(), TIMEOUT)

    async def load_lora(self, name, path) -> None:
        await self._pass()
        if Path(path, "adapter_model.safetensors").read_bytes() == b"bad":
            raise InvalidRequest("it does not fit")
        self.paths[name] = path

    async def unload_lora(self, name) -> None:
        await self._pass()
        del self.paths[name]

    def loras(self):
        return list(self.paths)


@pytest.fixture
def root(tmp_path) -> Path:
    path = tmp_path / "root"
    path.mkdir()
    return path


def adapter(directory: Path, weights: bytes = b"w") -> str:
    """Write files that look like an adapter; their URI."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(weights)
    return directory.as_uri()


class Worker:
    """A host, its adapters, and what was announced."""

    def __init__(self, root: Path, **settings) -> None:
        self.host = Host()
        self.announced: list[list[str]] = []
        self.adapters = LoraAdapters(self.host, WorkerSettings(lora_path=str(root), **settings), ["base", "alias"])
        self.adapters.publish_with(self._publish)

    async def _publish(self, names) -> None:
        self.announced.append(names)


async def test_adapters_come_and_go_and_are_announced(root) -> None:
    worker = Worker(root)
    await worker.adapters.load("b", adapter(root / "one"))
    await worker.adapters.load("org/a@1:x", adapter(root / "deep" / "two"))
    assert worker.host.paths == {"b": str(root / "one"), "org/a@1:x": str(root / "deep" / "two")}
    assert worker.announced == [["b"], ["b", "org/a@1:x"]]
    assert worker.adapters.holds("b")
    await worker.adapters.unload("b")
    assert worker.announced[-1] == worker.adapters.names() == ["org/a@1:x"]
    assert not worker.adapters.holds("b")
    await worker.adapters.load("b", adapter(root / "three"))  # the name is free again
    assert worker.host.paths["b"] == str(root / "three")


async def test_loading_the_same_again_changes_nothing_but_is_announced_again(root) -> None:
    """An operator tries until all is well: also after an outage of discovery that left it loaded and unknown."""
    worker = Worker(root)
    uri = adapter(root / "one")

    async def outage(_names) -> None:
        raise DiscoveryError("away")

    worker.adapters.publish_with(outage)
    with pytest.raises(DiscoveryError):
        await worker.adapters.load("a", uri)
    worker.adapters.publish_with(worker._publish)
    worker.host.gate = asyncio.Event()  # loading once more would wait for ever
    await worker.adapters.load("a", uri)
    assert worker.announced == [["a"]]
    (root / "link").symlink_to(root / "one")
    await worker.adapters.load("a", (root / "link").as_uri())
    with pytest.raises(LoraNameTaken, match="another LoRA named 'a'"):
        await worker.adapters.load("a", adapter(root / "two"))


async def test_an_adapter_leaves_discovery_before_the_engine(root) -> None:
    worker = Worker(root)
    await worker.adapters.load("a", adapter(root / "one"))
    worker.host.gate = asyncio.Event()
    worker.host.entered.clear()
    leaving = asyncio.create_task(worker.adapters.unload("a"))
    await asyncio.wait_for(worker.host.entered.wait(), TIMEOUT)
    assert worker.announced[-1] == []
    assert worker.adapters.holds("a")  # requests that are under way still find it
    for change in (worker.adapters.unload("a"), worker.adapters.load("a", adapter(root / "one"))):
        with pytest.raises(Overloaded, match="being loaded or unloaded"):
            await change
    worker.host.gate.set()
    await asyncio.wait_for(leaving, TIMEOUT)
    assert worker.adapters.names() == []


async def test_an_outage_keeps_what_should_go(root) -> None:
    worker = Worker(root)
    await worker.adapters.load("a", adapter(root / "one"))

    async def outage(_names) -> None:
        raise DiscoveryError("away")

    worker.adapters.publish_with(outage)
    with pytest.raises(DiscoveryError):
        await worker.adapters.unload("a")
    assert worker.adapters.names() == ["a"]


@pytest.mark.parametrize(
    "name",
    ["", " a", "a b", ".a", "a/../b", "a//b", "/a", "a/", "a\n", "a\0", "ü", "-a", "x" * 129, 'a"', "a'", "<a>"],
)
async def test_bad_names(root, name) -> None:
    worker = Worker(root)
    uri = adapter(root / "one")
    with pytest.raises(InvalidRequest, match="not a valid name") as caught:
        await worker.adapters.load(name, uri)
    assert caught.value.param == "lora_name"
    assert worker.host.paths == {}


@pytest.mark.parametrize("name", ["base", "alias"])
async def test_names_of_the_model_are_taken(root, name) -> None:
    worker = Worker(root)
    with pytest.raises(LoraNameTaken, match="the model itself") as caught:
        await worker.adapters.load(name, adapter(root / "one"))
    assert caught.value.http_status == 409


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("", "without a scheme"),
        ("/tmp/x", "without a scheme"),
        ("s3://bucket/x", "from s3"),
        ("http://host/x", "from http"),
        ("file:relative", "not file:///ABSOLUTE"),
        ("file://host/x", "not file:///ABSOLUTE"),
        ("file:///x?y=1", "not file:///ABSOLUTE"),
        ("file:///x#y", "not file:///ABSOLUTE"),
        ("file:///x%00y", "not a usable URI"),
        ("file://[x/y", "not a usable URI"),
        ("file:///" + "x" * 5000, "usable URI|only from below"),
        ("file:///etc", "only from below"),
        ("file:///no/such/place", "only from below"),
        ("file://{root}", "only from below"),
        ("file://{root}/../outside", "only from below"),
        ("file://{root}/%2e%2e/outside", "only from below"),
        ("file://{root}/escape", "only from below"),
        ("file://{root}/circle", "usable URI|only from below|there is no"),
        ("file://{root}/missing", "there is no adapter_config.json"),
        ("file://{root}/no-weights", "there is no adapter_model.safetensors"),
        ("file://{root}/pickle", "there is no adapter_model.safetensors"),
        ("file://{root}/pipe", "not a file"),
        ("file://{root}/leaking", "not a file"),
        ("file://{root}/large", "at most 1048576 are taken"),
        ("file://{root}/huge", "has 1048577 bytes"),
        ("file://{root}/bad", "does not fit"),
    ],
)
async def test_bad_sources(root, tmp_path, uri, message) -> None:
    adapter(tmp_path / "outside")
    (root / "escape").symlink_to(tmp_path / "outside")
    (root / "circle").symlink_to(root / "circle")
    for name in ("no-weights", "pickle", "pipe", "leaking", "large", "huge", "bad"):
        adapter(root / name, b"bad" if name == "bad" else b"w")
    for name in ("no-weights", "pickle", "pipe", "leaking"):
        (root / name / "adapter_model.safetensors").unlink()
    (root / "pickle" / "adapter_model.bin").write_bytes(b"w")
    os.mkfifo(root / "pipe" / "adapter_model.safetensors")
    (root / "leaking" / "adapter_model.safetensors").symlink_to(tmp_path / "outside" / "adapter_model.safetensors")
    (root / "large" / "adapter_config.json").write_bytes(b" " * ((1 << 20) + 1))
    (root / "huge" / "adapter_model.safetensors").write_bytes(b" " * ((1 << 20) + 1))
    worker = Worker(root, lora_size_limit_mib=1)
    with pytest.raises(InvalidRequest, match=message):
        await worker.adapters.load("a", uri.format(root=root))
    assert worker.host.paths == {}
    assert worker.announced == []
    await worker.adapters.load("a", adapter(root / "good"))  # nothing is left behind of the failure
    assert worker.announced == [["a"]]


async def test_unknown_adapters_cannot_be_unloaded(root) -> None:
    with pytest.raises(ModelNotFound, match="no LoRA named 'x'"):
        await Worker(root).adapters.unload("x")


async def test_the_number_of_adapters_is_bounded(root) -> None:
    worker = Worker(root, lora_limit=2)
    for name in ("a", "b"):
        await worker.adapters.load(name, adapter(root / name))
    with pytest.raises(Overloaded, match="2 adapters are loaded"):
        await worker.adapters.load("c", adapter(root / "c"))
    await worker.adapters.unload("a")
    await worker.adapters.load("c", adapter(root / "c"))
    assert worker.announced[-1] == ["b", "c"]


async def test_configured_adapters_may_lie_anywhere(root, tmp_path) -> None:
    adapter(tmp_path / "elsewhere")
    worker = Worker(root, lora_modules=[f"a={tmp_path / 'elsewhere'}"])
    await worker.adapters.load_configured()
    assert worker.adapters.names() == ["a"]
    assert worker.announced == []  # the worker announces itself with them


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a", "not NAME=DIRECTORY"),
        ("=x", "not NAME=DIRECTORY"),
        ("a=", "not NAME=DIRECTORY"),
        ("a=/no/such", "no adapter_config.json"),
        ("base={good}", "the model itself"),
        ("a b={good}", "not a valid name"),
    ],
)
async def test_wrong_configuration(root, tmp_path, entry, message) -> None:
    adapter(tmp_path / "good")
    worker = Worker(root, lora_modules=[entry.format(good=tmp_path / "good")])
    with pytest.raises(ConfigError, match=message) as caught:
        await worker.adapters.load_configured()
    assert caught.value.param == "lora_modules"
