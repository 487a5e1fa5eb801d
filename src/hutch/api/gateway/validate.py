"""Checks values against a service model's shapes. Validators are compiled once for each shape, as closures.

Input that is wrong raises `BadInput`: `serialization` where the JSON type is wrong (AWS: SerializationException), else
the service's own validation code. What the model can't say is checked by the use cases.
"""

import base64
import binascii
import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from hutch.api.gateway.service_model import ServiceModel, Shape

MAX_PATTERN_INPUT = 4096
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

Validator = Callable[[Any, str], Any]


class BadInput(Exception):
    """Input that does not fit its shape. `serialization`: the type is wrong, not only the value."""

    def __init__(self, message: str, *, serialization: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.serialization = serialization


class Validators:
    """The compiled validators of one service. `text_scalars`: numbers and booleans come as text (query, ec2)."""

    def __init__(self, model: ServiceModel, *, text_scalars: bool = False) -> None:
        self._model = model
        self._text_scalars = text_scalars
        self._compiled: dict[str, Validator] = {}

    def of(self, shape_name: str) -> Validator:
        """The validator of a shape: (value, path) to the value as handlers get it."""
        if shape_name not in self._compiled:
            # A shape may contain itself: what it looks up while it is being compiled is bound on first use.
            self._compiled[shape_name] = lambda v, p: self._compiled[shape_name](v, p)
            self._compiled[shape_name] = self._compile(self._model.shape(shape_name))
        return self._compiled[shape_name]

    def _compile(self, shape: Shape) -> Validator:
        if shape.type == "structure":
            return self._structure(shape)
        if shape.type == "list":
            return self._list(shape)
        if shape.type == "map":
            return self._map(shape)
        if shape.type == "string":
            return _string(shape)
        if shape.type in ("integer", "long"):
            return self._integer(shape)
        if shape.type in ("double", "float"):
            return self._number(shape)
        if shape.type == "boolean":
            return self._boolean
        if shape.type == "timestamp":
            return _timestamp
        if shape.type == "blob":
            return _blob(shape)
        raise NotImplementedError(f"shape type {shape.type}")

    def _structure(self, shape: Shape) -> Validator:
        members = {name: self.of(ref.shape) for name, ref in shape.members.items()}
        required = tuple(shape.required)

        def check(value: Any, path: str) -> Any:
            if not isinstance(value, dict):
                raise BadInput(f"{path or 'The request'} must be a structure.", serialization=True)
            result = {}
            for name, given in value.items():
                validator = members.get(name)
                if validator is None:
                    raise BadInput(f"Unknown parameter in {path or 'input'}: {name[:100]!r}.")
                if given is not None:
                    result[name] = validator(given, f"{path}.{name}" if path else name)
            for name in required:
                if name not in result:
                    raise BadInput(f"Missing required parameter in {path or 'input'}: {name!r}.")
            return result

        return check

    def _list(self, shape: Shape) -> Validator:
        assert shape.member is not None
        member = self.of(shape.member.shape)

        def check(value: Any, path: str) -> Any:
            if not isinstance(value, list):
                raise BadInput(f"{path} must be a list.", serialization=True)
            _check_range(len(value), shape, path, "items")
            return [member(v, f"{path}[{i}]") for i, v in enumerate(value)]

        return check

    def _map(self, shape: Shape) -> Validator:
        assert shape.key is not None and shape.value is not None
        key, member = self.of(shape.key.shape), self.of(shape.value.shape)

        def check(value: Any, path: str) -> Any:
            if not isinstance(value, dict):
                raise BadInput(f"{path} must be a map.", serialization=True)
            _check_range(len(value), shape, path, "items")
            return {
                key(k, f"{path} (key)"): member(v, f"{path}.{k[:100]}")
                for k, v in value.items()
                if v is not None
            }

        return check

    def _integer(self, shape: Shape) -> Validator:
        def check(value: Any, path: str) -> int:
            if self._text_scalars and isinstance(value, str):
                value = _parse(int, value, path)
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if not isinstance(value, int) or isinstance(value, bool):
                raise BadInput(f"{path} must be an integer.", serialization=True)
            if not -(2**63) <= value < 2**63 or (shape.type == "integer" and not -(2**31) <= value < 2**31):
                raise BadInput(f"{path} is out of range.", serialization=True)
            _check_range(value, shape, path, "")
            return value

        return check

    def _number(self, shape: Shape) -> Validator:
        def check(value: Any, path: str) -> float:
            if self._text_scalars and isinstance(value, str):
                value = _parse(float, value, path)
            if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
                raise BadInput(f"{path} must be a number.", serialization=True)
            _check_range(value, shape, path, "")
            return float(value)

        return check

    def _boolean(self, value: Any, path: str) -> bool:
        if self._text_scalars and value in ("true", "false"):
            return bool(value == "true")
        if not isinstance(value, bool):
            raise BadInput(f"{path} must be true or false.", serialization=True)
        return value


def _parse(kind: Callable[[str], Any], value: str, path: str) -> Any:
    try:
        return kind(value)
    except ValueError:
        raise BadInput(f"{path} must be a number.", serialization=True) from None


def _check_range(size: float, shape: Shape, path: str, unit: str) -> None:
    what = f"{path} must have" if unit else f"{path} must be"
    if shape.min is not None and size < shape.min:
        raise BadInput(f"{what} at least {shape.min:g} {unit}".rstrip() + ".")
    if shape.max is not None and size > shape.max:
        raise BadInput(f"{what} at most {shape.max:g} {unit}".rstrip() + ".")


def _string(shape: Shape) -> Validator:
    allowed = frozenset(shape.enum) if shape.enum else None
    pattern = _pattern(shape.pattern)

    def check(value: Any, path: str) -> str:
        if not isinstance(value, str):
            raise BadInput(f"{path} must be a string.", serialization=True)
        _check_range(len(value), shape, path, "characters")
        if allowed is not None and value not in allowed:
            raise BadInput(f"{path} must be one of {', '.join(sorted(allowed))}; got {value[:100]!r}.")
        if _CONTROL.search(value):
            raise BadInput(f"{path} contains a control character.")
        if pattern is not None and (len(value) > MAX_PATTERN_INPUT or not pattern.fullmatch(value)):
            raise BadInput(f"{path} does not match the pattern {shape.pattern}.")
        return value

    return check


def _pattern(source: str | None) -> re.Pattern[str] | None:
    """The model's (Java) pattern as a Python one; None if it can't be said in Python, or could run for ever."""
    if not source or r"\p{" in source:
        return None
    if re.search(r"[*+}]\)[*+{]", source):
        return None
    try:
        return re.compile(source)
    except re.error:
        return None


def _timestamp(value: Any, path: str) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            pass
    raise BadInput(f"{path} must be a timestamp.", serialization=True)


def _blob(shape: Shape) -> Validator:
    def check(value: Any, path: str) -> bytes:
        if isinstance(value, str):
            try:
                data = base64.b64decode(value, validate=True)
            except (binascii.Error, ValueError):
                raise BadInput(f"{path} must be base64.", serialization=True) from None
            _check_range(len(data), shape, path, "bytes")
            return data
        raise BadInput(f"{path} must be base64.", serialization=True)

    return check


def undeclared_output(model: ServiceModel, shape_name: str, value: Any, path: str = "") -> list[str]:
    """What in an answer the model does not have, or has as another type; empty for a good answer. For tests."""
    shape = model.shape(shape_name)
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
        return [
            p
            for i, v in enumerate(value)
            for p in undeclared_output(model, shape.member.shape, v, f"{path}[{i}]")
        ]
    if shape.type == "map" and isinstance(value, dict) and shape.value:
        return [
            p for k, v in value.items() for p in undeclared_output(model, shape.value.shape, v, f"{path}.{k}")
        ]
    wanted: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "long": (int,),
        "boolean": (bool,),
        "double": (int, float),
        "float": (int, float),
        "timestamp": (int, float),
        "blob": (bytes,),
    }
    good = isinstance(value, wanted.get(shape.type, ()))
    if shape.enum and good and value not in shape.enum:
        return [f"{path}: {value!r} is not in the enumeration {shape_name}"]
    return [] if good else [f"{path}: {type(value).__name__} is not a {shape.type}"]
