"""Requests made of our own OpenAPI document: whatever schemathesis thinks of, no answer is a 5xx."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.processes import deployment

CASES_PER_OPERATION = 150
PROGRAM = shutil.which("schemathesis", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))


def name_the_model(document: dict[str, Any], model: str) -> dict[str, Any]:
    """`document`, in which models can only be called `model`: others end at their 404 before anything is read."""
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": [model]}
    operations = [operation for methods in document["paths"].values() for operation in methods.values()]
    for parameter in [parameter for operation in operations for parameter in operation.get("parameters", ())]:
        if parameter["name"] == "model":
            parameter["schema"] = {"enum": [model]}
    return document


@pytest.mark.e2e
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.skipif(PROGRAM is None, reason="pip install schemathesis")
def test_no_generated_request_gives_a_server_error(tmp_path: Path):
    with deployment(tmp_path) as processes:
        processes.worker()
        frontend = processes.frontend()
        processes.until_serving(frontend)
        document = name_the_model(httpx.get(f"{frontend.url}/openapi.json").json(), "echo")
        (tmp_path / "openapi.json").write_text(json.dumps(document))
        done = subprocess.run(
            [
                *(str(PROGRAM), "run", str(tmp_path / "openapi.json"), "--url", frontend.url),
                *("--checks", "not_a_server_error", "--phases", "coverage,fuzzing", "--request-timeout", "30"),
                *("--max-examples", str(CASES_PER_OPERATION)),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:]
        assert httpx.get(f"{frontend.url}/live").status_code == 200
        assert "failed" not in frontend.text(), frontend.text()[-3000:]
