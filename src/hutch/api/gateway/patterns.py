"""Which of the models' regular expressions can be run on hostile input.

The models' patterns are Java's and were written for an engine with limits. Python's engine backtracks without
one, so a pattern is used only if its cost is bounded: no unbounded repeat inside another, at most two in a
row that could share characters (quadratic in a value whose length is bounded too). The use cases check what
is left out.
"""

import re
from collections.abc import Iterable
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

MAX_PATTERN_INPUT = 2048
"""Characters of a value that a pattern is tried on, unless one pass always does (`longest_input`)."""
_SMALL_REPEAT = 8
_ALPHABET = frozenset(range(129))
"""ASCII, and 128 for every other character."""

_CATEGORIES = {
    sre.CATEGORY_DIGIT: re.compile(r"\d"),
    sre.CATEGORY_NOT_DIGIT: re.compile(r"\D"),
    sre.CATEGORY_SPACE: re.compile(r"\s"),
    sre.CATEGORY_NOT_SPACE: re.compile(r"\S"),
    sre.CATEGORY_WORD: re.compile(r"\w"),
    sre.CATEGORY_NOT_WORD: re.compile(r"\W"),
}

_SEPARATORS = " \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""Unicode's category Z."""

Chars = frozenset[int]


class _Unsafe(Exception):
    """The pattern has a construct whose cost is not bounded here."""


def compile_pattern(source: str | None) -> re.Pattern[str] | None:
    """The pattern ready to use; None if it can't be said in Python, or could run for ever."""
    if not source:
        return None
    source = _python_classes(source)
    try:
        compiled = re.compile(source)
        _check(sre_parser.parse(source))
    except (re.error, _Unsafe, OverflowError, RecursionError):
        return None
    return compiled


def longest_input(pattern: re.Pattern[str]) -> int | None:
    """How long a value may be for a pattern of `compile_pattern`; None: a repeated set of characters needs one pass,
    so that any length will do (policy documents have such patterns)."""
    parsed = list(sre_parser.parse(pattern.pattern))
    if len(parsed) == 1 and parsed[0][0] is sre.MAX_REPEAT:
        repeated = list(parsed[0][1][2])
        if len(repeated) == 1 and repeated[0][0] in (sre.IN, sre.LITERAL, sre.NOT_LITERAL, sre.ANY):
            return None
    return MAX_PATTERN_INPUT


def _python_classes(source: str) -> str:
    """Java's Unicode classes, where Python has the same: letters, numbers and `_` together are its `\\w`."""
    if r"\p{L}" in source and r"\p{N}_" in source:
        source = source.replace(r"\p{L}", r"\w").replace(r"\p{N}_", "")
    return source.replace(r"\p{Z}", _SEPARATORS)


def _check(parsed: Any) -> None:
    run: list[Chars] = []
    for piece in _flatten(parsed):
        repeated, chars = piece
        if repeated:
            run = [*run, chars] if run and any(chars & c for c in run) else [chars]
            if len(run) > 2:
                raise _Unsafe
        elif run and not any(chars & c for c in run):
            run = []


def _flatten(parsed: Iterable[Any]) -> list[tuple[bool, Chars]]:
    """The pattern as a row of (is an unbounded repeat, characters it can match)."""
    row: list[tuple[bool, Chars]] = []
    for op, av in parsed:
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            row += _repeat(av[0], av[1], av[2])
        elif op is sre.SUBPATTERN:
            row += _flatten(av[3])
        elif op is sre.BRANCH:
            row += _branch([_flatten(b) for b in av[1]])
        elif op is sre.AT:
            continue
        elif op in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY):
            row.append((False, _chars(op, av)))
        else:
            raise _Unsafe
    return row


def _repeat(low: int, high: int, body: Any) -> list[tuple[bool, Chars]]:
    inner = _flatten(body)
    everything: Chars = frozenset().union(*(chars for _, chars in inner))
    nested = any(repeated for repeated, _ in inner)
    shortest, longest = body.getwidth()
    if high > 1 and shortest != longest and (not shortest or len(inner) < 2 or not _disjoint(inner)):
        # Rounds of different lengths that nothing tells apart: exponentially many ways to split a value.
        raise _Unsafe
    if high is sre.MAXREPEAT or high > _SMALL_REPEAT:
        if nested or (low != high and not _disjoint(inner)):
            raise _Unsafe
        return [(low != high, everything)]
    if nested and high > 1:
        return inner * int(high)
    # What may be left out separates nothing: it counts as something that can match all around it.
    return inner if low else [(repeated, chars if repeated else _ALPHABET) for repeated, chars in inner]


def _branch(ways: list[list[tuple[bool, Chars]]]) -> list[tuple[bool, Chars]]:
    repeats = [w for w in ways if any(repeated for repeated, _ in w)]
    if len(repeats) > 1:
        return [(True, frozenset().union(*(c for w in ways for _, c in w)))] * max(len(w) for w in repeats)
    if repeats:
        return repeats[0]
    return [(False, _ALPHABET)]


def _disjoint(inner: list[tuple[bool, Chars]]) -> bool:
    seen: set[int] = set()
    for _, chars in inner:
        if seen & chars:
            return False
        seen |= chars
    return True


def _chars(op: Any, av: Any) -> Chars:
    if op is sre.ANY:
        return _ALPHABET
    if op is sre.LITERAL:
        return frozenset((min(av, 128),))
    if op is sre.NOT_LITERAL:
        return _ALPHABET - (frozenset((av,)) if av < 128 else frozenset())
    found: set[int] = set()
    negated = False
    for kind, value in av:
        if kind is sre.NEGATE:
            negated = True
        elif kind is sre.LITERAL:
            found.add(min(value, 128))
        elif kind is sre.RANGE:
            found.update(range(min(value[0], 128), min(value[1], 128) + 1))
        elif kind is sre.CATEGORY:
            probe = _CATEGORIES[value]
            found.update(c for c in range(128) if probe.match(chr(c)))
            found.add(128)
        else:
            raise _Unsafe
    if not negated:
        return frozenset(found)
    return (_ALPHABET - found) | {128}
