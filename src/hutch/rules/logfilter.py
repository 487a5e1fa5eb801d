"""Filter patterns of FilterLogEvents and StartLiveTail.

Terms: all must be in the message; `?term` (any of these), `-term` (none of these), `"a phrase"`. JSON: `{ $.a = "b" }`
with = != > >= < <= IS NULL, EXISTS, &&, ||, parentheses. Space-delimited patterns (`[a, b]`) are refused.
Source: the CloudWatch Logs user guide, "Filter pattern syntax".
"""

import json
import re
from collections.abc import Callable
from typing import Any

from hutch.base.errors import Invalid

MAX_LENGTH = 1024
Predicate = Callable[[str], bool]

_TERM = re.compile(r'([?-]?)(?:"((?:[^"\\]|\\.)*)"|(\S+))')
_JSON_TOKEN = re.compile(r'\s*(?:(&&|\|\||!=|>=|<=|=|>|<|\(|\))|"((?:[^"\\]|\\.)*)"|([^\s()&|=!<>"]+))')


def parse_filter(pattern: str) -> Predicate:
    """A predicate over messages. Raises `Invalid`."""
    text = pattern.strip()
    if len(text) > MAX_LENGTH:
        raise Invalid(f"filterPattern can have at most {MAX_LENGTH} characters.")
    if not text:
        return lambda message: True
    if text.startswith("{"):
        if not text.endswith("}"):
            raise Invalid("Invalid filter pattern: '}' is missing.")
        return _json_predicate(text[1:-1])
    if text.startswith("["):
        raise Invalid("hutch does not support space-delimited filter patterns; use terms or { $.json }.")
    return _term_predicate(text)


def _term_predicate(text: str) -> Predicate:
    must: list[str] = []
    any_of: list[str] = []
    none_of: list[str] = []
    for sign, quoted, bare in _TERM.findall(text):
        term = quoted.replace('\\"', '"') if quoted else bare
        {"": must, "?": any_of, "-": none_of}[sign].append(term)
    return lambda m: (
        all(t in m for t in must)
        and (not any_of or any(t in m for t in any_of))
        and not any(t in m for t in none_of)
    )


class _Json:
    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _JSON_TOKEN.match(text, position)
            if match is None:
                raise Invalid(f"Invalid filter pattern at character {position + 1}.")
            kind = "op" if match.group(1) else "text" if match.group(2) is not None else "word"
            self._tokens.append((kind, match.group(1) or match.group(2) or match.group(3) or ""))
            position = match.end()
        self._at = 0

    def peek(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def take(self) -> tuple[str, str]:
        if self._at >= len(self._tokens):
            raise Invalid("Invalid filter pattern: it ends too early.")
        self._at += 1
        return self._tokens[self._at - 1]

    def either(self, depth: int = 0) -> Callable[[Any], bool]:
        if depth > 20:
            raise Invalid("Invalid filter pattern: nested too deeply.")
        parts = [self._both(depth)]
        while self.peek() == "||":
            self.take()
            parts.append(self._both(depth))
        return lambda d: any(p(d) for p in parts)

    def _both(self, depth: int) -> Callable[[Any], bool]:
        parts = [self._one(depth)]
        while self.peek() == "&&":
            self.take()
            parts.append(self._one(depth))
        return lambda d: all(p(d) for p in parts)

    def _one(self, depth: int) -> Callable[[Any], bool]:
        kind, word = self.take()
        if kind == "op" and word == "(":
            inner = self.either(depth + 1)
            if self.take()[1] != ")":
                raise Invalid("Invalid filter pattern: ')' is missing.")
            return inner
        if not word.startswith("$"):
            raise Invalid(f"Invalid filter pattern: {word[:50]!r} is not a selector such as $.name.")
        selector = re.findall(r"[^.\[\]$]+", word)
        operator = self.take()[1].upper()
        if operator == "IS":
            if self.take()[1].upper() != "NULL":
                raise Invalid("Invalid filter pattern: only IS NULL is known.")
            return lambda d: _select(d, selector) is None
        if operator == "EXISTS":
            return lambda d: _select(d, selector) is not _MISSING
        if operator not in _OPERATORS:
            raise Invalid(f"Invalid filter pattern: {operator[:20]!r} is not an operator.")
        value_kind, value = self.take()
        return _comparison(selector, operator, value, quoted=value_kind == "text")


_MISSING = object()
_OPERATORS: dict[str, Callable[[int], bool]] = {
    "=": lambda c: c == 0,
    "!=": lambda c: c != 0,
    ">": lambda c: c > 0,
    ">=": lambda c: c >= 0,
    "<": lambda c: c < 0,
    "<=": lambda c: c <= 0,
}


def _json_predicate(text: str) -> Predicate:
    parser = _Json(text)
    predicate = parser.either()
    if parser.peek():
        raise Invalid(f"Invalid filter pattern: unexpected {parser.peek()[:50]!r}.")

    def check(message: str) -> bool:
        try:
            document = json.loads(message)
        except (ValueError, RecursionError):
            return False
        return predicate(document)

    return check


def _select(document: Any, path: list[str]) -> Any:
    for part in path:
        if isinstance(document, dict) and part in document:
            document = document[part]
        elif isinstance(document, list) and part.isdecimal() and int(part) < len(document):
            document = document[int(part)]
        else:
            return _MISSING
    return document


def _comparison(path: list[str], operator: str, value: str, *, quoted: bool) -> Callable[[Any], bool]:
    wildcard = None
    if "*" in value and operator in ("=", "!=") and value.count("*") <= 4:
        wildcard = re.compile(".*".join(re.escape(p) for p in value.split("*")), re.DOTALL)

    def check(document: Any) -> bool:
        found = _select(document, path)
        if found is _MISSING:
            return False
        if wildcard is not None:
            return (wildcard.fullmatch(str(found)) is not None) == (operator == "=")
        if isinstance(found, int | float) and not isinstance(found, bool) and not quoted:
            try:
                number = float(value)
            except ValueError:
                return operator == "!="
            return _OPERATORS[operator]((found > number) - (found < number))
        text = {True: "true", False: "false", None: "null"}.get(found) if _plain(found) else None
        text = str(found) if text is None else text
        return _OPERATORS[operator]((text > value) - (text < value))

    return check


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)
