"""What a target is given of an event: all of it, a constant, a part, or a text made of parts."""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import msgspec

from hutch.base.errors import Invalid

MAX_PATHS = 100
MAX_RESULT_BYTES = 256 * 1024
_STEP = re.compile(r"\.([A-Za-z0-9_\-]+)|\[([0-9]{1,6})\]|\['([^']{1,200})'\]")
_VARIABLE = re.compile(r"<([A-Za-z0-9_.\-]{1,256})>")
_MISSING = object()
RESERVED = ("aws.events.rule-arn", "aws.events.rule-name", "aws.events.event.ingestion-time", "aws.events.event",
            "aws.events.event.json")  # fmt: skip


@lru_cache(1024)
def parse_path(text: str) -> tuple[str | int, ...]:
    """`$.detail.containers[0].name` as steps. Raises `Invalid`."""
    if not text.startswith("$"):
        raise Invalid(f"Invalid JsonPath {text[:100]!r}: it starts with '$'.")
    steps: list[str | int] = []
    at = 1
    while at < len(text):
        match = _STEP.match(text, at)
        if match is None:
            raise Invalid(f"Invalid JsonPath {text[:100]!r}: names are written .name or ['name'], items [0].")
        steps.append(int(match[2]) if match[2] else match[1] or match[3])
        at = match.end()
    return tuple(steps)


def at_path(event: Any, path: str) -> Any:
    """What stands there; None where nothing does."""
    found = _find(event, path)
    return None if found is _MISSING else found


def _find(event: Any, path: str) -> Any:
    found = event
    for step in parse_path(path):
        if isinstance(step, str):
            if not isinstance(found, dict) or step not in found:
                return _MISSING
        elif not isinstance(found, list) or step >= len(found):
            return _MISSING
        found = found[step]
    return found


def check_transformer(paths: Mapping[str, str], template: str) -> None:
    """Raises `Invalid` for what could never be filled in."""
    if len(paths) > MAX_PATHS:
        raise Invalid(f"InputPathsMap can have at most {MAX_PATHS} entries.")
    for name, path in paths.items():
        if not _VARIABLE.fullmatch(f"<{name}>") or name.lower().startswith("aws"):
            raise Invalid(f"InputPathsMap: {name[:64]!r} can't be the name of a variable.")
        parse_path(path)
    for match in _VARIABLE.finditer(template):
        if match[1] not in paths and match[1] not in RESERVED:
            raise Invalid(f"InputTemplate: {match[0][:70]} is neither in InputPathsMap nor reserved.")
    if template.lstrip()[:1] in ("{", "["):
        filled = _fill(template, dict.fromkeys([*paths, *RESERVED], 0))
        try:
            msgspec.json.decode(filled)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Invalid(f"InputTemplate is not valid JSON once it is filled in: {error}") from None


def transformed(
    event: Mapping[str, Any], paths: Mapping[str, str], template: str, reserved: Mapping[str, Any]
) -> str:
    """The template with its variables filled in: as JSON, or within a string's quotes as its text.

    What is not in the event becomes null, within quotes nothing. Raises `Invalid` if the result is too large.
    """
    values = {name: _find(event, path) for name, path in paths.items()}
    values.update(reserved)
    values["aws.events.event"] = {k: v for k, v in event.items() if k != "detail"}
    values["aws.events.event.json"] = event
    return _fill(template, values)


def _fill(template: str, values: Mapping[str, Any]) -> str:
    parts: list[str] = []
    size, at, quoted = 0, 0, False
    for match in _VARIABLE.finditer(template):
        if match[1] not in values:
            continue
        literal = template[at : match.start()]
        quoted ^= _toggles(literal)
        parts += (literal, _shown(values[match[1]], quoted))
        size += len(parts[-1]) + len(literal)
        if size > MAX_RESULT_BYTES:
            raise Invalid(f"the transformed input has more than {MAX_RESULT_BYTES} bytes")
        at = match.end()
    return "".join([*parts, template[at:]])


def _toggles(literal: str) -> bool:
    """Whether an odd number of unescaped quotes stand in it."""
    return literal.replace("\\\\", "").replace('\\"', "").count('"') % 2 == 1


def _shown(value: Any, quoted: bool) -> str:
    if not quoted:
        return msgspec.json.encode(None if value is _MISSING else value).decode()
    if value is _MISSING:
        return ""
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    return msgspec.json.encode(text).decode()[1:-1]
