"""The Condition element: which operators there are, and when they hold."""

import base64
import binascii
import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from hutch.rules.iam.patterns import Context, Pattern

Test = Callable[[str, Context], bool]
"""Whether one value of the request passes one value of the policy."""


class Condition:
    """One operator on one key. `values` are the policy's, compiled: one of them must match, or with a negated operator
    none."""

    __slots__ = ("_all", "_any", "_if_exists", "_negated", "_null", "_tests", "key")

    def __init__(self, operator: str, key: str, values: tuple[str, ...], *, variables: bool) -> None:
        """Raises `ValueError` for an operator that there is not, or a value that it can't compare with."""
        self.key = key.lower()
        quantifier, _, name = operator.rpartition(":")
        folded, quantifier = name.lower(), quantifier.lower()
        if quantifier not in ("", "forallvalues", "foranyvalue"):
            raise ValueError(f"Invalid Condition type : {operator[:100]}")
        self._all, self._any = quantifier == "forallvalues", quantifier == "foranyvalue"
        self._if_exists = folded.endswith("ifexists") and folded != "null"
        folded = folded.removesuffix("ifexists")
        self._null: bool | None = None
        self._negated = False
        self._tests: tuple[Test, ...] = ()
        if folded == "null":
            if any(v.lower() not in ("true", "false") for v in values):
                raise ValueError("The value of Null must be true or false.")
            self._null = any(v.lower() == "true" for v in values)
            return
        if folded not in _OPERATORS:
            raise ValueError(f"Invalid Condition type : {operator[:100]}")
        make, self._negated = _OPERATORS[folded]
        self._tests = tuple(make(v, variables) for v in values)

    def holds(self, context: Context) -> bool:
        """Whether the condition is met."""
        given = context.get(self.key)
        if self._null is not None:
            return (given is None) == self._null
        if not given:
            if self._if_exists or self._all:
                return True
            return self._negated and not self._any
        if self._all:
            return all(self._passes(v, context) for v in given)
        if self._negated and not self._any:
            return all(self._passes(v, context) for v in given)
        return any(self._passes(v, context) for v in given)

    def _passes(self, value: str, context: Context) -> bool:
        return any(test(value, context) for test in self._tests) != self._negated


def _text(*, wildcards: bool, fold: bool) -> Callable[[str, bool], Test]:
    def make(wanted: str, variables: bool) -> Test:
        return Pattern(wanted, variables=variables, wildcards=wildcards, fold=fold).matches

    return make


def _arn(wanted: str, variables: bool) -> Test:
    parts = _arn_parts(wanted)
    if parts is None:
        # What is no ARN can only be a wildcard for all of them, or match nothing.
        return Pattern(wanted, variables=variables).matches if wanted == "*" else lambda value, context: False
    patterns = [Pattern(p, variables=variables) for p in parts]

    def test(value: str, context: Context) -> bool:
        given = _arn_parts(value)
        return given is not None and all(p.matches(g, context) for p, g in zip(patterns, given, strict=True))

    return test


def _arn_parts(arn: str) -> list[str] | None:
    """The six parts of an ARN. A colon inside `${...}` separates nothing."""
    parts: list[str] = []
    depth = start = 0
    for i, letter in enumerate(arn):
        if letter == "{" and arn[i - 1 : i] == "$":
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
        elif letter == ":" and not depth and len(parts) < 5:
            parts.append(arn[start:i])
            start = i + 1
    parts.append(arn[start:])
    return parts if len(parts) == 6 else None


def _ordered(
    read: Callable[[str], float], compare: Callable[[float, float], bool]
) -> Callable[[str, bool], Test]:
    def make(wanted: str, variables: bool) -> Test:
        bound = read(wanted)

        def test(value: str, context: Context) -> bool:
            try:
                return compare(read(value), bound)
            except ValueError:
                return False

        return test

    return make


def _number(text: str) -> float:
    if len(text) > 40:
        raise ValueError("a number in a condition can have at most 40 characters")
    return float(text)


def moment(text: str) -> float:
    """A date of a policy, ISO 8601 or epoch seconds, as epoch seconds. Raises `ValueError`."""
    if len(text) > 40:
        raise ValueError("a date in a condition can have at most 40 characters")
    if text.isascii() and text.isdecimal() and len(text) != 4 and len(text) != 8:
        return float(text)
    found = datetime.fromisoformat(text)
    try:
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    except OverflowError:
        raise ValueError("a date in a condition is out of range") from None


def _bool(wanted: str, variables: bool) -> Test:
    if wanted.lower() not in ("true", "false"):
        raise ValueError("The value of Bool must be true or false.")
    return lambda value, context: value.lower() == wanted.lower()


def _binary(wanted: str, variables: bool) -> Test:
    def read(text: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            raise ValueError("The value of BinaryEquals must be base64.") from None

    data = read(wanted)

    def test(value: str, context: Context) -> bool:
        try:
            return read(value) == data
        except ValueError:
            return False

    return test


def _address(wanted: str, variables: bool) -> Test:
    network = ipaddress.ip_network(wanted, strict=False)

    def test(value: str, context: Context) -> bool:
        try:
            return ipaddress.ip_address(value) in network
        except ValueError:
            return False

    return test


class _Family(msgspec.Struct, frozen=True):
    make: Callable[[str, bool], Test]
    positive: tuple[str, ...]
    negative: tuple[str, ...]


_OPERATORS: dict[str, tuple[Callable[[str, bool], Test], bool]] = {}
for _family in (
    _Family(_text(wildcards=False, fold=False), ("stringequals",), ("stringnotequals",)),
    _Family(_text(wildcards=False, fold=True), ("stringequalsignorecase",), ("stringnotequalsignorecase",)),
    _Family(_text(wildcards=True, fold=False), ("stringlike",), ("stringnotlike",)),
    _Family(_arn, ("arnequals", "arnlike"), ("arnnotequals", "arnnotlike")),
    _Family(_bool, ("bool",), ()),
    _Family(_binary, ("binaryequals",), ()),
    _Family(_address, ("ipaddress",), ("notipaddress",)),
    *(
        _Family(
            _ordered(_read, _compare),
            (f"{_kind}{_name}",),
            (f"{_kind}notequals",) if _name == "equals" else (),
        )
        for _kind, _read in (("numeric", _number), ("date", moment))
        for _name, _compare in (
            ("equals", lambda a, b: a == b),
            ("lessthan", lambda a, b: a < b),
            ("lessthanequals", lambda a, b: a <= b),
            ("greaterthan", lambda a, b: a > b),
            ("greaterthanequals", lambda a, b: a >= b),
        )
    ),
):
    _OPERATORS |= dict.fromkeys(_family.positive, (_family.make, False))
    _OPERATORS |= dict.fromkeys(_family.negative, (_family.make, True))


def compile_conditions(element: Any, *, variables: bool) -> tuple[Condition, ...]:
    """A Condition element: {operator: {key: value or values}}. Raises `ValueError`."""
    if not isinstance(element, dict):
        raise ValueError("Syntax errors in policy.")
    found = []
    for operator, keys in element.items():
        if not isinstance(keys, dict):
            raise ValueError("Syntax errors in policy.")
        for key, values in keys.items():
            listed = values if isinstance(values, list) else [values]
            found.append(Condition(operator, key, tuple(_scalar(v) for v in listed), variables=variables))
    return tuple(found)


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError("Syntax errors in policy.")
