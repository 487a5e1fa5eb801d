"""Schedule expressions: `rate(5 minutes)`, `cron(0 12 * * ? *)`, `at(2030-01-01T00:00:00)`, and when they are due next.

A cron expression goes by the wall clock of a time zone. A local time that does not exist (clocks go forward) is left
out; one that exists twice (clocks go back) counts once, the first time: as EventBridge Scheduler does it. A rate goes
by elapsed time from its anchor, whatever else happens, so it never drifts.
"""

import calendar
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

import msgspec

from hutch.base.errors import Invalid

FIRST_YEAR, LAST_YEAR = 1970, 2199
MAX_RATE_S = 366 * 10 * 86400
MAX_COUNTED = 10_000
_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_MONTHS = {
    name: n
    for n, name in enumerate(
        ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"], 1
    )
}
_DAYS = {name: n for n, name in enumerate(["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"], 1)}


class Rate(msgspec.Struct, frozen=True):
    """Every `period_s` seconds."""

    period_s: int


class At(msgspec.Struct, frozen=True):
    """Once, at a local time ("2030-01-01T00:00:00")."""

    local: str


class Cron(msgspec.Struct, frozen=True):
    """By the wall clock. Days of the month and of the week are kept as their fields' items: "?" is ()."""

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    month_days: tuple[str, ...]
    months: tuple[int, ...]
    week_days: tuple[str, ...]
    years: frozenset[int]


Expression = Rate | At | Cron


@lru_cache(1024)
def parse(text: str) -> Expression:
    """An expression from its text. Raises `Invalid`. `rate(n seconds)` is hutch's own."""
    match = re.fullmatch(r"(rate|cron|at)\((.{1,200})\)", text)
    if match is None:
        raise _refusal(text, "it must be rate(...), cron(...) or at(...)")
    kind, inner = match[1], match[2].strip()
    try:
        if kind == "rate":
            return _rate(inner)
        if kind == "at":
            datetime.strptime(inner, "%Y-%m-%dT%H:%M:%S")
            return At(inner)
        return _cron(inner)
    except ValueError as error:
        raise _refusal(text, str(error)) from None


def zone(name: str) -> ZoneInfo:
    """A time zone by its IANA name. Raises `Invalid`."""
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise Invalid(f"{name[:64]!r} is not the name of a time zone.") from None


def next_after(
    expression: Expression, moment: float, *, anchor: float, time_zone: str = "UTC"
) -> float | None:
    """The first time (epoch seconds) after `moment`; None if there is none. A rate counts from `anchor`, where its
    first time is."""
    if isinstance(expression, Rate):
        if moment < anchor:
            return anchor
        done = int((moment - anchor) // expression.period_s)
        following = anchor + done * expression.period_s
        while following <= moment:
            done += 1
            following = anchor + done * expression.period_s
        return following
    local_zone = zone(time_zone)
    if isinstance(expression, At):
        when = datetime.fromisoformat(expression.local).replace(tzinfo=local_zone).timestamp()
        return when if when > moment else None
    if moment < 0:
        moment = 0.0
    if moment > datetime(LAST_YEAR, 12, 31, tzinfo=UTC).timestamp():
        return None
    start = datetime.fromtimestamp(moment, local_zone).replace(tzinfo=None, second=0, microsecond=0)
    return _next_cron(expression, start, moment, local_zone)


def count_between(
    expression: Expression, after: float, until: float, *, anchor: float, time_zone: str = "UTC"
) -> tuple[int, float | None]:
    """How many times lie in (after, until], at most `MAX_COUNTED`, and the newest of them."""
    if isinstance(expression, Rate):
        if until < anchor:
            return 0, None
        newest = anchor + int((until - anchor) // expression.period_s) * expression.period_s
        if newest <= after:
            return 0, None
        first = next_after(expression, after, anchor=anchor)
        assert first is not None
        return min(round((newest - first) / expression.period_s) + 1, MAX_COUNTED), newest
    count, newest_seen, at = 0, None, after
    while count < MAX_COUNTED:
        following = next_after(expression, at, anchor=anchor, time_zone=time_zone)
        if following is None or following > until:
            break
        count, newest_seen, at = count + 1, following, following
    return count, newest_seen


def _next_cron(cron: Cron, start: datetime, moment: float, local_zone: ZoneInfo) -> float | None:
    for year in range(max(start.year, FIRST_YEAR), LAST_YEAR + 1):
        if year not in cron.years:
            continue
        for month in cron.months:
            if (year, month) < (start.year, start.month):
                continue
            for day in _days(cron, year, month):
                if (year, month, day) < (start.year, start.month, start.day):
                    continue
                found = _next_in_day(cron, datetime(year, month, day), start, moment, local_zone)
                if found is not None:
                    return found
    return None


def _next_in_day(
    cron: Cron, day: datetime, start: datetime, moment: float, local_zone: ZoneInfo
) -> float | None:
    for hour in cron.hours:
        if day + timedelta(hours=hour, minutes=59) < start:
            continue
        for minute in cron.minutes:
            local = day.replace(hour=hour, minute=minute)
            when = local.replace(tzinfo=local_zone).timestamp()
            if when <= moment:
                continue
            if datetime.fromtimestamp(when, local_zone).replace(tzinfo=None) == local:
                return when
    return None


def _days(cron: Cron, year: int, month: int) -> list[int]:
    """The days of a month that the expression names, in order."""
    last = calendar.monthrange(year, month)[1]
    found: set[int] = set()
    for item in cron.month_days:
        if item == "L":
            found.add(last)
        elif item.endswith("W"):
            wanted = last if item == "LW" else int(item[:-1])
            if wanted <= last:
                found.add(_nearest_weekday(year, month, wanted, last))
        elif int(item) <= last:
            found.add(int(item))
    for item in cron.week_days:
        name, _, nth = item.partition("#")
        # Monday is 0 for the calendar, Sunday 1 for cron.
        first = (int(name.rstrip("L")) - 2 - calendar.weekday(year, month, 1)) % 7 + 1
        days = list(range(first, last + 1, 7))
        if nth:
            found.update(days[int(nth) - 1 : int(nth)])
        elif name.endswith("L"):
            found.add(days[-1])
        else:
            found.update(days)
    return sorted(found)


def _nearest_weekday(year: int, month: int, day: int, last: int) -> int:
    """The day itself, or the working day next to it in the same month."""
    weekday = calendar.weekday(year, month, day)
    if weekday == 5:
        return day - 1 if day > 1 else day + 2
    if weekday == 6:
        return day + 1 if day < last else day - 2
    return day


def _rate(text: str) -> Rate:
    match = re.fullmatch(r"([0-9]{1,9}) +(second|minute|hour|day)(s?)", text)
    if match is None or int(match[1]) < 1:
        raise ValueError("a rate is such as rate(1 minute), rate(5 minutes), rate(1 day)")
    if int(match[1]) > 1 and not match[3]:
        raise ValueError(f"a value greater than 1 needs the unit {match[2]}s")
    period = int(match[1]) * _UNITS[match[2]]
    if period > MAX_RATE_S:
        raise ValueError(f"a rate can have at most {MAX_RATE_S // 86400} days")
    return Rate(period)


def _cron(text: str) -> Cron:
    fields = text.upper().split()
    if len(fields) != 6:
        raise ValueError("cron has six fields: minutes, hours, day of month, month, day of week, year")
    minutes, hours, month_day, month, week_day, year = fields
    if (month_day == "?") == (week_day == "?"):
        raise ValueError("exactly one of day of month and day of week must be '?'")
    return Cron(
        minutes=_numbers(minutes, 0, 59, {}),
        hours=_numbers(hours, 0, 23, {}),
        month_days=() if month_day == "?" else _month_days(month_day),
        months=_numbers(month, 1, 12, _MONTHS),
        week_days=() if week_day == "?" else _week_days(week_day),
        years=frozenset(_numbers(year, FIRST_YEAR, LAST_YEAR, {})),
    )


def _month_days(field: str) -> tuple[str, ...]:
    items: list[str] = []
    for item in field.split(","):
        if item in ("L", "LW") or (re.fullmatch(r"[0-9]{1,2}W", item) and 1 <= int(item[:-1]) <= 31):
            items.append(item)
        else:
            items += map(str, _numbers(item, 1, 31, {}))
    return tuple(items)


def _week_days(field: str) -> tuple[str, ...]:
    items: list[str] = []
    for item in field.split(","):
        name, mark, nth = item.partition("#")
        if mark:
            if nth not in ("1", "2", "3", "4", "5"):
                raise ValueError(f"{item!r}: behind '#' stands which one of the month, 1 to 5")
            items.append(f"{_one(name, 1, 7, _DAYS)}#{nth}")
        elif item == "L":
            items.append("7")
        elif item.endswith("L"):
            items.append(f"{_one(item[:-1], 1, 7, _DAYS)}L")
        else:
            items += map(str, _numbers(item, 1, 7, _DAYS))
    return tuple(items)


def _numbers(field: str, low: int, high: int, names: dict[str, int]) -> tuple[int, ...]:
    """`*`, `5`, `1-5`, `MON-FRI`, `0/15`, `1-30/5`, lists of these; in order."""
    found: set[int] = set()
    for item in field.split(","):
        span, slash, step_text = item.partition("/")
        step = _one(step_text, 1, high, {}) if slash else 1
        first_text, dash, last_text = span.partition("-")
        if span == "*":
            first, last = low, high
        else:
            first = _one(first_text, low, high, names)
            last = _one(last_text, low, high, names) if dash else (high if slash else first)
        if first <= last:
            found.update(range(first, last + 1, step))
        else:
            # Around the end, such as FRI-MON.
            found.update(v for v in [*range(first, high + 1), *range(low, last + 1)][::step])
    return tuple(sorted(found))


def _one(text: str, low: int, high: int, names: dict[str, int]) -> int:
    if text in names:
        return names[text]
    if not re.fullmatch(r"[0-9]{1,4}", text) or not low <= int(text) <= high:
        raise ValueError(f"{text!r} is not a value from {low} to {high}")
    return int(text)


def _refusal(text: str, why: str) -> Invalid:
    return Invalid(f"Invalid Schedule Expression {text[:100]}: {why}.")
