"""AWS's rules for tags."""

import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from hutch.base.errors import Invalid, LimitExceeded

MAX_TAGS = 50
_SIGNS = frozenset("_.:/=+-@")


def tags_from_list(items: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """[{"key", "value"}] as a mapping, checked. Raises `Invalid`, `LimitExceeded`."""
    tags: dict[str, str] = {}
    for item in items:
        key, value = str(item.get("key", "")), str(item.get("value", ""))
        if not key:
            raise Invalid("Tag keys cannot be empty.")
        if len(key) > 128 or len(value) > 256:
            raise Invalid("A tag key can have at most 128 characters, a value at most 256.")
        if key.lower().startswith("aws:") or value.lower().startswith("aws:"):
            raise Invalid("Tag keys and values cannot start with 'aws:'; it is reserved.")
        if not _allowed(key) or not _allowed(value):
            raise Invalid(
                "Some tags contain invalid characters. Valid characters: UTF-8 letters, spaces, numbers and "
                f"_ . / = + - : @. (Tag {key[:50]!r}.)"
            )
        if key in tags:
            raise Invalid(f"Duplicate tag key {key!r}.")
        tags[key] = value
    if len(tags) > MAX_TAGS:
        raise LimitExceeded(f"A resource can have at most {MAX_TAGS} tags.")
    return tags


def merged(before: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """A resource's tags after TagResource. Raises `LimitExceeded`."""
    result = {**before, **more}
    if sum(1 for k in result if not k.startswith("aws:")) > MAX_TAGS:
        raise LimitExceeded(f"A resource can have at most {MAX_TAGS} tags.")
    return result


def _allowed(text: str) -> bool:
    """AWS's own words: Unicode letters, numbers and separators (Z: spaces, but no line feeds), and some signs."""
    return all(c in _SIGNS or unicodedata.category(c)[0] in "LNZ" for c in text)
