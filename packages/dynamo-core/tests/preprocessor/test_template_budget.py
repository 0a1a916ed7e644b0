import pytest
from jinja2.exceptions import SecurityError

from dynamo.preprocessor.template_budget import Budget, TemplateLimits, current_budget, spending


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_steps_end_exactly_at_the_limit():
    budget = Budget(TemplateLimits(steps=3))
    for _ in range(3):
        budget.charge()
    with pytest.raises(SecurityError, match="more than 3 steps"):
        budget.charge()


def test_the_deadline_is_seen_within_a_few_steps():
    clock = Clock()
    budget = Budget(TemplateLimits(seconds=2.0), clock)
    for _ in range(100):
        budget.charge()
    clock.now = 2.5
    with pytest.raises(SecurityError, match=r"longer than 2\.0 s"):
        budget.charge(16)


def test_sizes_up_to_the_limit_pass_and_large_ones_cost_steps():
    budget = Budget(TemplateLimits(steps=2, text_characters=10_000))
    budget.size(10_000)
    with pytest.raises(SecurityError, match="larger than 10000"):
        budget.size(10_001)
    with pytest.raises(SecurityError, match="more than 2 steps"):
        budget.size(4096)


def test_collect_stops_reading_an_endless_stream():
    def endless():
        while True:
            yield "x" * 100

    with pytest.raises(SecurityError, match="larger than 1000"):
        Budget(TemplateLimits(text_characters=1000)).collect(endless())
    assert Budget(TemplateLimits(text_characters=3)).collect(["a", "", "bc"]) == "abc"


def test_measure_counts_shared_parts_each_time_and_ends_in_cycles():
    budget = Budget(TemplateLimits())
    shared = ["abc", {"k": "v"}]
    assert budget.measure([shared]) < budget.measure([shared, shared])
    assert budget.measure("abc") == 3
    cycle = []
    cycle.append(cycle)
    with pytest.raises(SecurityError, match="steps"):
        budget.measure(cycle)


def test_each_rendering_has_its_own_budget():
    outer, inner = Budget(TemplateLimits()), Budget(TemplateLimits())
    with spending(outer):
        with spending(inner):
            assert current_budget() is inner
        assert current_budget() is outer
    assert current_budget() is not outer
