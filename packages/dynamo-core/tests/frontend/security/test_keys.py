"""Key files, credentials and look-up."""

from __future__ import annotations

import hashlib
import json

import pytest
import yaml

from dynamo.errors import ConfigError, Unauthorized
from dynamo.frontend.security.keys import ApiKey, KeyTable, credential, key_digest, named_by_hash, read_key_file


def written(tmp_path, text):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    return path


def test_a_file_gives_names_models_and_limits_but_no_keys(tmp_path):
    entries = [
        {"name": "team-a", "key": "sk-team-a-secret", "models": ["demo"], "requests_per_minute": 60},
        {"name": "team.b", "sha256": hashlib.sha256(b"sk-b").hexdigest(), "tokens_per_minute": 1000},
    ]
    a, b = read_key_file(written(tmp_path, yaml.safe_dump(entries)))
    assert a == ApiKey("team-a", key_digest("sk-team-a-secret"), frozenset({"demo"}), 60, None)
    assert b == ApiKey("team.b", key_digest("sk-b"), None, None, 1000)
    assert "sk-" not in repr([a, b])
    assert read_key_file(written(tmp_path, json.dumps(entries))) == [a, b]


def test_an_empty_file_has_no_keys(tmp_path):
    assert read_key_file(written(tmp_path, "")) == []
    assert read_key_file(written(tmp_path, "[]")) == []


BAD_FILES = {
    "not YAML": ("- {name: a, key: [sk-secret-1", "neither YAML nor JSON"),
    "a map": ("name: a\nkey: sk-secret-1", "must be a list"),
    "no name": ("- key: sk-secret-1", "entry 0"),
    "no key": ("- name: a", "either key or sha256"),
    "both": (f"- {{name: a, key: sk-secret-1, sha256: '{'0' * 64}'}}", "either key or sha256"),
    "short key": ("- {name: a, key: sk}", "entry 0: Expected 8 to 512 ASCII characters"),
    "key with a space": ("- {name: a, key: sk-secret one}", "none of them a space - at `$.key`"),
    "hash of the wrong length": ("- {name: a, sha256: abcdef}", "entry 0: Expected 64 hexadecimal digits"),
    "name with a slash": ("- {name: a/b, key: sk-secret-1}", "letters, digits and any of _ . @ : - - at `$.name`"),
    "unknown field": ("- {name: a, key: sk-secret-1, model: [x]}", "model"),
    "models is a text": ("- {name: a, key: sk-secret-1, models: x}", "models"),
    "no requests": ("- {name: a, key: sk-secret-1, requests_per_minute: 0}", "requests_per_minute"),
    "admin is a text": ("- {name: a, key: sk-secret-1, admin: 'yes please'}", "admin"),
    "second entry": ("- {name: a, key: sk-secret-1}\n- 7", "entry 1"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_explained_without_its_keys(tmp_path, name):
    text, message = BAD_FILES[name]
    with pytest.raises(ConfigError) as caught:
        read_key_file(written(tmp_path, text))
    assert message in str(caught.value)
    assert "sk-secret" not in f"{caught.value} {caught.value.__cause__}"


def test_a_missing_or_binary_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_key_file(tmp_path / "absent.yaml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="neither YAML nor JSON"):
        read_key_file(tmp_path / "binary")


def test_names_and_keys_are_unique():
    one = ApiKey("a", key_digest("k"))
    with pytest.raises(ConfigError, match="named 'a'"):
        KeyTable([one, ApiKey("a", key_digest("other"))])
    with pytest.raises(ConfigError, match="same key"):
        KeyTable([one, ApiKey("b", key_digest("k"))])


def test_keys_without_a_file_are_named_alike_after_a_restart():
    keys = named_by_hash(["first", "second", "first", ""])
    assert len(keys) == 2
    assert {key.name for key in keys} == {key.name for key in named_by_hash(["second", "first"])}
    assert not any(word in repr(keys) for word in ("first", "second"))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"authorization": "Bearer sk-1"}, "sk-1"),
        ({"authorization": "bearer  sk-1 "}, "sk-1"),
        ({"x-api-key": "sk-2"}, "sk-2"),
        ({"authorization": "Bearer sk-1", "x-api-key": "sk-2"}, "sk-1"),
        ({"authorization": "Basic c2s=", "x-api-key": "sk-2"}, "sk-2"),
        ({"authorization": "sk-1"}, ""),
        ({}, ""),
    ],
)
def test_where_a_key_is_sent(headers, expected):
    assert credential(headers) == expected


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("", "missing_api_key"),
        ("wrong", "invalid_api_key"),
        ("right ", "invalid_api_key"),
        ("r" * 10_000, "invalid_api_key"),
        ("\xff\x00\ud800", "invalid_api_key"),
    ],
)
def test_wrong_keys(given, reason):
    table = KeyTable([ApiKey("a", key_digest("right"))])
    assert table.find("right").name == "a"
    with pytest.raises(Unauthorized) as caught:
        table.find(given)
    assert caught.value.reason == reason


def test_a_look_up_reads_one_key_of_many():
    table = KeyTable(ApiKey(f"key-{number}", key_digest(f"secret-{number}")) for number in range(10_000))
    assert max(map(len, table._by_prefix.values())) == 1
    assert table.find("secret-9999").name == "key-9999"
