import pytest

from dynamo.errors import ConfigError, PluginNotFound
from dynamo.runtime.discovery import create_discovery
from dynamo.runtime.discovery.file import FileDiscovery
from dynamo.runtime.discovery.memory import MemoryDiscovery
from dynamo.runtime.settings import RuntimeSettings


@pytest.mark.parametrize("url", ["memory://", "mem://", "memory", "MEM"])
def test_memory_by_all_its_names(url):
    assert isinstance(create_discovery(url), MemoryDiscovery)


async def test_aliases_share_their_records(record):
    first, second, other = create_discovery("mem://x"), create_discovery("memory://x"), create_discovery("memory://y")
    await first.register(record(1))
    assert [r.instance_id for r in await second.list()] == [1]
    assert await other.list() == []


async def test_records_of_an_unused_url_are_forgotten(record):
    await create_discovery("memory://gone").register(record(1))
    assert await create_discovery("memory://gone").list() == []


async def test_the_settings_default_is_a_file_backend(tmp_path, record):
    settings = RuntimeSettings(state_dir=str(tmp_path / "state"))
    discovery = create_discovery(settings.discovery_url())
    assert isinstance(discovery, FileDiscovery)
    await discovery.start()
    await discovery.register(record(1))
    assert [path.suffix for path in (tmp_path / "state" / "discovery").iterdir()] == [".json"]
    await discovery.close()


def test_unknown_scheme_lists_the_known_ones():
    with pytest.raises(PluginNotFound, match="zookeeper") as caught:
        create_discovery("zookeeper://h")
    assert "file, memory" in caught.value.hint


@pytest.mark.parametrize("url", ["file://", "file://relative/dir", "file", "file://host/dir/.."])
def test_a_file_url_names_an_absolute_directory(url):
    with pytest.raises(ConfigError, match="does not name a directory") as caught:
        create_discovery(url)
    assert "file:///absolute/directory" in caught.value.hint
