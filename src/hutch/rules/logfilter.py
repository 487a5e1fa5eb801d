"""Filter patterns of FilterLogEvents and StartLiveTail.

Terms: all must be in the message; `?term` (any of these), `-term` (none of these), `"a phrase"`, `%a regex%`.
JSON: `{ $.a = "b" }` with = != > >= < <= IS NULL, IS TRUE, IS FALSE, NOT EXISTS, EXISTS, &&, ||, parentheses.
Columns: `[ip, user, status = 4*, ..., bytes > 100]`. Source: the CloudWatch Logs user guide, "Filter pattern syntax".
Patterns and messages are hostile: matching takes time linear in the message.
"""

import json
import re
from collections.abc import Callable
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.logfilter_values import Test, value_test
from hutch.rules.regex import linear_pattern

MAX_LENGTH = 1024
MAX_DEPTH = 20
MAX_COLUMNS = 100
Predicate = Callable[[str], bool]

_TERM = re.compile(r'\s*([?-]?)(?:"((?:[^"\\]|\\.)*)"|%((?:[^%\\]|\\.)+)%(?=\s|$)|([^\s"]\S*))')
_TOKEN = re.compile(
    r"\s*(?:(&&|\|\||!=|>=|<=|=|>|<|\(|\)|,)"
    r'|"((?:[^"\\]|\\.)*)"'
    r"|%((?:[^%\\]|\\.)+)%"
    r'|([^\s()&|=!<>",%][^\s()&|=!<>",]*))'
)
_COLUMN = re.compile(r'\[([^\]]*)\]|"([^"]*)"|(\S+)')


def parse_filter(pattern: str) -> Predicate:
    """A predicate over messages. Raises `Invalid`."""
    text = pattern.strip()
    if len(text) > MAX_LENGTH:
        raise Invalid(f"filterPattern can have at most {MAX_LENGTH} characters.")
    if not text:
        return lambda message: True
    for start, end, parse in (("{", "}", _json_predicate), ("[", "]", _column_predicate)):
        if text.startswith(start):
            if not text.endswith(end) or len(text) < 2:
                raise Invalid(f"Invalid filter pattern: '{end}' is missing.")
            return parse(text[1:-1])
    return _term_predicate(text)


def _term_predicate(text: str) -> Predicate:
    terms: dict[str, list[Predicate]] = {"": [], "?": [], "-": []}
    position = 0
    while position < len(text):
        match = _TERM.match(text, position)
        if match is None:
            raise Invalid(f"Invalid filter pattern at character {position + 1}.")
        sign, quoted, pattern, bare = match.groups()
        if pattern is not None:
            terms[sign].append(linear_pattern(pattern).search)
        else:
            terms[sign].append(_contains(_unquoted(quoted) if quoted is not None else bare))
        position = match.end()
    must, any_of, none_of = terms[""], terms["?"], terms["-"]
    return lambda m: (
        all(t(m) for t in must)
        and (not any_of or any(t(m) for t in any_of))
        and not any(t(m) for t in none_of)
    )


def _contains(term: str) -> Predicate:
    return lambda message: term in message


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


class _Tokens:
    """Tokens of a pattern: (kind, text), kind one of op, text (quoted), regex, word."""

    def __init__(self, text: str) -> None:
        self._tokens: list[tuple[str, str]] = []
        position = 0
        text = text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise Invalid(f"Invalid filter pattern at character {position + 1}.")
            operator, quoted, pattern, word = match.groups()
            if operator is not None:
                self._tokens.append(("op", operator))
            elif quoted is not None:
                self._tokens.append(("text", _unquoted(quoted)))
            else:
                self._tokens.append(("regex", pattern) if pattern is not None else ("word", word))
            position = match.end()
        self._at = 0

    def next_is(self, *operators: str) -> bool:
        return self._at < len(self._tokens) and self._tokens[self._at] in [("op", o) for o in operators]

    def rest(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    @property
    def ended(self) -> bool:
        return self._at >= len(self._tokens)

    def take(self) -> tuple[str, str]:
        if self.ended:
            raise Invalid("Invalid filter pattern: it ends too early.")
        self._at += 1
        return self._tokens[self._at - 1]


class _Expression:
    """`comparison && (comparison || comparison)`; the subject of a comparison is read by `select`."""

    def __init__(self, tokens: _Tokens, select: Callable[[str], Callable[[Any], Any]]) -> None:
        self._tokens = tokens
        self._select = select

    def either(self, depth: int = 0) -> Callable[[Any], bool]:
        if depth > MAX_DEPTH:
            raise Invalid("Invalid filter pattern: nested too deeply.")
        parts = [self._both(depth)]
        while self._tokens.next_is("||"):
            self._tokens.take()
            parts.append(self._both(depth))
        return parts[0] if len(parts) == 1 else lambda d: any(p(d) for p in parts)

    def _both(self, depth: int) -> Callable[[Any], bool]:
        parts = [self._one(depth)]
        while self._tokens.next_is("&&"):
            self._tokens.take()
            parts.append(self._one(depth))
        return parts[0] if len(parts) == 1 else lambda d: all(p(d) for p in parts)

    def _one(self, depth: int) -> Callable[[Any], bool]:
        kind, word = self._tokens.take()
        if (kind, word) == ("op", "("):
            inner = self.either(depth + 1)
            if self._tokens.take() != ("op", ")"):
                raise Invalid("Invalid filter pattern: ')' is missing.")
            return inner
        if kind != "word":
            raise Invalid(f"Invalid filter pattern: {word[:50]!r} is not a name.")
        select, test = self._select(word), _test(self._tokens)
        return lambda d: test(select(d))


MISSING = msgspec.UNSET


def _test(tokens: _Tokens) -> Test:
    """What is asked of a selected value: the operator and, for most, a value."""
    kind, operator = tokens.take()
    word = operator.upper()
    if kind == "word" and word == "IS":
        wanted = {"NULL": None, "TRUE": True, "FALSE": False}
        name = tokens.take()[1].upper()
        if name not in wanted:
            raise Invalid("Invalid filter pattern: only IS NULL, IS TRUE and IS FALSE are known.")
        return lambda found: found is wanted[name]
    if kind == "word" and word == "NOT":
        if tokens.take()[1].upper() != "EXISTS":
            raise Invalid("Invalid filter pattern: only NOT EXISTS is known.")
        return lambda found: found is MISSING
    if kind == "word" and word == "EXISTS":
        return lambda found: found is not MISSING
    if kind != "op" or operator not in ("=", "!=", ">", ">=", "<", "<="):
        raise Invalid(f"Invalid filter pattern: {operator[:20]!r} is not an operator.")
    value_kind, value = tokens.take()
    if value_kind == "op":
        raise Invalid(f"Invalid filter pattern: {value!r} is not a value.")
    inner = value_test(operator, value, value_kind)
    return lambda found: found is not MISSING and inner(found)


def _json_predicate(text: str) -> Predicate:
    tokens = _Tokens(text)
    predicate = _Expression(tokens, _selector).either()
    if not tokens.ended:
        raise Invalid(f"Invalid filter pattern: unexpected {tokens.rest()[:50]!r}.")

    def check(message: str) -> bool:
        if not message.lstrip().startswith(("{", "[")):
            return False
        try:
            document = json.loads(message)
        except (ValueError, RecursionError):
            return False
        return predicate(document)

    return check


def _selector(word: str) -> Callable[[Any], Any]:
    """$.a.b, $.a[0], $[0].a"""
    if not re.fullmatch(r"\$(\.[^.\[\]$]+|\[[0-9]{1,9}\])+", word):
        raise Invalid(f"Invalid filter pattern: {word[:50]!r} is not a selector such as $.name.")
    path = re.findall(r"\.([^.\[\]$]+)|\[([0-9]+)\]", word)

    def select(document: Any) -> Any:
        for name, number in path:
            if name and isinstance(document, dict) and name in document:
                document = document[name]
            elif number and isinstance(document, list) and int(number) < len(document):
                document = document[int(number)]
            else:
                return MISSING
        return document

    return select


def _column_predicate(text: str) -> Predicate:
    """Columns by place: `name`, `name = value && name != value`, and one `...` for any number of them."""
    fields = _split_columns(text)
    if len(fields) > MAX_COLUMNS:
        raise Invalid(f"Invalid filter pattern: at most {MAX_COLUMNS} columns.")
    gaps = [i for i, f in enumerate(fields) if f == "..."]
    if len(gaps) > 1:
        raise Invalid("Invalid filter pattern: '...' can stand only once.")
    before = [_column(f) for f in (fields[: gaps[0]] if gaps else fields)]
    after = [_column(f) for f in fields[gaps[0] + 1 :]] if gaps else []

    def check(message: str) -> bool:
        values = []
        for match in _COLUMN.finditer(message):
            bracketed, quoted, bare = match.groups()
            values.append(bracketed if bracketed is not None else quoted if quoted is not None else bare)
        if len(values) < len(before) + len(after) or (not gaps and len(values) != len(before)):
            return False
        return all(t(v) for t, v in zip(before, values, strict=False)) and all(
            t(v) for t, v in zip(reversed(after), reversed(values), strict=False)
        )

    return check


def _split_columns(text: str) -> list[str]:
    """At commas that are in no quotes and no regular expression."""
    parts = re.findall(r'((?:"(?:[^"\\]|\\.)*"|%(?:[^%\\]|\\.)+%|[^,"%]|["%])*)(?:,|$)', text)
    # findall finds one more, empty part after the last one.
    fields = [p.strip() for p in (parts[:-1] if len(parts) > 1 and not parts[-1] else parts)]
    if any(not f for f in fields):
        raise Invalid("Invalid filter pattern: a column has no name.")
    return fields


def _column(field: str) -> Callable[[str], bool]:
    tokens = _Tokens(field)
    kind, name = tokens.take()
    if kind != "word" or name.startswith("$"):
        raise Invalid(f"Invalid filter pattern: {name[:50]!r} is not a column's name.")
    if tokens.ended:
        return lambda value: True
    tokens = _Tokens(field)

    def select(word: str) -> Callable[[Any], Any]:
        if word != name:
            raise Invalid(f"Invalid filter pattern: column {name[:50]!r} can't ask for {word[:50]!r}.")
        return lambda value: value

    predicate = _Expression(tokens, select).either()
    if not tokens.ended:
        raise Invalid(f"Invalid filter pattern: unexpected {tokens.rest()[:50]!r}.")
    return predicate
