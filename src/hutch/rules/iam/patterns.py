"""Wildcards and policy variables, matched in time that grows with the text and the pattern, never with their product
over stars: a policy's author can't make the gateway slow.
"""

from collections.abc import Mapping, Sequence

import msgspec

Context = Mapping[str, Sequence[str]]
"""Condition keys, in lower case, to their values."""

_ONE = "\0"
"""Stands for `?` inside a piece; policies and requests can't contain it."""
_LITERAL_VARIABLES = {"*": "*", "?": "?", "$": "$"}


class Variable(msgspec.Struct, frozen=True):
    """`${name}` or `${name, 'default'}`."""

    name: str
    default: str | None = None


Piece = tuple[str | Variable, ...]


class Pattern:
    """A pattern: pieces between stars. `fold`: letters match whatever their case."""

    __slots__ = ("_fold", "_pieces", "_texts", "source")

    def __init__(
        self, source: str, *, variables: bool = False, wildcards: bool = True, fold: bool = False
    ) -> None:
        """Raises `ValueError` for a variable that is not closed or has no name."""
        self.source = source
        self._fold = fold
        self._pieces = _parse(source, variables=variables, wildcards=wildcards)
        self._texts: tuple[str, ...] | None = None
        if not self.has_variables:
            self._texts = tuple(self._folded("".join(str(t) for t in piece)) for piece in self._pieces)

    @property
    def has_variables(self) -> bool:
        """Whether what it matches depends on the request's context."""
        return any(isinstance(t, Variable) for piece in self._pieces for t in piece)

    def matches(self, text: str, context: Context) -> bool:
        """Whether the whole text matches. A variable without a value matches nothing."""
        texts = self._texts if self._texts is not None else self._expanded(context)
        return texts is not None and _matches(texts, self._folded(text))

    def _folded(self, text: str) -> str:
        return text.lower() if self._fold else text

    def _expanded(self, context: Context) -> tuple[str, ...] | None:
        texts = []
        for piece in self._pieces:
            parts = []
            for token in piece:
                if isinstance(token, Variable):
                    values = context.get(token.name, ())
                    value = values[0] if len(values) == 1 else token.default
                    if value is None:
                        return None
                    parts.append(value)
                else:
                    parts.append(token)
            texts.append(self._folded("".join(parts)))
        return tuple(texts)


def _parse(source: str, *, variables: bool, wildcards: bool) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    tokens: list[str | Variable] = []
    at = 0
    while at < len(source):
        letter = source[at]
        if variables and letter == "$" and source.startswith("{", at + 1):
            end = source.find("}", at)
            if end < 0:
                raise ValueError("a policy variable is not closed")
            tokens.append(_variable(source[at + 2 : end]))
            at = end + 1
            continue
        if wildcards and letter == "*":
            pieces.append(tuple(tokens))
            tokens = []
        else:
            tokens.append(_ONE if wildcards and letter == "?" else letter)
        at += 1
    pieces.append(tuple(tokens))
    return tuple(pieces)


def _variable(inner: str) -> str | Variable:
    if inner in _LITERAL_VARIABLES:
        return _LITERAL_VARIABLES[inner]
    name, comma, default = inner.partition(",")
    name, default = name.strip().lower(), default.strip()
    if not name or (comma and not (len(default) >= 2 and default[0] == default[-1] == "'")):
        raise ValueError("a policy variable must be ${name} or ${name, 'default'}")
    return Variable(name, default[1:-1] if comma else None)


def _matches(pieces: tuple[str, ...], text: str) -> bool:
    first, last = pieces[0], pieces[-1]
    if len(pieces) == 1:
        return len(first) == len(text) and _is_at(first, text, 0)
    end = len(text) - len(last)
    if end < len(first) or not _is_at(first, text, 0) or not _is_at(last, text, end):
        return False
    at = len(first)
    for piece in pieces[1:-1]:
        at = _find(piece, text, at, end)
        if at < 0:
            return False
        at += len(piece)
    return True


def _is_at(piece: str, text: str, at: int) -> bool:
    if _ONE not in piece:
        return text.startswith(piece, at)
    return all(p in (_ONE, t) for p, t in zip(piece, text[at : at + len(piece)], strict=False))


def _find(piece: str, text: str, start: int, end: int) -> int:
    """The leftmost place of a piece in text[start:end], or -1. With question marks: all places side by side, as the
    bits of one number (shift-and)."""
    if _ONE not in piece:
        return text.find(piece, start, end)
    anything = 0
    masks: dict[str, int] = {}
    for i, letter in enumerate(piece):
        if letter == _ONE:
            anything |= 1 << i
        else:
            masks[letter] = masks.get(letter, 0) | 1 << i
    state, done = 0, 1 << (len(piece) - 1)
    for i in range(start, end):
        state = (state << 1 | 1) & (masks.get(text[i], 0) | anything)
        if state & done:
            return i - len(piece) + 1
    return -1
