"""What a filter pattern asks of one value: `= 4*`, `!= "a"`, `> 10`, `= %regex%`."""

from collections.abc import Callable
from typing import Any

from hutch.base.errors import Invalid
from hutch.rules.regex import Wildcard, linear_pattern

Test = Callable[[Any], bool]
_ORDER: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
}


def value_test(operator: str, value: str, kind: str) -> Test:
    """A test of values (JSON values, or the text of a column). `kind` of the value: text (quoted), word or regex."""
    if operator in _ORDER:
        return _ordered(operator, value, kind)
    equal = _regex(value) if kind == "regex" else _equal(value, quoted=kind == "text")
    return equal if operator == "=" else lambda found: not equal(found)


def _ordered(operator: str, value: str, kind: str) -> Test:
    number = None if kind != "word" else _number(value)
    if number is None:
        raise Invalid(f"Invalid filter pattern: {operator} needs a number, not {value[:50]!r}.")
    compare, right = _ORDER[operator], number

    def test(found: Any) -> bool:
        left = _number(found)
        return left is not None and compare(left, right)

    return test


def _regex(pattern: str) -> Test:
    compiled = linear_pattern(pattern)
    return lambda found: isinstance(found, str | int | float) and compiled.search(_text(found))


def _equal(value: str, *, quoted: bool) -> Test:
    wildcard = Wildcard(value) if "*" in value else None
    number = None if quoted else _number(value)

    def test(found: Any) -> bool:
        if isinstance(found, dict | list):
            return False
        if wildcard is not None:
            return wildcard.matches(_text(found))
        if number is not None and (left := _number(found)) is not None:
            return left == number
        return _text(found) == value

    return test


def _number(value: Any) -> float | None:
    """Numbers, and text that is one (columns); JSON's true and false are none."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str) and (len(value) > 64 or not value[-1:].isdigit() or "_" in value):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "null" if value is None else str(value)
