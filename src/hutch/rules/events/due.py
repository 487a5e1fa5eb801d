"""When a schedule is due next, and what is made up for after a pause of the platform."""

import hashlib

import msgspec
from msgspec.structs import replace

from hutch.model.event import ENABLED, EventRule, Schedule
from hutch.rules.events.schedule import At, count_between, next_after, parse

ON_TIME_S = 60.0
"""As long as a run is not later than this, every run is made up; after a longer pause only the newest one."""
_JUST_BEFORE_S = 1e-6


class Due(msgspec.Struct, frozen=True, kw_only=True):
    """What to do about a schedule whose time has come."""

    nominal_at: float
    """The time by its expression that is run, or was missed."""
    missed_before: int
    """How many times before that one are not run."""
    run: bool
    """False: it is too late for this one as well."""


def decide(
    expression: str,
    nominal_at: float,
    next_at: float,
    now: float,
    *,
    anchor: float,
    time_zone: str = "UTC",
    max_age_s: float,
) -> Due:
    """What a schedule that was due at `next_at` does at `now`."""
    if now - next_at <= ON_TIME_S:
        return Due(nominal_at=nominal_at, missed_before=0, run=True)
    count, newest = count_between(
        parse(expression), nominal_at - _JUST_BEFORE_S, now, anchor=anchor, time_zone=time_zone
    )
    newest = nominal_at if newest is None else newest
    return Due(nominal_at=newest, missed_before=max(0, count - 1), run=now - newest <= max_age_s)


def planned_rule(rule: EventRule, after: float) -> EventRule:
    """The rule with the time that is due next after a moment."""
    if not rule.schedule or rule.state != ENABLED:
        return replace(rule, next_at=None)
    return replace(rule, next_at=next_after(parse(rule.schedule), after, anchor=rule.anchor))


def planned_schedule(schedule: Schedule, after: float) -> Schedule:
    """The schedule with the time that is due next after a moment, within its start, end and flexible window."""
    if schedule.state != ENABLED:
        return replace(schedule, nominal_at=None, next_at=None)
    expression = parse(schedule.expression)
    bounded = not isinstance(expression, At)
    if bounded and schedule.start_at is not None:
        after = max(after, schedule.start_at - _JUST_BEFORE_S)
    nominal = next_after(expression, after, anchor=schedule.anchor, time_zone=schedule.time_zone)
    if nominal is None or (bounded and schedule.end_at is not None and nominal > schedule.end_at):
        return replace(schedule, nominal_at=None, next_at=None)
    return replace(schedule, nominal_at=nominal, next_at=nominal + _offset_s(schedule, nominal))


def _offset_s(schedule: Schedule, nominal: float) -> float:
    """Where in its window a run is: anywhere, and always the same for the same run."""
    digest = hashlib.sha256(f"{schedule.owner}/{nominal:.6f}".encode()).digest()
    return schedule.window_minutes * 60 * int.from_bytes(digest[:4], "big") / 2**32
