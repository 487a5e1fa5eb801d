"""The awslogs driver's options, and how lines become events."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules.awslogs import MAX_EVENT_BYTES, LineJoiner, parse_options, parse_size
from hutch.rules.regex import linear_pattern

GROUP = {"awslogs-group": "/g", "awslogs-region": "us-east-1"}


def test_defaults_are_awss() -> None:
    options = parse_options(GROUP)
    assert (options.group, options.create_group, options.start, options.blocking, options.buffer_bytes) == (
        "/g",
        False,
        None,
        False,
        10 * 2**20,
    )


@pytest.mark.parametrize(
    ("given", "name", "value"),
    [
        ({"awslogs-create-group": "true"}, "create_group", True),
        ({"awslogs-create-group": "True"}, "create_group", True),
        ({"mode": "blocking"}, "blocking", True),
        ({"mode": "non-blocking"}, "blocking", False),
        ({"max-buffer-size": "25m"}, "buffer_bytes", 25 * 2**20),
    ],
)
def test_options(given: dict[str, str], name: str, value: object) -> None:
    assert getattr(parse_options({**GROUP, **given}), name) == value


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("5b", 5), ("1k", 1024), ("2M", 2 * 2**20), ("1g", 2**30)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "m", "1t", "-1k", "1.5m", "1 m", "9" * 13])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"awslogs-multiline-pattern": "("}, "awslogs-multiline-pattern is not a regular expression"),
        ({"awslogs-multiline-pattern": r"(a)\1"}, "awslogs-multiline-pattern is not a regular expression"),
        ({"awslogs-multiline-pattern": "x" * 513}, "awslogs-multiline-pattern can have at most 512"),
        ({"awslogs-datetime-format": "%" * 513}, "awslogs-datetime-format can have at most 512"),
        ({"awslogs-group": ""}, "requires options"),
    ],
)
def test_what_can_not_be_used_is_refused_by_name(given: dict[str, str], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        parse_options({**GROUP, **given})


@pytest.mark.parametrize(
    ("template", "line", "wanted"),
    [
        ("%Y-%m-%d %H:%M:%S", "2026-11-21 07:00:00 x", True),
        ("%Y-%m-%d %H:%M:%S", "  at x.y(z)", False),
        ("%b %d, %Y", "Nov 21, 2026", True),
        ("[%d/%b/%Y:%H:%M:%S %z]", "[21/Nov/2026:07:00:00 +0000]", True),
        ("%A, %d %B %Y %I:%M %p", "Saturday, 21 November 2026 07:00 AM", True),
        ("%H:%M:%S%L", "07:00:00.123", True),
        ("%H:%M:%S.%f", "07:00:00.123456", True),
        ("%j %y %w %a %Z", "325 26 6 Sat UTC", True),
        ("100%%", "100%", True),
        ("100%%", "100", False),
        ("(.*) %Y", "(x) 2026", False),
        ("(.*) %Y", "(.*) 2026", True),
    ],
)
def test_a_datetime_format_finds_the_first_lines(template: str, line: str, wanted: bool) -> None:
    start = parse_options({**GROUP, "awslogs-datetime-format": template}).start
    assert start is not None and start.search(line) is wanted


def test_a_hostile_pattern_takes_linear_time() -> None:
    joiner = LineJoiner(parse_options({**GROUP, "awslogs-multiline-pattern": "(a|aa|a?)+(a+)+$"}).start)
    started = time.process_time()
    for _ in range(1000):
        joiner.feed(0, "a" * 100_000 + "b")
    assert time.process_time() - started < 2


def test_each_line_is_an_event_unless_a_pattern_says_otherwise() -> None:
    joiner = LineJoiner(None)
    assert joiner.feed(1, "a") == [(1, "a")] and joiner.feed(2, " ") == [] and not joiner.is_waiting
    joiner = LineJoiner(linear_pattern("^ERR"))
    assert joiner.feed(1, "ERR one") == []
    assert joiner.feed(2, " more") == [] and joiner.is_waiting
    assert joiner.feed(3, "ERR two") == [(1, "ERR one\n more")]
    assert joiner.flush() == [(3, "ERR two")] and joiner.flush() == [] and not joiner.is_waiting


@given(st.lists(st.sampled_from(["E", "E x", " y", "z", "é" * 5]), max_size=60))
def test_a_joiner_neither_loses_nor_invents_anything(lines: list[str]) -> None:
    joiner = LineJoiner(linear_pattern("^E"))
    events = [e for at, line in enumerate(lines) for e in joiner.feed(at, line)] + joiner.flush()
    assert "\n".join(text for _, text in events) == "\n".join(lines)
    assert [at for at, _ in events] == sorted(at for at, _ in events)
    assert all(lines[at] == text.split("\n")[0] for at, text in events)


@pytest.mark.parametrize("character", ["a", "é", "語", "😀"])
@pytest.mark.parametrize("start", [None, linear_pattern("^START")])
def test_no_event_is_longer_than_aws_takes(character: str, start: object) -> None:
    joiner = LineJoiner(start)  # type: ignore[arg-type]
    line = character * (MAX_EVENT_BYTES // 2 + 1)
    texts = [t for at in range(5) for _, t in joiner.feed(at, line)] + [t for _, t in joiner.flush()]
    assert all(len(t.encode()) <= MAX_EVENT_BYTES for t in texts)
    assert "".join(texts).replace("\n", "") == line * 5


def test_a_line_that_fits_stays_whole() -> None:
    line = "a" * MAX_EVENT_BYTES
    assert LineJoiner(None).feed(0, line) == [(0, line)]
