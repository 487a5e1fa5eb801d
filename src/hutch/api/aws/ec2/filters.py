"""EC2's filters: all must hold, of a filter's values any; `*` and `?` are wildcards, `\\` makes them ordinary."""

from collections.abc import Callable, Mapping
from typing import Any

from hutch.base.errors import Invalid

Shape = dict[str, Any]
Field = Callable[[Shape], Any]
MAX_VALUES = 200
MAX_VALUE_LENGTH = 255


def member(name: str) -> Field:
    """A filter on a member of the answer's shape."""
    return lambda shape: shape.get(name)


def filtered(found: list[Shape], filters: list[Shape], known: Mapping[str, Field]) -> list[Shape]:
    """What passes all filters; `known` says which there are. Raises `Invalid` in EC2's words."""
    for item in filters:
        name, values = item.get("Name", ""), item.get("Values", [])
        if len(values) > MAX_VALUES:
            raise Invalid(
                f"The maximum number of filter values specified on a single call is {MAX_VALUES}",
                code="FilterLimitExceeded",
            )
        field = _tag_field(name) or known.get(name)
        if field is None:
            raise Invalid(f"The filter '{name}' is invalid", code="InvalidParameterValue")
        patterns = [_pattern(v) for v in values]
        found = [f for f in found if any(_matches(p, t) for t in _texts(field(f)) for p in patterns)]
    return found


def _tag_field(name: str) -> Field | None:
    if name == "tag-key":
        return lambda shape: [t["Key"] for t in _tags(shape)]
    if name.startswith("tag:"):
        key = name.removeprefix("tag:")
        return lambda shape: [t["Value"] for t in _tags(shape) if t["Key"] == key]
    return None


def _tags(shape: Shape) -> list[dict[str, str]]:
    tags: list[dict[str, str]] = shape.get("Tags") or shape.get("TagSet") or []
    return tags


_ANY, _ONE = object(), object()


def _pattern(value: str) -> list[object]:
    """The value's letters, `_ANY` for a star, `_ONE` for a question mark."""
    if len(value) > MAX_VALUE_LENGTH:
        raise Invalid(f"The filter value '{value[:40]}...' is too long", code="InvalidParameterValue")
    parts: list[object] = []
    letters = iter(value)
    for letter in letters:
        if letter == "\\":
            parts.append(next(letters, letter))
        else:
            parts.append({"*": _ANY, "?": _ONE}.get(letter, letter))
    return parts


def _matches(pattern: list[object], text: str) -> bool:
    """Only the last star is ever tried again, so at most pattern times text steps, whatever the pattern."""
    at, star, resume = 0, -1, 0
    position = 0
    while position < len(text):
        part = pattern[at] if at < len(pattern) else None
        if part is _ANY:
            star, resume, at = at, position, at + 1
        elif part is _ONE or part == text[position]:
            at, position = at + 1, position + 1
        elif star >= 0:
            resume += 1
            at, position = star + 1, resume
        else:
            return False
    return all(part is _ANY for part in pattern[at:])


def _texts(value: Any) -> list[str]:
    if isinstance(value, bool):
        return ["true" if value else "false"]
    return [str(v) for v in value] if isinstance(value, list) else [str(value)]
