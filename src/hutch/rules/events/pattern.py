"""Event patterns: which events a rule is for.

    {"source": ["aws.ecs"], "detail": {"lastStatus": ["STOPPED"], "containers": {"exitCode": [{"anything-but": 0}]}}}

A field matches if one of its alternatives matches one of the event's values; all fields must match. A nested pattern
over an array of objects must be met by one object alone. `$or` holds whole patterns. Matching takes time in proportion
to the pattern's leaves times the values they look at: there is no backtracking.
"""

import ipaddress
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import msgspec

from hutch.base.errors import Invalid

MAX_DEPTH = 32
MAX_LEAVES = 1000
MAX_NUMBER = 5e9
_MISSING = object()

Check = Callable[[Any], bool]
"""Over one scalar of the event."""


class Pattern:
    """A compiled pattern; `compile_pattern` makes it."""

    def __init__(self, root: "_Object") -> None:
        self._root = root

    def matches(self, event: Mapping[str, Any]) -> bool:
        """Whether the event, in its JSON form, is one that the pattern is for."""
        return self._root.matches(event)


class _Object:
    """All fields, and one of the patterns of `$or` if there are any."""

    def __init__(self) -> None:
        self.fields: list[tuple[str, _Object | _Leaf]] = []
        self.choices: list[_Object] = []

    def matches(self, value: Any) -> bool:
        if isinstance(value, list):
            return any(self.matches(item) for item in value) if value else self.matches({})
        if not isinstance(value, dict):
            value = {}
        return all(part.matches(value.get(name, _MISSING)) for name, part in self.fields) and (
            not self.choices or any(choice.matches(value) for choice in self.choices)
        )


class _Leaf:
    """The alternatives for one field."""

    def __init__(self) -> None:
        self.texts: set[str] = set()
        self.numbers: set[float] = set()
        self.constants: set[bool | None] = set()
        self.checks: list[Check] = []
        self.if_present = False
        self.if_absent = False

    def matches(self, value: Any) -> bool:
        if value is _MISSING or isinstance(value, dict):
            return self.if_absent
        values = value if isinstance(value, list) else (value,)
        if self.if_present and values:
            return True
        return (self.if_absent and not values) or any(self._one(v) for v in values)

    def _one(self, value: Any) -> bool:
        if isinstance(value, str):
            known = value in self.texts
        elif value is None or isinstance(value, bool):
            known = value in self.constants
        elif isinstance(value, int | float):
            known = value in self.numbers
        else:
            return isinstance(value, list) and any(self._one(v) for v in value if not isinstance(v, list))
        return known or any(check(value) for check in self.checks)


@lru_cache(512)
def compile_pattern(text: str) -> Pattern:
    """A pattern from its JSON text. Raises `Invalid` (AWS's InvalidEventPatternException)."""
    try:
        document = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _refusal(f"it is not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise _refusal("Filter is not an object")
    compiler = _Compiler()
    return Pattern(compiler.object(document, 1))


class _Compiler:
    def __init__(self) -> None:
        self._leaves = 0

    def object(self, document: Mapping[str, Any], depth: int) -> _Object:
        if not document:
            raise _refusal("Empty objects are not allowed")
        if depth > MAX_DEPTH:
            raise _refusal(f"it is nested more than {MAX_DEPTH} deep")
        found = _Object()
        for name, value in document.items():
            if name == "$or" and isinstance(value, list) and all(isinstance(v, dict) for v in value):
                if len(value) < 2:
                    raise _refusal("There must have at least 2 Objects in $or relationship.")
                found.choices = [self.object(v, depth + 1) for v in value]
            elif isinstance(value, dict):
                found.fields.append((name, self.object(value, depth + 1)))
            elif isinstance(value, list):
                found.fields.append((name, self.leaf(name, value)))
            else:
                raise _refusal(f'"{name[:64]}" must be an object or an array')
        return found

    def leaf(self, name: str, alternatives: Sequence[Any]) -> _Leaf:
        if not alternatives:
            raise _refusal(f'Empty arrays are not allowed ("{name[:64]}")')
        self._leaves += len(alternatives)
        if self._leaves > MAX_LEAVES:
            raise _refusal(f"it has more than {MAX_LEAVES} alternatives")
        found = _Leaf()
        for item in alternatives:
            if isinstance(item, dict):
                _matcher(found, item)
            elif isinstance(item, list):
                raise _refusal(f'"{name[:64]}" has an array within its array')
            else:
                _literal(found, item)
        return found


def _literal(leaf: _Leaf, value: Any) -> None:
    if isinstance(value, str):
        leaf.texts.add(value)
    elif value is None or isinstance(value, bool):
        leaf.constants.add(value)
    else:
        leaf.numbers.add(value)


def _matcher(leaf: _Leaf, item: Mapping[str, Any]) -> None:
    if len(item) != 1:
        raise _refusal("Only one key allowed in match expression")
    ((kind, operand),) = item.items()
    if kind == "exists":
        if not isinstance(operand, bool):
            raise _refusal("exists match pattern must be either true or false.")
        if operand:
            leaf.if_present = True
        else:
            leaf.if_absent = True
    elif kind == "numeric":
        leaf.checks.append(_numeric(operand))
    elif kind == "cidr":
        leaf.checks.append(_cidr(operand))
    elif kind == "anything-but":
        leaf.checks.append(_anything_but(operand))
    else:
        leaf.checks.append(_text_check(kind, operand))


def _text_check(kind: str, operand: Any) -> Check:
    """prefix, suffix, equals-ignore-case, wildcard."""
    folded = False
    if kind in ("prefix", "suffix") and isinstance(operand, dict):
        if list(operand) != ["equals-ignore-case"]:
            raise _refusal(f"Unsupported {kind} pattern: only equals-ignore-case can stand in it")
        folded, operand = True, operand["equals-ignore-case"]
    if kind not in ("prefix", "suffix", "equals-ignore-case", "wildcard"):
        raise _refusal(f"Unrecognized match type {kind[:64]}")
    if not isinstance(operand, str):
        raise _refusal(f"{kind} match pattern must be a string")
    if kind == "wildcard":
        return _wildcard(operand)
    if kind == "equals-ignore-case" or folded:
        operand = operand.lower()
    if kind == "equals-ignore-case":
        return lambda value: isinstance(value, str) and value.lower() == operand
    if kind == "prefix":
        return lambda value: isinstance(value, str) and _fold(value, folded).startswith(operand)
    return lambda value: isinstance(value, str) and _fold(value, folded).endswith(operand)


def _fold(text: str, folded: bool) -> str:
    return text.lower() if folded else text


def _anything_but(operand: Any) -> Check:
    if isinstance(operand, dict):
        if len(operand) != 1:
            raise _refusal("Only one key allowed in match expression")
        ((kind, inner),) = operand.items()
        if kind == "cidr" or kind not in ("prefix", "suffix", "equals-ignore-case", "wildcard"):
            raise _refusal(f"Unsupported anything-but pattern: {kind[:64]}")
        wanted = inner if isinstance(inner, list) else [inner]
        if not wanted:
            raise _refusal("Empty arrays are not allowed")
        checks = [_text_check(kind, w) for w in wanted]
        return lambda value: isinstance(value, str) and not any(check(value) for check in checks)
    items = operand if isinstance(operand, list) else [operand]
    if not items:
        raise _refusal("Empty arrays are not allowed")
    if any(isinstance(i, bool) or not isinstance(i, str | int | float) for i in items):
        raise _refusal("anything-but holds strings, or numbers")
    if len({isinstance(i, str) for i in items}) > 1:
        raise _refusal("anything-but holds either strings or numbers, not both")
    known = frozenset(items)
    return lambda value: isinstance(value, bool) or value is None or value not in known


def _numeric(operand: Any) -> Check:
    """[">", 0, "<=", 5]: an operator and a number, once or twice."""
    if not isinstance(operand, list) or len(operand) not in (2, 4):
        raise _refusal("Value of numeric must be an array of one or two comparisons")
    low, high, low_open, high_open = -MAX_NUMBER, MAX_NUMBER, False, False
    seen: set[str] = set()
    for operator, bound in zip(operand[::2], operand[1::2], strict=True):
        if isinstance(bound, bool) or not isinstance(bound, int | float):
            raise _refusal("Value of a numeric comparison must be a number")
        if not -MAX_NUMBER <= bound <= MAX_NUMBER:
            raise _refusal(f"numbers must be between -{MAX_NUMBER:.0f} and {MAX_NUMBER:.0f}")
        side = {"=": "=", "<": "<", "<=": "<", ">": ">", ">=": ">"}.get(
            operator if isinstance(operator, str) else ""
        )
        if side is None:
            raise _refusal(f"Unrecognized numeric range operator: {str(operator)[:20]}")
        if side in seen or "=" in seen or (side == "=" and seen):
            raise _refusal("Bad numeric range: its comparisons contradict each other")
        seen.add(side)
        if side in ("=", ">"):
            low, low_open = bound, operator == ">"
        if side in ("=", "<"):
            high, high_open = bound, operator == "<"
    if low > high or (low == high and (low_open or high_open)):
        raise _refusal("Bottom must be less than top")

    def check(value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (low < value if low_open else low <= value) and (value < high if high_open else value <= high)

    return check


def _cidr(operand: Any) -> Check:
    if not isinstance(operand, str):
        raise _refusal("prefix of cidr must be a string")
    try:
        network = ipaddress.ip_network(operand, strict=False)
    except ValueError:
        raise _refusal(f"Malformed CIDR, {operand[:64]!r}") from None

    def check(value: Any) -> bool:
        if not isinstance(value, str) or len(value) > 45:
            return False
        try:
            return ipaddress.ip_address(value) in network
        except ValueError:
            return False

    return check


def _wildcard(text: str) -> Check:
    """`*` stands for any characters; a backslash before `*` or a backslash takes it literally."""
    pieces: list[str] = []
    piece: list[str] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
            if at == len(text) or text[at] not in "*\\":
                raise _refusal(f"Invalid escape character at pos {at - 1} of a wildcard")
            piece.append(text[at])
        elif char == "*":
            if at and text[at - 1] == "*" and not piece and pieces:
                raise _refusal(f"Consecutive wildcard characters at pos {at - 1}")
            pieces.append("".join(piece))
            piece = []
        else:
            piece.append(char)
        at += 1
    pieces.append("".join(piece))

    def check(value: Any) -> bool:
        return isinstance(value, str) and _glob(pieces, value)

    return check


def _glob(pieces: Sequence[str], value: str) -> bool:
    """Whether the pieces stand in the value in order, the first at its start and the last at its end."""
    if len(pieces) == 1:
        return value == pieces[0]
    first, last = pieces[0], pieces[-1]
    if len(value) < len(first) + len(last) or not value.startswith(first) or not value.endswith(last):
        return False
    at, end = len(first), len(value) - len(last)
    for piece in pieces[1:-1]:
        at = value.find(piece, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _refusal(why: str) -> Invalid:
    return Invalid(f"Event pattern is not valid. Reason: {why}", code="InvalidEventPatternException")
