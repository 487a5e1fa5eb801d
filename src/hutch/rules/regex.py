"""Regular expressions and wildcards that others write: searched in time linear in the text (RE2), never backtracking.

RE2's syntax is Go's, which is what Docker's awslogs driver and CloudWatch's filters take. See docs/adr.
"""

from collections.abc import Sequence
from functools import lru_cache

import re2

from hutch.base.errors import Invalid
from hutch.base.units import MIB

MAX_PROGRAM_BYTES = MIB


class LinearPattern:
    """A compiled regular expression (RE2 syntax). Raises `Invalid`, with RE2's words, if it is none."""

    __slots__ = ("_compiled", "source")

    def __init__(self, source: str) -> None:
        options = re2.Options()
        options.log_errors = False
        options.max_mem = MAX_PROGRAM_BYTES
        try:
            self._compiled = re2.compile(_encodable(source), options)
        except re2.error as error:
            words = error.args[0] if error.args else ""
            text = words.decode("utf-8", "replace") if isinstance(words, bytes) else str(words)
            raise Invalid(f"not a regular expression (RE2 syntax): {text}") from None
        self.source = source

    def search(self, text: str) -> bool:
        """Whether it matches somewhere in the text."""
        return self._compiled.search(_encodable(text)) is not None


@lru_cache(maxsize=256)
def linear_pattern(source: str) -> LinearPattern:
    """The pattern, compiled once. Raises `Invalid`."""
    return LinearPattern(source)


class Wildcard:
    """A text in which each `*` stands for any characters (and, if asked for, each `.` for any one)."""

    __slots__ = ("_dots", "_parts")

    def __init__(self, text: str, *, dots: bool = False) -> None:
        self._parts: Sequence[str] = text.split("*")
        self._dots = dots

    def matches(self, text: str) -> bool:
        """Whether it matches the whole text. Each part is taken at the first place where it fits, which is enough."""
        first, *middle = self._parts
        if not middle:
            return len(first) == len(text) and self._at(first, text, 0)
        last = middle.pop()
        if len(first) + len(last) > len(text) or not self._at(first, text, 0):
            return False
        end = len(text) - len(last)
        if not self._at(last, text, end):
            return False
        position = len(first)
        for part in middle:
            position = self._find(part, text, position, end)
            if position < 0:
                return False
            position += len(part)
        return True

    def _at(self, part: str, text: str, position: int) -> bool:
        if not self._dots or "." not in part:
            return text.startswith(part, position)
        return all(p in (".", t) for p, t in zip(part, text[position : position + len(part)], strict=True))

    def _find(self, part: str, text: str, start: int, end: int) -> int:
        if not self._dots or "." not in part:
            return text.find(part, start, end)
        return next((i for i in range(start, end - len(part) + 1) if self._at(part, text, i)), -1)


def _encodable(text: str) -> str:
    """JSON can hold halves of surrogate pairs, which UTF-8 can't."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
