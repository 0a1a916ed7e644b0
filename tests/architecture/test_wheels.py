"""What the built distributions hold. `nox -s "build(PACKAGE)"` runs this on `dist/`; otherwise the wheels are made here."""

import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from tests.architecture.tree import ROOT

pytestmark = pytest.mark.slow
CORE_WHEEL_BYTES = 3 * 1024 * 1024


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Wheel by distribution name."""
    given = os.environ.get("DYNAMO_DIST")
    if given:
        folder = Path(given)
    else:
        uv = shutil.which("uv")
        if uv is None:
            pytest.skip("uv is not on the PATH: python3 -m pip install uv")
        folder = tmp_path_factory.mktemp("dist")
        subprocess.run([uv, "build", "--quiet", "--all-packages", "--wheel", "--out-dir", folder], cwd=ROOT, check=True)
    found = {path.name.split("-")[0].replace("_", "-"): path for path in sorted(folder.rglob("*.whl"))}
    assert found
    return found


def test_no_wheel_owns_the_namespace(wheels: dict[str, Path]):
    for name, wheel in wheels.items():
        files = _files(wheel)
        assert [f for f in files if f.startswith("dynamo/") and f.count("/") == 1] == [], name
        assert {f.split("/")[0] for f in files if ".dist-info/" not in f} == {"dynamo"}, name


def test_wheels_do_not_overlap(wheels: dict[str, Path]):
    owner: dict[str, str] = {}
    for name, wheel in wheels.items():
        for file in _files(wheel):
            assert file not in owner, f"{file} is in {owner.get(file)} and {name}"
            owner[file] = name


def test_every_portion_is_typed(wheels: dict[str, Path]):
    for name, wheel in wheels.items():
        files = _files(wheel)
        portions = {f.split("/")[1] for f in files if f.startswith("dynamo/")}
        assert portions, name
        assert [p for p in portions if f"dynamo/{p}/py.typed" not in files] == [], name


def test_core_is_small_and_complete(wheels: dict[str, Path]):
    if "dynamo-core" not in wheels:
        pytest.skip('dynamo-core was not built: nox -s "build(dynamo-core)"')
    core = wheels["dynamo-core"]
    assert core.stat().st_size <= CORE_WHEEL_BYTES
    files = _files(core)
    model = "dynamo/reference/demo_model/"
    assert {model + "config.json", model + "tokenizer.json", model + "model.safetensors"} <= files
    assert any(f.endswith(".dist-info/licenses/LICENSE") for f in files)


def test_installing_core_pulls_no_torch(wheels: dict[str, Path]):
    if "dynamo-core" not in wheels:
        pytest.skip('dynamo-core was not built: nox -s "build(dynamo-core)"')
    with zipfile.ZipFile(wheels["dynamo-core"]) as archive:
        metadata = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
    required = {line.split(":", 1)[1].split()[0] for line in lines if line.startswith("Requires-Dist:")}
    assert not [name for name in required if name.startswith(("torch", "vllm", "sglang", "tensorrt", "transformers"))]


def _files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}
