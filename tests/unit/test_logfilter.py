"""CloudWatch's filter patterns, and the linear-time matching below them."""

import fnmatch
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules.logfilter import parse_filter
from hutch.rules.regex import LinearPattern, Wildcard

EVENT = json.dumps(
    {
        "level": "ERROR",
        "code": 404,
        "ms": 12.5,
        "ok": True,
        "bad": False,
        "none": None,
        "user": {"id": "u-1", "tags": ["a", "b"]},
        "items": [{"n": 1}, {"n": 2}],
        "path": "/api/v1/things",
        "odd": "\ud800",
    }
)
LINE = '127.0.0.1 Prod frank [10/Oct/2000:13:25:15 -0700] "GET /index.html HTTP/1.0" 404 1534'


@pytest.mark.parametrize(
    ("pattern", "message", "wanted"),
    [
        ("", "anything", True),
        ("ERROR", "an ERROR here", True),
        ("ERROR", "an error here", False),
        ("ERROR disk", "disk: ERROR", True),
        ("ERROR disk", "ERROR only", False),
        ('"disk full"', "the disk full", True),
        ('"disk full"', "full disk", False),
        (r'"a \"quoted\" word"', 'a "quoted" word', True),
        ("?ERROR ?WARN", "a WARN", True),
        ("?ERROR ?WARN", "an INFO", False),
        ("ERROR -ignored", "ERROR", True),
        ("ERROR -ignored", "ERROR ignored", False),
        ('-"two words"', "two words", False),
        ('-"two words"', "two", True),
        ("%[45][0-9]{2}%", "status 503", True),
        ("%[45][0-9]{2}%", "status 200", False),
        ("-%^DEBUG%", "DEBUG x", False),
        ("100%", "at 100%", True),
        ('{ $.level = "ERROR" }', EVENT, True),
        ("{ $.level = ERROR }", EVENT, True),
        ('{ $.level != "ERROR" }', EVENT, False),
        ("{ $.level = E*R }", EVENT, True),
        ("{ $.level = %^ERR% }", EVENT, True),
        ("{ $.code = 404 }", EVENT, True),
        ("{ $.code = 4* }", EVENT, True),
        ("{ $.code >= 400 && $.code < 500 }", EVENT, True),
        ("{ $.code > 404 }", EVENT, False),
        ("{ $.ms <= 12.5 }", EVENT, True),
        ("{ $.ms = 1.25e1 }", EVENT, True),
        ("{ $.ok IS TRUE }", EVENT, True),
        ("{ $.bad IS FALSE }", EVENT, True),
        ("{ $.ok IS FALSE }", EVENT, False),
        ("{ $.ok = true }", EVENT, True),
        ("{ $.none IS NULL }", EVENT, True),
        ("{ $.level IS NULL }", EVENT, False),
        ("{ $.gone IS NULL }", EVENT, False),
        ("{ $.gone NOT EXISTS }", EVENT, True),
        ("{ $.user NOT EXISTS }", EVENT, False),
        ("{ $.none EXISTS }", EVENT, True),
        ("{ $.gone = 1 }", EVENT, False),
        ("{ $.gone != 1 }", EVENT, False),
        ('{ $.user.id = "u-1" }', EVENT, True),
        ('{ $.user.tags[1] = "b" }', EVENT, True),
        ("{ $.items[0].n = 1 && $.items[1].n = 2 }", EVENT, True),
        ("{ $.items[9].n = 1 }", EVENT, False),
        ("{ $.code = 1 || ($.code = 404 && $.ms > 12) }", EVENT, True),
        ("{ ($.code = 404 || $.code = 1) && $.ms > 13 }", EVENT, False),
        ('{ $.path = "/api/*/things" }', EVENT, True),
        ("{ $.odd = x* }", EVENT, False),
        ("{ $.odd = %x% }", EVENT, False),
        ("{ $.code = 404 }", "not JSON", False),
        ("{ $.code = 404 }", "[" * 100_000, False),
        ("{ $[1] = 2 }", "[1, 2]", True),
        ("[ip, env, user, when, request, status = 404, bytes]", LINE, True),
        ("[ip, env, user, when, request, status = 4*, bytes > 1000]", LINE, True),
        ("[ip, env, user, when, request, status, bytes < 1000]", LINE, False),
        ("[ip, env]", LINE, False),
        ("[ip = 127.0.0.1, ...]", LINE, True),
        ("[..., status = 404, bytes]", LINE, True),
        ("[ip, ..., bytes = 1534]", LINE, True),
        ('[ip, env, user, when, request = "*index*", ...]', LINE, True),
        ("[ip, env, user, when, request = %GET|PUT%, ...]", LINE, True),
        ("[ip, env, user = frank || user = ann, ...]", LINE, True),
        ("[ip, env, user != frank && user != ann, ...]", LINE, False),
    ],
)
def test_what_a_pattern_matches(pattern: str, message: str, wanted: bool) -> None:
    assert parse_filter(pattern)(message) is wanted


@pytest.mark.parametrize(
    "pattern",
    [
        "{",
        "{ $.a }",
        "{ $.a = }",
        "{ a = 1 }",
        "{ $.a = 1",
        "{ $.a = 1 && }",
        "{ ($.a = 1 }",
        "{ $.a = 1 ) }",
        "{ $.a ~ 1 }",
        "{ $.a > b }",
        "{ $.a IS WHAT }",
        "{ $.a NOT NULL }",
        "{ $..a = 1 }",
        "{ $.a[x] = 1 }",
        "{ $.a = %(% }",
        "{ $.a = %(?=x)y% }",
        "{ " + "(" * 300 + "$.a = 1" + ")" * 300 + " }",
        "[",
        "[a, ..., b, ...]",
        "[a, , b]",
        "[a = 1 && b = 2]",
        "[a,b" + ",c" * 200 + "]",
        '"open',
        "%(%",
        "x" * 1025,
    ],
)
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(Invalid):
        parse_filter(pattern)


@given(st.text(max_size=60), st.text(max_size=60))
def test_no_pattern_breaks_the_parser(pattern: str, message: str) -> None:
    for text in (pattern, f"{{ {pattern} }}", f"[{pattern}]", f"{{ $.a = {pattern} }}", f"[a = {pattern}]"):
        try:
            matches = parse_filter(text)
        except Invalid:
            continue
        for m in (message, json.dumps({"a": message}), pattern):
            assert matches(m) in (True, False)


@given(st.text(alphabet="ab*", max_size=8), st.text(alphabet="ab", max_size=12))
def test_a_wildcard_matches_as_a_shell_pattern_does(pattern: str, text: str) -> None:
    assert Wildcard(pattern).matches(text) == fnmatch.fnmatchcase(text, pattern)


@given(st.text(alphabet="ab*.", max_size=8), st.text(alphabet="ab", max_size=12))
def test_a_wildcard_with_dots_matches_as_its_regular_expression(pattern: str, text: str) -> None:
    expected = re.fullmatch(pattern.replace("*", ".*"), text) is not None
    assert Wildcard(pattern, dots=True).matches(text) == expected


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{ $.a = a*a*a*a*a*a*a*a*b }", json.dumps({"a": "a" * 200_000})),
        ("%(a+)+$%", "a" * 200_000 + "b"),
        ("{ $.a = %(x+x+)+y% }", json.dumps({"a": "x" * 200_000})),
        ("[a = a*a*a*a*a*b]", "a" * 200_000),
        ("[a, b]", '"' * 100_000 + "[" * 100_000),
    ],
)
def test_a_hostile_pattern_takes_linear_time(pattern: str, message: str) -> None:
    started = time.process_time()
    assert parse_filter(pattern)(message) is False
    assert time.process_time() - started < 5


@pytest.mark.parametrize("pattern", ["(", "a{2000}", r"(?:\pL{1,30}){33}", r"\1", "(?=a)", "(?<=a)b"])
def test_what_re2_can_not_do_is_refused_in_words(pattern: str) -> None:
    with pytest.raises(Invalid, match="RE2"):
        LinearPattern(pattern)
