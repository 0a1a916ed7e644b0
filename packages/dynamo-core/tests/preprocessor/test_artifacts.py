import hashlib
import os
import threading

import pytest

from dynamo.errors import ConfigError, Retry, TransportError
from dynamo.preprocessor import ArtifactCache, artifact_of, collect, model_files
from dynamo.protocols.model_card import Artifact


def test_collect_names_the_files_that_exist(model_directory):
    (model_directory / "model.safetensors").write_bytes(b"weights")
    artifacts = collect(model_directory)
    assert set(artifacts) == {
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
    }
    data = (model_directory / "config.json").read_bytes()
    assert artifacts["config.json"] == Artifact(sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def test_collect_follows_the_links_of_a_hub_cache(model_directory, tmp_path):
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").symlink_to(model_directory / "config.json")
    (snapshot / "tokenizer.json").symlink_to(tmp_path / "not-downloaded")
    assert collect(snapshot) == {"config.json": collect(model_directory)["config.json"]}


def test_collect_of_nothing(tmp_path):
    assert collect(tmp_path) == {}
    with pytest.raises(ConfigError, match="does not exist"):
        collect(tmp_path / "nowhere")


def test_files_above_the_limit_are_refused_by_name(tmp_path):
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(model_files.FILE_LIMIT_BYTES + 1)
    with pytest.raises(ConfigError, match=r"tokenizer\.json is larger"):
        collect(tmp_path)


def test_cache_gives_back_what_was_put(tmp_path):
    cache = ArtifactCache(tmp_path / "cache")
    artifact = artifact_of(b"data")
    assert cache.get(artifact) is None
    cache.put(artifact, b"data")
    assert cache.get(artifact) == b"data"
    assert ArtifactCache(tmp_path / "cache").get(artifact) == b"data"
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [artifact.sha256]


def test_damaged_arrival_is_refused_and_another_worker_may_be_asked(tmp_path):
    cache = ArtifactCache(tmp_path)
    with pytest.raises(TransportError) as caught:
        cache.put(artifact_of(b"data"), b"dat")
    assert caught.value.retry is Retry.OTHER_WORKER
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_is_removed_and_counts_as_missing(tmp_path):
    cache = ArtifactCache(tmp_path)
    artifact = artifact_of(b"data")
    cache.put(artifact, b"data")
    (tmp_path / artifact.sha256).write_bytes(b"dada")
    assert cache.get(artifact) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "a" * 63, "a" * 64 + "\n"])
def test_names_that_are_no_digest_do_not_reach_the_disk(tmp_path, name):
    with pytest.raises(ConfigError, match="not a SHA-256 digest"):
        ArtifactCache(tmp_path).get(Artifact(sha256=name, size_bytes=1))


def test_least_recently_used_goes_first(tmp_path):
    cache = ArtifactCache(tmp_path, limit_bytes=20)
    old, used, new = (artifact_of(data) for data in (b"a" * 8, b"b" * 8, b"c" * 8))
    cache.put(old, b"a" * 8)
    cache.put(used, b"b" * 8)
    for age, artifact in ((200, used), (100, old)):
        os.utime(tmp_path / artifact.sha256, (1000 - age, 1000 - age))
    assert cache.get(used) is not None  # now the most recent
    cache.put(new, b"c" * 8)
    assert cache.get(old) is None
    assert cache.get(used) is not None
    assert cache.get(new) is not None


def test_what_was_just_put_stays_even_above_the_limit(tmp_path):
    cache = ArtifactCache(tmp_path, limit_bytes=4)
    small, large = artifact_of(b"ab"), artifact_of(b"x" * 100)
    cache.put(small, b"ab")
    cache.put(large, b"x" * 100)
    assert cache.get(large) is not None
    assert cache.get(small) is None


def test_foreign_files_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_bytes(b"x" * 100)
    ArtifactCache(tmp_path, limit_bytes=4).put(artifact_of(b"abc"), b"abc")
    assert (tmp_path / "notes.txt").exists()


def test_several_writers_of_one_artifact(tmp_path):
    cache = ArtifactCache(tmp_path, limit_bytes=10_000)
    data = b"z" * 4096
    artifact = artifact_of(data)
    threads = [threading.Thread(target=cache.put, args=(artifact, data)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get(artifact) == data
    assert len(list(tmp_path.iterdir())) == 1


def test_cache_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot make the artifact cache"):
        ArtifactCache(tmp_path / "file" / "cache")


def test_cache_directory_that_went_away(tmp_path):
    cache = ArtifactCache(tmp_path / "cache")
    (tmp_path / "cache").rmdir()
    assert cache.get(artifact_of(b"x")) is None
    with pytest.raises(ConfigError, match="cannot write artifact"):
        cache.put(artifact_of(b"x"), b"x")
