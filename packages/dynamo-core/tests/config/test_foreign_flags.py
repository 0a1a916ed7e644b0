"""Flags of other launchers are taken out with exactly their values, and named."""

from __future__ import annotations

import pytest

from dynamo.config.foreign_flags import ForeignFlag, without_foreign_flags
from dynamo.frontend.__main__ import main
from dynamo.frontend.foreign_flags import FOREIGN_FLAGS

FOREIGN = {
    "--switch": ForeignFlag(0, "no switch"),
    "--value": ForeignFlag(1, "no value"),
    "--many": ForeignFlag(None, "not many"),
}


@pytest.mark.parametrize(
    ("argv", "rest"),
    [
        (["--switch", "a"], ["a"]),
        (["--value", "x", "a"], ["a"]),
        (["--value=x", "a"], ["a"]),
        (["--value", "-1", "a"], ["a"]),
        (["--value", "--own", "b"], ["--own", "b"]),
        (["--many", "x", "y", "--own", "z"], ["--own", "z"]),
        (["--own", "--value", "x"], ["--own"]),
        (["--own", "value", "x"], ["--own", "value", "x"]),
        (["-x", "--many"], ["-x"]),
        ([], []),
    ],
)
def test_what_is_left(argv, rest):
    assert list(without_foreign_flags(argv, FOREIGN)) == rest


def test_underscores_are_hyphens_and_a_warning_says_what_is_ignored(caplog):
    foreign = {"--two-words": ForeignFlag(1, "it is not needed")}
    assert list(without_foreign_flags(["--two_words", "x", "y"], foreign)) == ["y"]
    assert [record.getMessage() for record in caplog.records] == [
        "--two_words has no meaning here and is ignored: it is not needed"
    ]


def test_no_flag_of_the_frontend_itself_is_ignored():
    own = {flag for parameter in main.params for flag in (*parameter.opts, *parameter.secondary_opts)}
    assert not own & set(FOREIGN_FLAGS)
