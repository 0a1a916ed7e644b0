"""Every parameter of docs/reference/endpoints.md has its effect, at a `dynamo serve` with the demo model.

The effects are in `tests.e2e.parameter_effects`, one table per section of the page. A parameter that is documented and
has no row fails here; one that is accepted and not documented fails in tests/docs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.parameter_effects import batches, chat, completions, embeddings, messages, nvext, responses
from tests.e2e.parameter_effects.api import Api, Check, Dialect, SharedCheck
from tests.e2e.parameter_effects.api import chat as chat_dialect
from tests.e2e.parameter_effects.api import completions as completions_dialect
from tests.e2e.parameter_effects.api import messages as messages_dialect
from tests.e2e.parameter_effects.api import responses as responses_dialect
from tests.e2e.parameter_effects.sampling import SAMPLING
from tests.e2e.served import Served, serving

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "endpoints.md").read_text("utf-8")
#: Names in the first column of a table's row; of rows that have a word there, or endpoints, those in the second.
NAME = re.compile(r"`([a-z]\w*(?:\[\w+\])?)`")


def bound(checks: Mapping[str, SharedCheck], *dialects: Dialect) -> dict[str, list[Check]]:
    return {name: [functools.partial(check, dialect=dialect) for dialect in dialects] for name, check in checks.items()}


def single(checks: Mapping[str, Check]) -> dict[str, list[Check]]:
    return {name: [check] for name, check in checks.items()}


BOTH = (chat_dialect, completions_dialect)
#: Section of the page -> parameter -> what proves it.
SECTIONS: dict[str, dict[str, list[Check]]] = {
    "Sampling": bound({**SAMPLING, "nvext": nvext.greed_sampling}, *BOTH),
    "`POST /v1/chat/completions`": {**single(chat.CHECKS), **bound(chat.SHARED, chat_dialect)},
    "`POST /v1/completions`": {**single(completions.CHECKS), **bound(completions.SHARED, completions_dialect)},
    "nvext": bound(nvext.SHARED, *BOTH),
    "`POST /v1/responses`": {**single(responses.CHECKS), **bound(responses.SHARED, responses_dialect)},
    "`POST /v1/messages`": {**single(messages.CHECKS), **bound(messages.SHARED, messages_dialect)},
    "`POST /v1/embeddings`": single(embeddings.EMBEDDING_CHECKS),
    "`POST /tokenize`, `POST /detokenize`": single(embeddings.TOKEN_CHECKS),
    "`/v1/files` and `/v1/batches`": single(batches.CHECKS),
}


def documented(section: str) -> set[str]:
    text = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert text is not None, f"endpoints.md has no section {section}"
    names: set[str] = set()
    for row in re.findall(r"^\| (.*) \|$", text.group(1), re.MULTILINE):
        first, _, rest = row.partition(" | ")
        names |= set(NAME.findall(first) or NAME.findall(rest))
    return names


def cases() -> Iterator[object]:
    """Each check once, under the first of its names."""
    for section, parameters in SECTIONS.items():
        seen = set()
        for name, checks in parameters.items():
            for check in checks:
                endpoint = check.keywords["dialect"].path if isinstance(check, functools.partial) else section
                if check not in seen:
                    seen.add(check)
                    yield pytest.param(check, id=f"{endpoint.replace('`', '')}-{name}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Strict, so that what is accepted is known; one request at a time, so that others wait; with explained decisions."""
    directory = tmp_path_factory.mktemp("served")
    with serving(directory, "--explain", "--max-num-seqs", "1", env={"DYN_STRICT": "true"}) as running:
        yield running.until_ready()


@pytest.fixture(scope="module")
def api(served: Served) -> Iterator[Api]:
    made = Api(served.url)
    with made.client:
        yield made


@pytest.mark.parametrize("section", SECTIONS)
def test_what_is_documented_is_what_is_proved(section):
    # Sampling parameters that a chat's or a completion's table names again.
    again = set(SECTIONS["Sampling"]) if "completions" in section else set()
    assert documented(section) - again == set(SECTIONS[section])


@pytest.mark.parametrize("check", list(cases()))
def test_the_parameter_has_its_effect(check, api):
    check(api)


def test_an_unknown_parameter_is_refused_with_the_nearest_one(api):
    response = api.client.post(chat_dialect.path, json={**chat_dialect.prompt("x"), "model": "x", "temprature": 1})
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "temprature", "unknown_parameter")
    assert "temperature" in error["message"]
