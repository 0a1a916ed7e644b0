"""EtcdTarget: which URLs and settings it takes, and that secrets stay out of its messages."""

import pytest

from dynamo.config import load_settings
from dynamo.errors import ConfigError
from dynamo.runtime.etcd.settings import EtcdSettings
from dynamo.runtime.etcd.target import Endpoint, EtcdTarget
from dynamo.runtime.settings import RuntimeSettings


def parse(url, **settings):
    return EtcdTarget.parse(url, EtcdSettings(**settings))


@pytest.mark.parametrize(
    ("url", "endpoints"),
    [
        ("etcd://", [("localhost:2379", False)]),
        ("etcd://a", [("a:2379", False)]),
        ("etcd://a:1,b:2", [("a:1", False), ("b:2", False)]),
        ("etcd://a:1, b:2 ,a:1", [("a:1", False), ("b:2", False)]),
        ("etcd://http://a:1/,https://b", [("a:1", False), ("b:2379", True)]),
        ("etcd://[::1]:1", [("[::1]:1", False)]),
        ("etcd://https://u:p@a:1", [("a:1", True)]),
    ],
)
def test_endpoints(url, endpoints):
    assert parse(url).endpoints == tuple(Endpoint(*endpoint) for endpoint in endpoints)


def test_endpoints_come_from_the_settings_if_the_url_names_none():
    assert str(parse("etcd://", endpoints="a:1,b:2")) == "a:1, b:2"
    assert str(parse("etcd://c:3", endpoints="a:1,b:2")) == "c:3"


def test_runtime_settings_put_the_endpoints_into_the_url():
    environ = {"DYN_DISCOVERY_BACKEND": "etcd", "ETCD_ENDPOINTS": "http://a:1,https://b:2"}
    url = load_settings(RuntimeSettings, environ=environ).discovery_url()
    assert parse(url).endpoints == (Endpoint("a:1", False), Endpoint("b:2", True))
    assert load_settings(RuntimeSettings, flags={"discovery_backend": "etcd"}).discovery_url() == "etcd://"
    assert RuntimeSettings(discovery_backend="etcd://c:3", etcd_endpoints="a:1").discovery_url() == "etcd://c:3"


def test_a_user_in_the_url_counts_for_all_and_before_the_settings():
    target = parse("etcd://u:p%2C%40@a:1,b:2", username="v", password="q")
    assert (target.username, target.password) == ("u", "p,@")
    assert "p,@" not in repr(target)
    assert "p,@" not in str(target)


@pytest.mark.parametrize("prefix", ["ETCD_", "ETCD_AUTH_"])
def test_credentials_from_the_environment(prefix):
    environ = {f"{prefix}USERNAME": "u", f"{prefix}PASSWORD": "p"}
    target = EtcdTarget.parse("etcd://a", load_settings(EtcdSettings, environ=environ))
    assert (target.username, target.password) == ("u", "p")


@pytest.mark.parametrize(
    "names",
    [
        ("ETCD_CA_CERT", "ETCD_CLIENT_CERT", "ETCD_CLIENT_KEY"),
        ("ETCD_AUTH_CA", "ETCD_AUTH_CLIENT_CERT", "ETCD_AUTH_CLIENT_KEY"),
    ],
)
def test_certificates_turn_tls_on(tmp_path, names):
    environ = {}
    for name in names:
        (tmp_path / name).write_text(name)
        environ[name] = str(tmp_path / name)
    target = EtcdTarget.parse("etcd://a:1,http://b:2", load_settings(EtcdSettings, environ=environ))
    assert target.endpoints == (Endpoint("a:1", True), Endpoint("b:2", False))
    assert target.certificates == tuple(name.encode() for name in names)


@pytest.mark.parametrize(
    "url",
    ["etcd://a:b", "etcd://a:0", "etcd://a:99999", "etcd://:1", "etcd://a/x", "etcd://a?b", "etcd://[::1", "etcd://@"],
)
def test_refuses_what_is_no_endpoint(url):
    with pytest.raises(ConfigError, match="is not an etcd endpoint") as caught:
        parse(url)
    assert "host:port" in caught.value.hint


def test_refuses_other_schemes():
    with pytest.raises(ConfigError, match="scheme 'ftp'"):
        parse("etcd://ftp://a:1")


def test_a_wrong_endpoint_does_not_show_its_password():
    with pytest.raises(ConfigError) as caught:
        parse("etcd://user:hunter2@a:b")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_refuses_two_users():
    with pytest.raises(ConfigError, match="different users"):
        parse("etcd://a:b@c:1,d:e@f:2")


@pytest.mark.parametrize("settings", [{"username": "u"}, {"password": "p"}])
def test_refuses_half_of_the_credentials(settings):
    with pytest.raises(ConfigError, match="without") as caught:
        parse("etcd://a", **settings)
    assert "ETCD_PASSWORD" in caught.value.hint


def test_refuses_a_certificate_without_its_key(tmp_path):
    with pytest.raises(ConfigError, match="needs its key"):
        parse("etcd://a", client_cert=str(tmp_path / "c"))


def test_names_the_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.pem") as caught:
        parse("etcd://a", ca_cert=str(tmp_path / "nowhere.pem"))
    assert "ETCD_CA_CERT" in caught.value.hint
