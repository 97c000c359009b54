import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tempo.errors import InputError
from tempo.policy.presets import isolated
from tempo.policy.schedules import Bezier, Constant, Linear, ReLU, Schedule, parse_schedule
from tempo.policy.selection import Threshold
from tempo.policy.serialize import rule_to_dict
from tempo.run.budget import largest_width

taus = st.floats(1e-6, 1.0)
steps = st.integers(2, 60)
points = st.lists(taus, min_size=2, max_size=4)


def curve(start: float, *between: float, steps: int) -> Linear | Bezier:
    """Made inside a test: beartype looks at a random item of a tuple, strategies may not."""
    *control, end = between
    return Bezier(start, tuple(control), end, steps) if control else Linear(start, end, steps)


def values(schedule: Schedule, last: int) -> list[float]:
    return [schedule.at(step) for step in range(1, last + 1)]


def test_a_constant_is_the_same_at_every_step() -> None:
    assert values(Constant(0.2), 4) == [0.2] * 4


def test_a_line_goes_evenly_from_start_to_end_and_stays() -> None:
    found = values(Linear(0.5, 0.1, 5), 8)
    assert found == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1])
    assert values(Linear(0.1, 0.3, 2), 3) == [0.1, 0.3, 0.3]


def test_one_control_makes_the_curve_quadratic() -> None:
    t = np.linspace(0, 1, 6)
    expected = (1 - t) ** 2 * 0.8 + 2 * t * (1 - t) * 0.1 + t**2 * 0.4
    assert values(Bezier(0.8, (0.1,), 0.4, 6), 6) == pytest.approx(expected.tolist())


def test_two_controls_make_the_curve_cubic() -> None:
    t = np.linspace(0, 1, 7)
    expected = (1 - t) ** 3 * 0.9 + 3 * t * (1 - t) ** 2 * 0.1 + 3 * t**2 * (1 - t) * 0.7 + t**3 / 5
    assert values(Bezier(0.9, (0.1, 0.7), 0.2, 7), 7) == pytest.approx(expected.tolist())


def test_a_control_half_way_makes_a_line() -> None:
    line, curve = Linear(0.9, 0.1, 9), Bezier(0.9, (0.5,), 0.1, 9)
    assert values(curve, 12) == pytest.approx(values(line, 12))


def test_a_relu_is_flat_up_to_its_knee_then_falls_or_rises_to_its_end() -> None:
    falling = values(ReLU(0.5, 3, -0.15, 0.1), 7)
    assert falling == pytest.approx([0.5, 0.5, 0.5, 0.35, 0.2, 0.1, 0.1])
    assert values(ReLU(0.1, 1, 0.4, 0.6), 4) == pytest.approx([0.1, 0.5, 0.6, 0.6])
    assert falling[-1] == 0.1


@given(points, steps)
def test_ends_are_exact_and_the_last_value_stays(through, last) -> None:
    schedule = curve(*through, steps=last)
    assert schedule.at(1) == through[0]
    assert [schedule.at(step) for step in (last, last + 1, last + 999)] == [through[-1]] * 3


@given(points, steps, st.integers(1, 100))
def test_no_value_leaves_the_range_of_the_points(through, last, step) -> None:
    schedule = curve(*through, steps=last)
    assert min(through) == schedule.lowest <= schedule.at(step) <= max(through)


@given(taus, taus, st.integers(1, 20), st.floats(1e-4, 10), st.integers(1, 60))
def test_a_relu_stays_between_its_start_and_its_end(start, end, knee, size, step) -> None:
    schedule = ReLU(start, knee, size if end >= start else -size, end)
    assert schedule.lowest == min(start, end) <= schedule.at(step) <= max(start, end)
    assert schedule.at(min(step, knee)) == start
    assert abs(schedule.at(step + 1) - end) <= abs(schedule.at(step) - end)


@given(taus, taus, steps)
def test_a_line_never_turns(start, end, n) -> None:
    change = np.diff(values(Linear(start, end, n), n + 2)) * np.sign(end - start)
    assert (change >= -1e-12).all()


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("0.1", Constant(0.1)),
        ("1", Constant(1.0)),
        ("linear:0.3:0.05:10", Linear(0.3, 0.05, 10)),
        ("bezier:0.3:0.05:0.1:10", Bezier(0.3, (0.05,), 0.1, 10)),
        ("bezier:0.3:0.05:0.2:0.1:10", Bezier(0.3, (0.05, 0.2), 0.1, 10)),
        ("relu:0.3:5:-0.05:0.05", ReLU(0.3, 5, -0.05, 0.05)),
    ],
)
def test_a_text_names_a_schedule(text: str, schedule: Schedule) -> None:
    assert parse_schedule(text) == schedule


@pytest.mark.parametrize(
    "text",
    [
        *("", "much", "linear", "linear:0.3:0.05", "linear:0.3:0.05:ten", "linear:0.3:0.05:2.5"),
        *("linear:0.3:0.05:10:1", "bezier:0.3:0.05:10", "bezier:0.3:0.1:0.1:0.1:0.1:10"),
        *("relu:0.3:5:-0.05", "relu:0.3:five:-0.05:0.05", "0.1:0.2", "cosine:0.3:0.05:10"),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"expected a valid number such as 0\.1, or linear:START"):
        parse_schedule(text)


@pytest.mark.parametrize(
    "make",
    [
        Constant,
        lambda wrong: Linear(wrong, 0.1, 5),
        lambda wrong: Linear(0.1, wrong, 5),
        lambda wrong: Bezier(wrong, (0.1,), 0.1, 5),
        lambda wrong: Bezier(0.1, (0.1, wrong), 0.1, 5),
        lambda wrong: Bezier(0.1, (0.1,), wrong, 5),
        lambda wrong: ReLU(wrong, 2, 0.1, 0.9),
        lambda wrong: ReLU(0.1, 2, 0.1, wrong),
    ],
)
@pytest.mark.parametrize("wrong", [0, -0.1, 1.01, float("nan"), float("inf")])
def test_a_schedule_that_would_leave_the_range_is_refused(make, wrong) -> None:
    with pytest.raises(InputError, match=r"above 0 and at most 1, got .*; for example 0\.1"):
        make(wrong)


@pytest.mark.parametrize("make", [lambda n: Linear(0.1, 0.2, n), lambda n: Bezier(0.1, (1,), 1, n)])
@pytest.mark.parametrize("n", [1, 0, -3])
def test_a_schedule_needs_two_steps(make, n: int) -> None:
    with pytest.raises(InputError, match=f"at least 2 steps, its start and its end, got {n}"):
        make(n)


@pytest.mark.parametrize("control", [(), (0.1, 0.1, 0.1)])
def test_a_curve_has_one_control_or_two(control) -> None:
    with pytest.raises(InputError, match=f"or two \\(cubic\\), got {len(control)}"):
        Bezier(0.3, control, 0.1, 5)


@pytest.mark.parametrize("slope", [0, 0.05, float("nan"), float("-inf")])
def test_a_slope_must_lead_to_the_end(slope) -> None:
    with pytest.raises(InputError, match=r"a slope that leads from 0\.3 to 0\.1"):
        ReLU(0.3, 2, slope, 0.1)


def test_a_knee_before_the_first_step_is_refused() -> None:
    with pytest.raises(InputError, match="at step 1 or later, got 0"):
        ReLU(0.3, 0, -0.1, 0.1)


def test_a_policy_says_its_schedule_in_plain_json() -> None:
    policy = isolated(Bezier(0.3, (0.05,), 0.1, 10), max_width=4)
    assert rule_to_dict(policy)["select"] == {
        "rule": "Threshold",
        "tau": {"rule": "Bezier", "start": 0.3, "control": [0.05], "end": 0.1, "steps": 10},
        "max_width": 4,
    }


@pytest.mark.parametrize(
    ("tau", "width"),
    [(Linear(0.5, 0.2, 4), 5), (Linear(0.2, 0.5, 4), 5), (ReLU(0.5, 2, -0.1, 0.25), 4)],
)
def test_memory_is_planned_for_the_lowest_threshold(tau, width: int) -> None:
    assert largest_width(Threshold(tau, 100)) == width
    assert largest_width(Threshold(tau, 2)) == 2
