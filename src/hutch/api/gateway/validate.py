"""Checks values against a service model's shapes. Validators are compiled once for each shape, as closures.

Input that is wrong raises `BadInput`: `serialization` where the type is wrong (AWS: SerializationException,
the first one found), else all that violates the model's constraints in one message, worded as AWS words it.
Unlike AWS, unknown members are refused: nothing is ignored silently. What the model can't say is checked by
the use cases.
"""

import base64
import binascii
import math
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from hutch.api.gateway.patterns import compile_pattern, longest_input
from hutch.api.gateway.service_model import ServiceModel, Shape

MAX_DEPTH = 64
MAX_REPORTED = 10
_SHOWN_CHARACTERS = 100
_EARLIEST, _LATEST = -62135596800.0, 253402300799.0
"""The first and last second that a calendar date can have (years 1 to 9999)."""


class BadInput(Exception):
    """Input that does not fit its shape. `serialization`: the type is wrong, not only the value."""

    def __init__(self, message: str, *, serialization: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.serialization = serialization


class WrongType(Exception):
    """A value of another type than the model's. Each level it passes through adds its name to the path."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.path: list[str] = []


class Violations:
    """What was found wrong so far, at most `MAX_REPORTED`: path, and the sentence before and after it."""

    __slots__ = ("depth", "found")

    def __init__(self) -> None:
        self.found: list[tuple[str, str, str]] = []
        self.depth = 0

    def add(self, value: Any, constraint: str, shape: Shape | None = None) -> None:
        """Record that the value at hand does not satisfy a constraint."""
        if len(self.found) < MAX_REPORTED:
            shown = "'*****'" if shape is not None and shape.sensitive else _shown(value)
            self.found.append(("", f"Value {shown} at '", f"' failed to satisfy constraint: {constraint}"))

    def unknown(self, name: str) -> None:
        """Record a member that the model does not have."""
        if len(self.found) < MAX_REPORTED:
            self.found.append((name[:_SHOWN_CHARACTERS], "Unknown parameter '", "'"))

    def within(self, name: str, since: int) -> None:
        """Put a name before the paths of what was found since."""
        for i in range(since, len(self.found)):
            path, before, after = self.found[i]
            self.found[i] = (f"{name}.{path}" if path else name, before, after)

    def message(self) -> str:
        """All of it, as AWS words it."""
        count = len(self.found)
        sentences = "; ".join(f"{before}{path}{after}" for path, before, after in self.found)
        return f"{count} validation error{'s' if count > 1 else ''} detected: {sentences}"


Validator = Callable[[Any, Violations], Any]


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    text = str(value)
    text = text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
    return f"'{text}'"


def _token(value: Any) -> str:
    """What AWS's JSON reader calls a value."""
    if isinstance(value, bool):
        return "TRUE_VALUE" if value else "FALSE_VALUE"
    if isinstance(value, dict):
        return "Start of structure or map"
    if isinstance(value, list):
        return "Start of list"
    return "STRING_VALUE" if isinstance(value, str) else "NUMBER_VALUE"


def _wrong(value: Any, wanted: str) -> WrongType:
    if isinstance(value, dict | list):
        return WrongType(f"{_token(value)} found where not expected.")
    return WrongType(f"{_token(value)} can not be converted to {wanted}.")


class Validators:
    """The compiled validators of one service. `text_scalars`: numbers and booleans come as text (XML)."""

    def __init__(self, model: ServiceModel, *, text_scalars: bool = False) -> None:
        self._model = model
        self._text_scalars = text_scalars
        self._compiled: dict[str, Validator] = {}

    def check(self, shape_name: str, value: Any) -> Any:
        """The value as handlers get it. Raises `BadInput`."""
        violations = Violations()
        try:
            checked = self.of(shape_name)(value, violations)
        except WrongType as wrong:
            where = f" (at '{'.'.join(reversed(wrong.path))}')" if wrong.path else ""
            raise BadInput(f"{wrong}{where}", serialization=True) from None
        if violations.found:
            raise BadInput(violations.message())
        return checked

    def of(self, shape_name: str) -> Validator:
        """The validator of a shape."""
        if shape_name not in self._compiled:
            # A shape may contain itself: while it is being compiled, it stands for itself by name, with its
            # depth counted (a cycle can't be closed without passing here).
            self._compiled[shape_name] = self._again(shape_name)
            self._compiled[shape_name] = self._compile(self._model.shape(shape_name))
        return self._compiled[shape_name]

    def _again(self, shape_name: str) -> Validator:
        def check(value: Any, violations: Violations) -> Any:
            violations.depth += 1
            if violations.depth > MAX_DEPTH:
                raise WrongType(f"The request is nested deeper than {MAX_DEPTH} levels.")
            checked = self._compiled[shape_name](value, violations)
            violations.depth -= 1
            return checked

        return check

    def _compile(self, shape: Shape) -> Validator:
        if shape.document:
            return _document
        simple: dict[str, Callable[[Shape], Validator]] = {
            "structure": self._structure,
            "list": self._list,
            "map": self._map,
            "string": _string,
            "character": _string,
            "integer": self._integer,
            "long": self._integer,
            "double": self._number,
            "float": self._number,
            "boolean": self._boolean,
            "timestamp": _timestamp,
            "blob": _blob,
        }
        return simple[shape.type](shape)

    def _structure(self, shape: Shape) -> Validator:
        members = {name: self.of(ref.shape) for name, ref in shape.members.items()}
        required = tuple(shape.required)
        union = shape.union

        def check(value: Any, violations: Violations) -> Any:
            if not isinstance(value, dict):
                raise _wrong(value, "structure")
            result = {}
            for name, given in value.items():
                if given is None:
                    continue
                validator = members.get(name)
                if validator is None:
                    violations.unknown(name)
                    continue
                since = len(violations.found)
                try:
                    result[name] = validator(given, violations)
                except WrongType as wrong:
                    wrong.path.append(name)
                    raise
                if len(violations.found) > since:
                    violations.within(name, since)
            for name in required:
                if name not in result:
                    since = len(violations.found)
                    violations.add(None, "Member must not be null")
                    violations.within(name, since)
            if union and len(result) != 1:
                violations.add(sorted(result), "Exactly one member of the union must be set")
            return result

        return check

    def _list(self, shape: Shape) -> Validator:
        assert shape.member is not None
        member = self.of(shape.member.shape)

        def check(value: Any, violations: Violations) -> Any:
            if not isinstance(value, list):
                raise _wrong(value, "list")
            _check_length(len(value), value, shape, violations)
            result = []
            for i, given in enumerate(value, 1):
                since = len(violations.found)
                try:
                    if given is None:
                        violations.add(None, "Member must not be null")
                    else:
                        result.append(member(given, violations))
                except WrongType as wrong:
                    wrong.path.append(f"{i}.member")
                    raise
                if len(violations.found) > since:
                    violations.within(f"{i}.member", since)
            return result

        return check

    def _map(self, shape: Shape) -> Validator:
        assert shape.key is not None and shape.value is not None
        key, member = self.of(shape.key.shape), self.of(shape.value.shape)

        def check(value: Any, violations: Violations) -> Any:
            if not isinstance(value, dict):
                raise _wrong(value, "map")
            _check_length(len(value), value, shape, violations)
            result = {}
            for name, given in value.items():
                since = len(violations.found)
                shown = name[:_SHOWN_CHARACTERS]
                try:
                    checked_key = key(name, violations)
                    if given is None:
                        violations.add(None, "Member must not be null")
                    else:
                        result[checked_key] = member(given, violations)
                except WrongType as wrong:
                    wrong.path.append(f"{shown}.member")
                    raise
                if len(violations.found) > since:
                    violations.within(f"{shown}.member", since)
            return result

        return check

    def _integer(self, shape: Shape) -> Validator:
        wanted = "Integer" if shape.type == "integer" else "Long"
        bound = 2**31 if shape.type == "integer" else 2**63
        text_scalars = self._text_scalars

        def check(value: Any, violations: Violations) -> int:
            if text_scalars and isinstance(value, str):
                value = _parse(int, value, wanted)
            elif isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool):
                raise _wrong(value, wanted)
            if not -bound <= value < bound:
                raise WrongType(f"NUMBER_VALUE is out of the range of {wanted}.")
            _check_value(value, shape, violations)
            return value

        return check

    def _number(self, shape: Shape) -> Validator:
        text_scalars = self._text_scalars

        def check(value: Any, violations: Violations) -> float:
            if text_scalars and isinstance(value, str):
                value = _parse(float, value, "Double")
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise _wrong(value, "Double")
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if not math.isfinite(number):
                raise WrongType("NUMBER_VALUE is out of the range of Double.")
            _check_value(number, shape, violations)
            return number

        return check

    def _boolean(self, shape: Shape) -> Validator:
        text_scalars = self._text_scalars

        def check(value: Any, violations: Violations) -> bool:
            if text_scalars and value in ("true", "false"):
                return bool(value == "true")
            if not isinstance(value, bool):
                raise _wrong(value, "Boolean")
            return value

        return check


def _parse(kind: Callable[[str], Any], value: str, wanted: str) -> Any:
    # Python's own readers also take blanks, underscores and other scripts' digits, at any length.
    if len(value) > 40 or not value.isascii() or any(c.isspace() or c == "_" for c in value):
        raise _wrong(value, wanted)
    try:
        return kind(value)
    except ValueError:
        raise _wrong(value, wanted) from None


def _check_length(length: int, value: Any, shape: Shape, violations: Violations) -> None:
    if shape.min is not None and length < shape.min:
        violations.add(value, f"Member must have length greater than or equal to {shape.min:.0f}", shape)
    if shape.max is not None and length > shape.max:
        violations.add(value, f"Member must have length less than or equal to {shape.max:.0f}", shape)


def _check_value(value: float, shape: Shape, violations: Violations) -> None:
    if shape.min is not None and value < shape.min:
        violations.add(value, f"Member must have value greater than or equal to {shape.min:.15g}", shape)
    if shape.max is not None and value > shape.max:
        violations.add(value, f"Member must have value less than or equal to {shape.max:.15g}", shape)


def _string(shape: Shape) -> Validator:
    allowed = frozenset(shape.enum) if shape.enum else None
    pattern = compile_pattern(shape.pattern)
    longest = (longest_input(pattern) if pattern else None) or math.inf
    plain = allowed is None and pattern is None and shape.min is None and shape.max is None

    def check(value: Any, violations: Violations) -> str:
        if not isinstance(value, str):
            raise _wrong(value, "String")
        if "\0" in value:
            # Neither a C string (an environment, a command) nor PostgreSQL text can hold it.
            violations.add(value.replace("\0", "\\0"), "Member must not contain the character U+0000", shape)
        if plain:
            return value
        _check_length(len(value), value, shape, violations)
        if allowed is not None and value not in allowed:
            shown = ", ".join(sorted(allowed))
            violations.add(value, f"Member must satisfy enum value set: [{shown}]", shape)
        if pattern is not None and (len(value) > longest or not pattern.fullmatch(value)):
            violations.add(value, f"Member must satisfy regular expression pattern: {shape.pattern}", shape)
        return value

    return check


def _timestamp(shape: Shape) -> Validator:
    def check(value: Any, violations: Violations) -> float:
        seconds = math.nan
        if isinstance(value, int | float) and not isinstance(value, bool):
            seconds = value
        elif isinstance(value, str) and len(value) <= 40:
            try:
                moment = datetime.fromisoformat(value)
                seconds = moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
            except (ValueError, OverflowError):
                pass
        if not _EARLIEST <= seconds <= _LATEST:
            raise _wrong(value, "Timestamp")
        return float(seconds)

    return check


def _blob(shape: Shape) -> Validator:
    def check(value: Any, violations: Violations) -> bytes:
        if isinstance(value, bytes):
            data = value
        elif isinstance(value, str):
            try:
                data = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise WrongType("STRING_VALUE is not valid base64.") from None
        else:
            raise _wrong(value, "Blob")
        _check_length(len(data), f"{len(data)} bytes", shape, violations)
        return data

    return check


def _document(value: Any, violations: Violations) -> Any:
    waiting = [(value, 0)]
    while waiting:
        current, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise WrongType(f"The document is nested deeper than {MAX_DEPTH} levels.")
        if isinstance(current, dict | list):
            inner = current.values() if isinstance(current, dict) else current
            waiting.extend((v, depth + 1) for v in inner)
    return value


_OUTPUT_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "character": (str,),
    "integer": (int,),
    "long": (int,),
    "boolean": (bool,),
    "double": (int, float),
    "float": (int, float),
    "timestamp": (int, float),
    "blob": (bytes,),
}


def undeclared_output(model: ServiceModel, shape_name: str, value: Any, path: str = "") -> list[str]:
    """What in an answer the model does not have, or has as another type; empty if all is well."""
    shape = model.shape(shape_name)
    if shape.document:
        return []
    if shape.type == "structure":
        if not isinstance(value, dict):
            return [f"{path}: not a structure"]
        problems = [f"{path}.{n}: not in {shape_name}" for n in value if n not in shape.members]
        problems += [f"{path}.{n}: missing" for n in shape.required if n not in value]
        for name, given in value.items():
            if name in shape.members:
                problems += undeclared_output(model, shape.members[name].shape, given, f"{path}.{name}")
        return problems
    if shape.type == "list" and isinstance(value, list | tuple) and shape.member:
        inner = shape.member.shape
        return [p for i, v in enumerate(value) for p in undeclared_output(model, inner, v, f"{path}[{i}]")]
    if shape.type == "map" and isinstance(value, dict) and shape.value:
        inner = shape.value.shape
        return [p for k, v in value.items() for p in undeclared_output(model, inner, v, f"{path}.{k}")]
    good = isinstance(value, _OUTPUT_TYPES.get(shape.type, ()))
    if isinstance(value, bool) and shape.type != "boolean":
        good = False
    if shape.enum and good and value not in shape.enum:
        return [f"{path}: {value!r} is not in the enumeration {shape_name}"]
    return [] if good else [f"{path}: {type(value).__name__} is not a {shape.type}"]
