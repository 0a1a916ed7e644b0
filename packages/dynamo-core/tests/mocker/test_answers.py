"""What the mocker answers, decided before it is computed."""

from __future__ import annotations

import pytest

from dynamo.mocker.answers import Answer, Vocabulary, plan_answer
from dynamo.protocols.llm import PreprocessedRequest, SamplingOptions, StopConditions, pack_token_ids


def _plan(prompt: list[int], *, source="random", context_length=100, seed=0, prior=0, sampling=None, **stop) -> Answer:
    request = PreprocessedRequest(
        "r",
        "m",
        pack_token_ids(prompt),
        sampling or SamplingOptions(),
        StopConditions(**stop),
        prior_output_tokens=prior,
    )
    return plan_answer(
        request,
        source=source,
        vocabulary=Vocabulary.of_size(1000),
        context_length=context_length,
        default_tokens=10,
        seed=seed,
    )


def test_ids_depend_on_the_prompt_and_the_seeds_alone() -> None:
    plain = _plan([1, 2, 3], max_tokens=8)
    assert plain == _plan([1, 2, 3], max_tokens=8)
    others = [
        _plan([1, 2, 4], max_tokens=8),
        _plan([1, 2, 3], max_tokens=8, seed=1),
        _plan([1, 2, 3], max_tokens=8, sampling=SamplingOptions(seed=5)),
    ]
    assert len({tuple(answer.token_ids) for answer in (plain, *others)}) == 4
    greedy = SamplingOptions(temperature=0.0, seed=5)
    assert _plan([1, 2, 3], max_tokens=8, sampling=greedy) == plain


def test_ids_are_of_the_middle_of_the_vocabulary() -> None:
    ids = _plan([1], max_tokens=90).token_ids
    assert len(ids) == 90
    assert min(ids) >= 250
    assert max(ids) < 750
    assert len(set(ids)) > 70


@pytest.mark.parametrize("size", [1, 2, 3, 300])
def test_small_vocabularies_have_ids_too(size: int) -> None:
    lowest, end = Vocabulary.of_size(size)
    assert 0 <= lowest < end <= size


def test_a_resumed_answer_goes_on_where_it_was() -> None:
    whole = _plan([1, 2, 3], max_tokens=10).token_ids
    rest = _plan([1, 2, 3, *whole[:4]], prior=4, max_tokens=6).token_ids
    assert whole == whole[:4] + rest


def test_echo_gives_the_prompt_over_and_over() -> None:
    assert _plan([7, 8, 9], source="echo", max_tokens=5).token_ids == [7, 8, 9, 7, 8]
    assert _plan([7, 8, 9, 7], prior=1, source="echo", max_tokens=3).token_ids == [8, 9, 7]


def test_an_answer_without_a_bound_ends_by_itself() -> None:
    answer = _plan([1, 2])
    assert (len(answer.token_ids), answer.finish_reason, answer.stop_reason) == (10, "stop", None)
    assert len(_plan([1, 2], min_tokens=15).token_ids) == 15
    assert len(_plan([1, 2, 5, 5, 5], prior=3).token_ids) == 7


def test_the_context_is_the_limit() -> None:
    answer = _plan([1] * 95, max_tokens=50)
    assert (len(answer.token_ids), answer.finish_reason) == (5, "length")
    endless = _plan([1] * 40, ignore_eos=True)
    assert (len(endless.token_ids), endless.finish_reason) == (60, "length")


def test_a_stop_id_ends_the_answer_and_is_drawn_but_not_told() -> None:
    ids = _plan([1, 2, 3], max_tokens=8).token_ids
    stopped = _plan([1, 2, 3], max_tokens=8, stop_token_ids=[ids[4]])
    assert stopped == Answer(ids[:4], "stop", ids[4])
    assert stopped.drawn_tokens == 5
    later = _plan([1, 2, 3], max_tokens=8, min_tokens=6, stop_token_ids=[ids[4]])
    assert later.token_ids == ids


def test_min_tokens_count_the_output_of_another_worker() -> None:
    ids = _plan([1, 2, 3], max_tokens=8).token_ids
    resumed = _plan([1, 2, 3, *ids[:2]], prior=2, max_tokens=6, min_tokens=4, stop_token_ids=[ids[4]])
    assert resumed == Answer(ids[2:4], "stop", ids[4])
