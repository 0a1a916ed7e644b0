"""Names, users and removal of an engine's adapters."""

from __future__ import annotations

import asyncio

import pytest

from dynamo.errors import InvalidRequest
from dynamo.worker.adapter_registry import AdapterRegistry

TIMEOUT = 10.0


@pytest.fixture
def registry() -> AdapterRegistry[str]:
    return AdapterRegistry()


async def load(registry: AdapterRegistry[str], name: str) -> None:
    async def make() -> str:
        return name.upper()

    await registry.load(name, make)


async def forget(_: str) -> None:
    """Nothing to free."""


async def test_an_adapter_is_usable_from_load_to_unload(registry):
    with registry.use(None) as nothing:
        assert nothing is None
    await load(registry, "a")
    with registry.use("a") as first, registry.use("a") as second:
        assert (first, second) == ("A", "A")
    assert (list(registry.names()), registry.taken()) == (["a"], 1)
    forgotten = []

    async def remember(adapter: str) -> None:
        forgotten.append(adapter)

    await registry.unload("a", remember)
    assert (forgotten, list(registry.names()), registry.taken()) == (["A"], [], 0)
    with pytest.raises(InvalidRequest, match="no LoRA named 'a'"), registry.use("a"):
        pass


async def test_a_name_is_taken_from_the_moment_it_is_being_loaded(registry):
    gate = asyncio.Event()

    async def slow() -> str:
        await gate.wait()
        return "slow"

    loading = asyncio.create_task(registry.load("a", slow))
    await asyncio.sleep(0)
    assert (list(registry.names()), registry.taken()) == ([], 1)
    with pytest.raises(InvalidRequest, match="loaded already"):
        await load(registry, "a")
    with pytest.raises(InvalidRequest, match="no LoRA named 'a'"):
        await registry.unload("a", forget)
    gate.set()
    await asyncio.wait_for(loading, TIMEOUT)
    assert list(registry.names()) == ["a"]


async def test_what_cannot_be_loaded_leaves_the_name_free(registry):
    async def fail() -> str:
        raise InvalidRequest("broken")

    with pytest.raises(InvalidRequest, match="broken"):
        await registry.load("a", fail)
    await load(registry, "a")
    assert list(registry.names()) == ["a"]


async def test_unloading_waits_for_the_last_user_and_takes_no_new_ones(registry):
    await load(registry, "a")
    with registry.use("a"):
        unloading = asyncio.create_task(registry.unload("a", forget))
        await asyncio.sleep(0)
        assert not unloading.done()
        with pytest.raises(InvalidRequest, match="no LoRA"), registry.use("a"):
            pass
    await asyncio.wait_for(unloading, TIMEOUT)
    assert registry.taken() == 0


async def test_what_cannot_be_forgotten_stays_usable(registry):
    await load(registry, "a")

    async def fail(_: str) -> None:
        raise InvalidRequest("stuck")

    with pytest.raises(InvalidRequest, match="stuck"):
        await registry.unload("a", fail)
    with registry.use("a") as adapter:
        assert adapter == "A"
