"""Keeps an operation's `Coverage`: a request that uses a member hutch does not honour is refused.

The declaration is compiled against the input's shape once, so that a request pays only for what it uses, and
so that a path that is not in the model is found when the service is put together, not by a user.
"""

from collections.abc import Callable
from typing import Any

from hutch.api.gateway.operation import Coverage
from hutch.api.gateway.service_model import ServiceModel
from hutch.base.errors import NotServed

UNDECLARED = "hutch does not honour it"

Check = Callable[[Any], None]


class MemberNotServed(NotServed):
    """A member in use that is not honoured; `path` is its declared one."""

    def __init__(self, path: str, message: str) -> None:
        super().__init__(message)
        self.path = path


def states_of(coverage: Coverage) -> dict[str, str]:
    """Declared path to the reason for refusing it; an empty reason means that it is accepted."""
    return dict.fromkeys((*coverage.enforced, *coverage.inert), "") | dict(coverage.refused)


def paths_above(coverage: Coverage) -> frozenset[str]:
    """Every path that has a declared path below it."""
    return frozenset(p[:i] for p in states_of(coverage) for i, c in enumerate(p) if c == ".")


class CoverageGuard:
    """The compiled coverage of one operation. Raises `ValueError` for a path that the model lacks."""

    def __init__(self, coverage: Coverage, model: ServiceModel, input_shape: str | None) -> None:
        self._states = states_of(coverage)
        self._above = paths_above(coverage)
        self._model = model
        self._seen: set[str] = set()
        self._check = self._structure(input_shape, "", None) if input_shape else None
        if unknown := set(self._states) - self._seen:
            raise ValueError(
                f"coverage declares {sorted(unknown)[0]!r}, which {model.name}'s model does not have"
            )

    def check(self, value: dict[str, Any]) -> None:
        """Raises `MemberNotServed` for the first member in use that is not honoured."""
        if self._check is not None:
            self._check(value)

    def _structure(self, shape_name: str, path: str, inherited: str | None) -> Check | None:
        """What checks a structure; None if nothing in it needs checking."""
        shape = self._model.shape(shape_name)
        checks: dict[str, Check] = {}
        for member, ref in shape.members.items():
            inner = f"{path}.{member}" if path else member
            if check := self._value(ref.shape, inner, inherited):
                checks[member] = check
        if not checks:
            return None

        def check_structure(value: Any) -> None:
            for name in value:
                if name in checks:
                    checks[name](value[name])

        return check_structure

    def _value(self, shape_name: str, path: str, inherited: str | None) -> Check | None:
        state = self._states.get(path, inherited)
        self._seen.add(path)
        if path not in self._above:
            return None if state == "" else _refuse(path, state)
        return self._inside(shape_name, path, state)

    def _inside(self, shape_name: str, path: str, state: str | None) -> Check | None:
        shape = self._model.shape(shape_name)
        if shape.type == "structure":
            return self._structure(shape_name, path, state)
        element = shape.member or shape.value
        inner = self._inside(element.shape, path, state) if element else None
        if inner is None:
            return None
        check = inner

        def check_each(value: Any) -> None:
            for item in value.values() if isinstance(value, dict) else value:
                check(item)

        return check_each


def _refuse(path: str, reason: str | None) -> Check:
    message = f"hutch does not support {path}: {reason or UNDECLARED}."

    def refuse(value: Any) -> None:
        # Nothing at all asks for nothing: tools send back what they were shown.
        if value not in ([], {}, ""):
            raise MemberNotServed(path, message)

    return refuse
