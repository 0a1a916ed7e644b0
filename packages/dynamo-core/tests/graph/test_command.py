import pytest

from dynamo.graph.command import expand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$(MISSING)", "$(MISSING)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $(A", "$A ${A} $(A"),
        ("$()", "$()"),
        ("$(A)$", "1$"),
        ("echo $$", "echo $"),
        ("", ""),
    ],
)
def test_expand(text, expected):
    assert expand(text, {"A": "1", "B": "2"}) == expected


def test_values_are_not_expanded_again():
    assert expand("$(A)", {"A": "$(B)", "B": "x"}) == "$(B)"
