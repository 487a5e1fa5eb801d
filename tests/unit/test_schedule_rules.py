"""Schedule expressions against a minute by minute search, and the days on which clocks change."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules.events.schedule import count_between, next_after, parse

BASE = datetime(2027, 3, 1, tzinfo=UTC)


def utc(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def following(expression: str, moment: str, zone: str = "UTC") -> str | None:
    found = next_after(parse(expression), utc(moment), anchor=0.0, time_zone=zone)
    return None if found is None else datetime.fromtimestamp(found, UTC).strftime("%Y-%m-%dT%H:%M")


@pytest.mark.parametrize(
    ("expression", "moment", "expected"),
    [
        ("cron(0 10 * * ? *)", "2027-01-01T10:00", "2027-01-02T10:00"),
        ("cron(15 12 * * ? *)", "2027-01-01T10:00", "2027-01-01T12:15"),
        ("cron(0 18 ? * MON-FRI *)", "2027-01-01T19:00", "2027-01-04T18:00"),
        ("cron(0 8 1 * ? *)", "2027-01-01T08:00", "2027-02-01T08:00"),
        ("cron(0/15 * * * ? *)", "2027-01-01T10:01", "2027-01-01T10:15"),
        ("cron(5/20 8-9 ? * 2 *)", "2027-01-01T10:01", "2027-01-04T08:05"),
        ("cron(0 0 L * ? *)", "2028-02-01T00:00", "2028-02-29T00:00"),
        ("cron(0 0 LW * ? *)", "2027-02-01T00:00", "2027-02-26T00:00"),
        ("cron(0 0 15W 8 ? *)", "2027-01-01T00:00", "2027-08-16T00:00"),
        ("cron(0 0 1W 5 ? *)", "2027-01-01T00:00", "2027-05-03T00:00"),
        ("cron(0 0 ? * 6#3 *)", "2027-01-01T00:00", "2027-01-15T00:00"),
        ("cron(0 0 ? * FRIL *)", "2027-01-01T00:00", "2027-01-29T00:00"),
        ("cron(0 0 ? * L *)", "2027-01-01T00:00", "2027-01-02T00:00"),
        ("cron(0 0 ? * 2#5 *)", "2027-01-01T00:00", "2027-03-29T00:00"),
        ("cron(0 0 29 2 ? *)", "2027-01-01T00:00", "2028-02-29T00:00"),
        ("cron(0 0 30 2 ? *)", "2027-01-01T00:00", None),
        ("cron(0 0 1 JAN ? 2026)", "2027-01-01T00:00", None),
        ("cron(0 0 1 1 ? 2199)", "2027-01-01T00:00", "2199-01-01T00:00"),
        ("cron(0 0 ? * FRI-MON *)", "2027-01-05T00:00", "2027-01-08T00:00"),
        ("at(2027-01-01T00:00:00)", "2027-01-01T00:00", None),
        ("at(2027-01-01T00:00:00)", "2026-01-01T00:00", "2027-01-01T00:00"),
    ],
)
def test_next(expression: str, moment: str, expected: str | None) -> None:
    assert following(expression, moment) == expected


def test_a_time_that_the_clock_skips_is_left_out() -> None:
    # New York, 14 March 2027: 02:00 becomes 03:00.
    assert following("cron(30 2 * * ? *)", "2027-03-13T08:00", "America/New_York") == "2027-03-15T06:30"


def test_a_time_that_comes_twice_counts_once() -> None:
    # New York, 7 November 2027: 02:00 becomes 01:00 again, 05:30 UTC and 06:30 UTC are both half past one.
    zone = "America/New_York"
    assert following("cron(30 1 * * ? *)", "2027-11-07T00:00", zone) == "2027-11-07T05:30"
    assert following("cron(30 1 * * ? *)", "2027-11-07T05:30", zone) == "2027-11-08T06:30"


@pytest.mark.parametrize(
    "text",
    [
        "", "rate()", "rate(0 minutes)", "rate(5 minute)", "rate(-1 minutes)", "rate(5 weeks)", "rate(99999 days)",
        "cron(* * * * * *)", "cron(0 0 ? * ? *)", "cron(0 0 * * ?)", "cron(60 0 * * ? *)", "cron(0 24 * * ? *)",
        "cron(0 0 32 * ? *)", "cron(0 0 * 13 ? *)", "cron(0 0 ? * 8 *)", "cron(0 0 ? * 2#6 *)", "cron(0 0 * * ? 1969)",
        "cron(0/0 * * * ? *)", "cron(0 0 32W * ? *)", "at(2027-13-01T00:00:00)", "at(2027-01-01)", "every(5 minutes)",
    ],
)  # fmt: skip
def test_what_is_no_expression_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        parse(text)


FIELD = st.sampled_from(["*", "0", "7", "3-9", "0/10", "5/7", "1,4,9", "10-2"])
DAY = st.sampled_from(["*", "1", "15", "L", "LW", "10W", "1/5", "28-31"])
WEEK_DAY = st.sampled_from(["*", "1", "MON-FRI", "3L", "SAT", "2#1", "6#5", "L"])


@settings(max_examples=60, deadline=None)
@given(
    FIELD,
    st.sampled_from(["*", "0", "3-9", "0/10", "1,4,9"]),
    st.one_of(DAY.map(lambda d: f"{d} {{}} ?"), WEEK_DAY.map(lambda d: f"? {{}} {d}")),
    st.sampled_from(["*", "3", "MAR-MAY", "2/3"]),
    st.integers(0, 40 * 24 * 60),
    st.sampled_from(["UTC", "America/New_York", "Asia/Kolkata"]),
)
def test_nothing_between_a_moment_and_the_next_time_matches(
    minutes: str, hours: str, days: str, months: str, offset: int, zone: str
) -> None:
    """A second implementation of the fields, asked at every minute of the next days."""
    parsed = parse(f"cron({minutes} {hours} {days.format(months)} *)")
    moment = BASE + timedelta(minutes=offset)
    found = next_after(parsed, moment.timestamp(), anchor=0.0, time_zone=zone)
    assert found is not None and found > moment.timestamp()
    local = datetime.fromtimestamp(found, ZoneInfo(zone))
    assert _allowed(minutes, local.minute, 0, 59) and _allowed(hours, local.hour, 0, 23)
    nearer = next_after(
        parsed, moment.timestamp() + (found - moment.timestamp()) / 2, anchor=0.0, time_zone=zone
    )
    assert nearer == found, "the next time does not depend on where before it one asks"
    if "*" in (minutes,) and hours == "*" and days.startswith("*") and months == "*":
        assert found - moment.timestamp() <= 60


def _allowed(field: str, value: int, low: int, high: int) -> bool:
    def one(item: str) -> bool:
        span, _, step = item.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            return True
        if dash and int(first) > int(last):
            return value >= int(first) or value <= int(last)
        end = int(last) if dash else (high if step else int(first))
        return int(first) <= value <= end and (value - int(first)) % int(step or 1) == 0

    return any(one(item) for item in field.split(","))


@given(st.integers(1, 10_000), st.floats(0, 1e9), st.floats(0, 1e6))
def test_a_rate_never_drifts(minutes: int, anchor: float, later: float) -> None:
    rate = parse(f"rate({minutes} minutes)")
    found = next_after(rate, anchor + later, anchor=anchor)
    assert found is not None and found > anchor + later
    steps = (found - anchor) / (minutes * 60)
    assert abs(steps - round(steps)) < 1e-6
    assert found - (anchor + later) <= minutes * 60 + 1e-3


def test_what_was_missed_is_counted() -> None:
    hourly, at = parse("rate(1 hour)"), utc("2027-01-01T00:00")
    assert count_between(hourly, at, at + 3.5 * 3600, anchor=at) == (3, at + 3 * 3600)
    assert count_between(hourly, at, at + 10, anchor=at) == (0, None)
    daily = parse("cron(0 0 * * ? *)")
    assert count_between(daily, at, at + 3 * 86400, anchor=0.0) == (3, at + 3 * 86400)
    assert count_between(parse("rate(1 second)"), at, at + 1e9, anchor=at)[0] == 10_000
