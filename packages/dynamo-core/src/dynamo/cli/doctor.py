"""``dynamo doctor``: looks at this machine and says what would go wrong, with a fix for each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

import click

from dynamo.cli.checks import CHECKS, Finding

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this machine, with a fix for each problem.

    Exits with 1 when a check failed; warnings do not count.
    """
    findings: list[Finding] = []
    for check in CHECKS:
        for finding in check():
            findings.append(finding)
            if not as_json:
                _show(finding)
    failed = sum(finding.level == "fail" for finding in findings)
    if as_json:
        document = {"healthy": not failed, "findings": [asdict(finding) for finding in findings]}
        click.echo(json.dumps(document, indent=2))
    else:
        click.echo(_summary(findings))
    ctx.exit(1 if failed else 0)


def _show(finding: Finding) -> None:
    mark = click.style(finding.level.ljust(4), fg=_COLOURS[finding.level], bold=finding.level != "ok")
    click.echo(f"{mark}  {finding.check}: {' '.join(finding.found.split())}")
    if finding.fix:
        click.echo(f"      fix: {finding.fix}")


def _summary(findings: Sequence[Finding]) -> str:
    count = {level: sum(finding.level == level for finding in findings) for level in _COLOURS}
    return f"\n{count['ok']} ok, {count['warn']} to look at, {count['fail']} failed"
