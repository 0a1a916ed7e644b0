"""What a report says, to people and to programs."""

from __future__ import annotations

import json

import pytest

from dynamo.testing.report import CheckResult, Report, render_result

OK = CheckResult("a.b", "Be good.", "ok", seconds=0.5)
NOTED = CheckResult("a.c", "Be good.", "ok", "3 prompts")
SKIPPED = CheckResult("b", "Be able.", "skipped", "the engine does not declare load")
FAILED = CheckResult("c", "Do it " * 30, "failed", "did not", "do it")
BLOCKED = CheckResult("d", "Then more.", "blocked", "c failed")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (OK, "ok       a.b"),
        (NOTED, "ok       a.c  (3 prompts)"),
        (SKIPPED, "skipped  b: the engine does not declare load"),
        (BLOCKED, "blocked  d: c failed"),
    ],
)
def test_what_needs_no_action_is_one_line(result: CheckResult, text: str) -> None:
    assert render_result(result) == text


def test_a_failure_is_a_paragraph_with_rule_finding_and_fix() -> None:
    lines = render_result(FAILED).splitlines()
    assert lines[0] == "FAILED   c"
    assert lines[1].startswith("         contract  Do it Do it")
    assert lines[2].startswith(" " * 19 + "it Do it")
    assert lines[-2:] == ["         seen      did not", "         fix       do it"]
    assert max(map(len, lines)) <= 100


def test_skipped_checks_do_not_fail_a_report() -> None:
    report = Report("x", [OK, SKIPPED])
    report.raise_for_failures()
    assert report.passed
    assert report.summary() == "1 ok, 1 skipped"


@pytest.mark.parametrize("bad", [FAILED, BLOCKED])
def test_failed_and_blocked_checks_do(bad: CheckResult) -> None:
    report = Report("x", [OK, bad])
    assert not report.passed
    with pytest.raises(AssertionError, match="engine x breaks its contract"):
        report.raise_for_failures()


def test_json_has_every_result() -> None:
    body = json.loads(Report("x", [OK, FAILED]).to_json())
    assert (body["subject"], body["passed"]) == ("x", False)
    assert body["results"][0] == {"id": "a.b", "contract": "Be good.", "status": "ok", "seconds": 0.5}
    assert body["results"][1]["fix"] == "do it"
