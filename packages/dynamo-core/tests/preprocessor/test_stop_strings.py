import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dynamo.errors import InvalidRequest
from dynamo.preprocessor.stop_strings import MAX_STOP_CHARACTERS, MAX_STOP_STRINGS, StopMatch, StopStrings

letters = st.text("abc", min_size=1, max_size=5)


def brute_search(stops, text):
    for end in range(1, len(text) + 1):
        for start in range(end):
            if text[start:end] in stops:
                return StopMatch(start, end, text[start:end])
    return None


def brute_held(stops, text):
    for start in range(len(text)):
        if any(stop.startswith(text[start:]) and stop != text[start:] for stop in stops):
            return len(text) - start
    return 0


@given(stops=st.lists(letters, max_size=4), text=st.text("abcd", max_size=16))
@example(stops=["abcd", "bc"], text="abcd")
@example(stops=["b", "ab"], text="ab")
def test_search_and_held_equal_brute_force(stops, text):
    strings = StopStrings(stops)
    assert strings.search(text) == brute_search(stops, text)
    if strings.search(text) is None:
        assert strings.held(text) == brute_held(stops, text)


def test_first_to_end_wins_and_of_those_the_longest():
    assert StopStrings(["abcd", "bc"]).search("xabcd").stop == "bc"
    assert StopStrings(["c", "abc", "bc"]).search("xabc").stop == "abc"


@pytest.mark.parametrize(
    "stops",
    [[""], ["a", ""], ["a" * (MAX_STOP_CHARACTERS + 1)], [str(i) for i in range(MAX_STOP_STRINGS + 1)]],
)
def test_refused_stops_name_the_parameter(stops):
    with pytest.raises(InvalidRequest) as caught:
        StopStrings(stops)
    assert caught.value.param == "stop"


def test_duplicates_count_once():
    assert StopStrings(["END"] * (MAX_STOP_STRINGS + 1)).stops == ("END",)
