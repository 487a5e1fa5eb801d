"""What a schedule does when its time has come, and after a pause of the platform."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.model.event import Schedule, Target
from hutch.rules.events.due import ON_TIME_S, decide, planned_schedule

DAY = 86_400.0


def schedule(expression: str = "rate(1 hour)", **more: object) -> Schedule:
    return Schedule(name="s", expression=expression, target=Target(arn="http://x"), created_at=0.0, modified_at=0.0,
                    anchor=0.0, **more)  # type: ignore[arg-type]  # fmt: skip


@given(st.floats(0, ON_TIME_S))
def test_on_time_every_run_is_made(late: float) -> None:
    due = decide("rate(1 second)", 1000.0, 1000.0, 1000.0 + late, anchor=0.0, max_age_s=DAY)
    assert (due.nominal_at, due.missed_before, due.run) == (1000.0, 0, True)


@pytest.mark.parametrize(
    ("pause", "newest", "missed", "run"),
    [
        (2 * 3600, 3 * 3600, 2, True),
        (2.5 * 3600, 3 * 3600, 2, True),
        (10 * DAY, 3600 + 10 * DAY, 240, True),
    ],
)
def test_after_a_pause_only_the_newest_run_is_made_up(
    pause: float, newest: float, missed: int, run: bool
) -> None:
    due = decide("rate(1 hour)", 3600.0, 3600.0, 3600.0 + pause, anchor=0.0, max_age_s=DAY)
    assert (due.nominal_at, due.missed_before, due.run) == (newest, missed, run)


def test_what_is_too_late_is_not_run() -> None:
    due = decide("at(1970-01-02T00:00:00)", DAY, DAY, DAY + 601, anchor=0.0, max_age_s=600)
    assert (due.nominal_at, due.run) == (DAY, False)
    assert decide("at(1970-01-02T00:00:00)", DAY, DAY, DAY + 599, anchor=0.0, max_age_s=600).run


@given(st.integers(1, 1440), st.floats(0, 1e9))
def test_a_flexible_run_is_in_its_window_and_always_at_the_same_place(minutes: int, after: float) -> None:
    planned = planned_schedule(schedule(window_minutes=minutes), after)
    assert planned.nominal_at is not None and planned.next_at is not None
    assert planned.nominal_at > after
    assert 0 <= planned.next_at - planned.nominal_at < minutes * 60
    assert planned_schedule(schedule(window_minutes=minutes), after).next_at == planned.next_at


def test_start_and_end() -> None:
    bounded = schedule("cron(0 0 * * ? *)", start_at=10 * DAY, end_at=11 * DAY)
    first = planned_schedule(bounded, 0.0)
    assert first.next_at == 10 * DAY
    second = planned_schedule(first, 10 * DAY)
    assert second.next_at == 11 * DAY
    assert planned_schedule(second, 11 * DAY).next_at is None
    assert planned_schedule(schedule(state="DISABLED"), 0.0).next_at is None
