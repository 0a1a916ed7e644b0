"""The table of adapters and their holders."""

from __future__ import annotations

from dynamo.frontend.adapters import _GONE_LIMIT, AdapterTable


def test_adapters_follow_what_their_workers_hold() -> None:
    table = AdapterTable()
    assert table.put(1, "base", ["a", "b"]) == ["a", "b"]
    assert table.put(2, "base", ["b", "c"]) == ["c"]
    assert (table.names(), table.base_of("a"), table.base_of("x")) == (["a", "b", "c"], "base", None)
    assert table.put(1, "base", []) == []
    assert (sorted(table.names()), table.known("a"), table.base_of("a")) == (["b", "c"], True, None)
    table.remove(2)
    table.remove(9)
    assert table.names() == []
    assert [table.known(name) for name in ("a", "b", "c", "x")] == [True, True, True, False]


def test_of_two_models_with_an_adapter_of_one_name_the_first_has_it() -> None:
    table = AdapterTable()
    table.put(1, "one", ["a"])
    table.put(2, "two", ["a"])
    assert table.base_of("a") == "one"
    table.remove(1)
    assert table.base_of("a") == "two"


def test_what_is_gone_is_forgotten_in_the_end() -> None:
    table = AdapterTable()
    for number in range(_GONE_LIMIT + 1):
        table.put(1, "base", [str(number)])
    table.remove(1)
    assert (table.known("0"), table.known("1"), table.known(str(_GONE_LIMIT))) == (False, True, True)
