"""Event patterns: every operator as AWS documents it, against a slow and plain reading of the same words."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.base.errors import Invalid
from hutch.rules.events.pattern import compile_pattern

EVENT = {
    "source": "aws.ecs",
    "detail-type": "ECS Task State Change",
    "account": "000000000000",
    "resources": ["arn:a", "arn:b"],
    "detail": {
        "lastStatus": "STOPPED",
        "version": 7,
        "ratio": 0.5,
        "flag": True,
        "none": None,
        "empty": [],
        "ip": "10.0.0.17",
        "path": "/var/log/app.log",
        "containers": [
            {"name": "web", "exitCode": 0},
            {"name": "side", "exitCode": 137},
        ],
    },
}


@pytest.mark.parametrize(
    ("detail", "expected"),
    [
        ({"lastStatus": ["STOPPED"]}, True),
        ({"lastStatus": ["RUNNING"]}, False),
        ({"lastStatus": ["RUNNING", "STOPPED"]}, True),
        ({"version": [7]}, True),
        ({"version": ["7"]}, False),
        ({"flag": [True]}, True),
        ({"flag": [1]}, False),
        ({"version": [True]}, False),
        ({"none": [None]}, True),
        ({"missing": [None]}, False),
        ({"lastStatus": [{"prefix": "STO"}]}, True),
        ({"lastStatus": [{"prefix": "sto"}]}, False),
        ({"lastStatus": [{"prefix": {"equals-ignore-case": "sto"}}]}, True),
        ({"path": [{"suffix": ".log"}]}, True),
        ({"path": [{"suffix": {"equals-ignore-case": ".LOG"}}]}, True),
        ({"lastStatus": [{"equals-ignore-case": "stopped"}]}, True),
        ({"lastStatus": [{"anything-but": "RUNNING"}]}, True),
        ({"lastStatus": [{"anything-but": ["RUNNING", "STOPPED"]}]}, False),
        ({"version": [{"anything-but": [7]}]}, False),
        ({"missing": [{"anything-but": "x"}]}, False),
        ({"path": [{"anything-but": {"prefix": "/var"}}]}, False),
        ({"path": [{"anything-but": {"suffix": [".txt", ".csv"]}}]}, True),
        ({"path": [{"anything-but": {"wildcard": "*/app*"}}]}, False),
        ({"path": [{"anything-but": {"equals-ignore-case": "/VAR/LOG/APP.LOG"}}]}, False),
        ({"version": [{"numeric": [">", 6]}]}, True),
        ({"version": [{"numeric": [">", 7]}]}, False),
        ({"version": [{"numeric": [">=", 7, "<", 8]}]}, True),
        ({"version": [{"numeric": ["=", 7]}]}, True),
        ({"ratio": [{"numeric": ["<", 0.5]}]}, False),
        ({"flag": [{"numeric": ["=", 1]}]}, False),
        ({"lastStatus": [{"exists": True}]}, True),
        ({"lastStatus": [{"exists": False}]}, False),
        ({"missing": [{"exists": False}]}, True),
        ({"missing": {"deeper": [{"exists": False}]}}, True),
        ({"missing": {"deeper": [{"exists": True}]}}, False),
        ({"empty": [{"exists": True}]}, False),
        ({"ip": [{"cidr": "10.0.0.0/24"}]}, True),
        ({"ip": [{"cidr": "10.0.1.0/24"}]}, False),
        ({"path": [{"cidr": "10.0.0.0/24"}]}, False),
        ({"path": [{"wildcard": "/var/*/app.*"}]}, True),
        ({"path": [{"wildcard": "/var/*.txt"}]}, False),
        ({"containers": {"name": ["web"], "exitCode": [0]}}, True),
        ({"containers": {"name": ["web"], "exitCode": [137]}}, False),
        ({"containers": {"exitCode": [{"anything-but": 0}]}}, True),
        ({"$or": [{"version": [1]}, {"lastStatus": ["STOPPED"]}]}, True),
        ({"$or": [{"version": [1]}, {"lastStatus": ["RUNNING"]}]}, False),
        ({"version": [8], "$or": [{"version": [7]}, {"lastStatus": ["STOPPED"]}]}, False),
    ],
)
def test_operators(detail: dict[str, Any], expected: bool) -> None:
    assert compile_pattern(json.dumps({"detail": detail})).matches(EVENT) is expected


def test_an_array_of_the_event_matches_by_any_of_its_values() -> None:
    assert compile_pattern('{"resources": ["arn:b"]}').matches(EVENT)
    assert not compile_pattern('{"resources": ["arn:c"]}').matches(EVENT)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "{",
        '{"a": "b"}',
        '{"a": []}',
        '{"a": {}}',
        '{"a": [["b"]]}',
        '{"a": [{"prefix": 1}]}',
        '{"a": [{"prefix": {"suffix": "x"}}]}',
        '{"a": [{"unknown": "x"}]}',
        '{"a": [{"prefix": "x", "suffix": "y"}]}',
        '{"a": [{"exists": "yes"}]}',
        '{"a": [{"numeric": []}]}',
        '{"a": [{"numeric": ["<"]}]}',
        '{"a": [{"numeric": ["<", "1"]}]}',
        '{"a": [{"numeric": ["<", 1, "<", 2]}]}',
        '{"a": [{"numeric": [">", 5, "<", 1]}]}',
        '{"a": [{"numeric": ["~", 5]}]}',
        '{"a": [{"numeric": [">", 50000000000]}]}',
        '{"a": [{"cidr": "10.0.0.0/99"}]}',
        '{"a": [{"anything-but": []}]}',
        '{"a": [{"anything-but": [1, "x"]}]}',
        '{"a": [{"wildcard": "a**b"}]}',
        '{"a": [{"wildcard": "a\\\\b"}]}',
        '{"$or": [{"a": ["b"]}]}',
        '{"a":' * 40 + '["x"]' + "}" * 40,
    ],
)
def test_what_is_no_pattern_is_refused(text: str) -> None:
    with pytest.raises(Invalid) as refused:
        compile_pattern(text)
    assert refused.value.code == "InvalidEventPatternException"
    assert refused.value.message.startswith("Event pattern is not valid. Reason: ")


@given(st.lists(st.text("ab*\\", max_size=3), max_size=5), st.text("ab*\\", max_size=12))
def test_wildcards_are_those_of_a_backtracking_matcher(pieces: list[str], value: str) -> None:
    literal = [p for p in pieces if p] or ["a"]
    text = "*".join(p.replace("\\", "\\\\").replace("*", "\\*") for p in literal)
    pattern = compile_pattern(json.dumps({"x": [{"wildcard": text}]}))

    def slow(at: int, left: list[str]) -> bool:
        if not left:
            return at == len(value)
        starts = [len(value) - len(left[0])] if len(left) == 1 else list(range(at, len(value) + 1))
        return any(
            s >= at and value.startswith(left[0], s) and slow(s + len(left[0]), left[1:]) for s in starts
        )

    whole = (
        value == literal[0]
        if len(literal) == 1
        else value.startswith(literal[0]) and slow(len(literal[0]), literal[1:])
    )
    assert pattern.matches({"x": value}) is whole


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=4),
                    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["a", "b", "$or"]), inner, max_size=3),
                    max_leaves=12))  # fmt: skip
def test_any_json_is_compiled_or_refused_and_matched_without_error(document: Any) -> None:
    try:
        pattern = compile_pattern(json.dumps(document))
    except Invalid:
        return
    assert pattern.matches(EVENT) in (True, False)
    assert pattern.matches({"a": document, "b": [document]}) in (True, False)


def test_a_hostile_wildcard_takes_linear_time() -> None:
    pattern = compile_pattern(json.dumps({"x": [{"wildcard": "*a" * 1000 + "b"}]}))
    began = time.process_time()
    assert not pattern.matches({"x": "a" * 200_000})
    assert time.process_time() - began < 5
