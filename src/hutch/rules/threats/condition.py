"""Conditions of threat rules: a subset of Falco's language, to predicates.

    or  := and ("or" and)*          and := not ("and" not)*         not := "not" not | "(" or ")" | check | macro
    check := field "exists" | field (= == != < <= > >= contains icontains startswith endswith) value
           | field ("in" | "intersects") "(" value ("," value)* ")"

A value is a word or is quoted by ' or "; the name of a list among the values of `in` stands for what is in it. What Falco
has besides (glob, regex, pmatch, transformers) is refused. A field that a subject does not have makes a check false.
Everything is bounded: characters, depth, and how much macros and lists come to.
"""

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.threats.fields import EVENT_KINDS, FIELDS, KINDS, OPEN, Subject, Value

MAX_CHARACTERS = 16_384
MAX_DEPTH = 32
MAX_CHECKS = 1000
"""In one condition, with its macros."""
MAX_VALUES = 5000
_TOKEN = re.compile(r"\s*(?:(<=|>=|!=|==|=|<|>|\(|\)|,)|'([^']*)'|\"([^\"]*)\"|([^\s()=!<>,'\"]+))")
_NUMBERS: dict[str, Callable[[int, int], bool]] = {
    "=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_TEXTS: dict[str, Callable[[str, str], bool]] = {
    "=": operator.eq,
    "contains": lambda a, b: b in a,
    "icontains": lambda a, b: b.lower() in a.lower(),
    "startswith": str.startswith,
    "endswith": str.endswith,
}
_OPERATORS = frozenset((*_NUMBERS, *_TEXTS, "==", "!=", "in", "intersects", "exists"))
_REFUSED = frozenset(("glob", "iglob", "regex", "pmatch", "bcontains", "bstartswith"))
_FLAGS = {"true": True, "false": False}
Predicate = Callable[[Subject], bool]


class Word(msgspec.Struct, frozen=True):
    """A token. `quoted`: it can only be a value."""

    text: str
    quoted: bool = False


class Condition(msgspec.Struct, frozen=True, kw_only=True):
    """A parsed condition: the predicate, and what must be known to answer it."""

    holds: Predicate
    kinds: frozenset[str]
    """Kinds of facts for which it may hold."""
    directories: frozenset[str]
    """Directories that its checks of files name."""
    checks: int
    depth: int = 1
    """How deep it is nested, macros included."""


def parse_condition(
    text: str, macros: Mapping[str, Condition], lists: Mapping[str, tuple[str, ...]]
) -> Condition:
    """The condition. Raises `Invalid` with what is wrong, and where."""
    parser = _Parser(_tokens(text), macros, lists)
    condition = parser.either(0)
    if (left := parser.peek()) is not None:
        raise Invalid(f"unexpected {left.text!r} after the condition's end")
    if condition.checks > MAX_CHECKS:
        raise Invalid(f"more than {MAX_CHECKS} checks, with its macros")
    return condition


def _tokens(text: str) -> list[Word]:
    if len(text) > MAX_CHARACTERS:
        raise Invalid(f"a condition has at most {MAX_CHARACTERS} characters")
    words, position, end = [], 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if match is None:
            raise Invalid(f"can't be read at character {position + 1}: {text[position : position + 20]!r}")
        sign, single, double, word = match.groups()
        quoted = single if single is not None else double
        words.append(Word(quoted, quoted=True) if quoted is not None else Word(sign or word))
        position = match.end()
    return words


class _Parser:
    def __init__(
        self, words: list[Word], macros: Mapping[str, Condition], lists: Mapping[str, tuple[str, ...]]
    ) -> None:
        self._words = words
        self._macros = macros
        self._lists = lists
        self._at = 0

    def peek(self) -> Word | None:
        return self._words[self._at] if self._at < len(self._words) else None

    def _is_next(self, text: str) -> bool:
        word = self.peek()
        return word is not None and not word.quoted and word.text == text

    def _take(self, what: str) -> Word:
        word = self.peek()
        if word is None:
            raise Invalid(f"{what} is missing at the condition's end")
        self._at += 1
        return word

    def _expect(self, text: str) -> None:
        if not self._is_next(text):
            found = self.peek()
            raise Invalid(f"{text!r} is missing before {found.text!r}" if found else f"{text!r} is missing")
        self._at += 1

    def either(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise Invalid("nested too deeply")
        parts = [self._both(depth)]
        while self._is_next("or"):
            self._at += 1
            parts.append(self._both(depth))
        if len(parts) == 1:
            return parts[0]
        predicates = tuple(p.holds for p in parts)
        kinds = frozenset().union(*(p.kinds for p in parts))
        return _joined(parts, lambda s: any(p(s) for p in predicates), kinds)

    def _both(self, depth: int) -> Condition:
        parts = [self._negated(depth)]
        while self._is_next("and"):
            self._at += 1
            parts.append(self._negated(depth))
        if len(parts) == 1:
            return parts[0]
        predicates = tuple(p.holds for p in parts)
        kinds = frozenset(KINDS).intersection(*(p.kinds for p in parts))
        return _joined(parts, lambda s: all(p(s) for p in predicates), kinds)

    def _negated(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise Invalid("nested too deeply")
        if self._is_next("not"):
            self._at += 1
            inner = self._negated(depth + 1)
            # What a negated check names need not be watched: it is what a rule leaves out.
            return Condition(
                holds=lambda s: not inner.holds(s),
                kinds=frozenset(KINDS),
                directories=frozenset(),
                checks=inner.checks,
                depth=_deeper((inner,)),
            )
        if self._is_next("("):
            self._at += 1
            inner = self.either(depth + 1)
            self._expect(")")
            return inner
        return self._check()

    def _check(self) -> Condition:
        word = self._take("a field or macro")
        name = word.text
        following = self.peek()
        is_check = following is not None and not following.quoted and following.text in _OPERATORS | _REFUSED
        if not is_check:
            if word.quoted or name not in self._macros:
                raise Invalid(f"{name!r} is no macro that is defined before, and no check follows it")
            return self._macros[name]
        field = FIELDS.get(name)
        if word.quoted or field is None:
            raise Invalid(f"the field {name!r} is not known here; there are {', '.join(sorted(FIELDS))}")
        sign = self._take("an operator").text
        if sign in _REFUSED:
            raise Invalid(f"the operator {sign!r} is not served; there are {', '.join(sorted(_OPERATORS))}")
        values = self._values(sign)
        return _compile(name, "=" if sign == "==" else sign, values)

    def _values(self, sign: str) -> tuple[str, ...]:
        if sign == "exists":
            return ()
        if sign not in ("in", "intersects"):
            word = self._take("a value")
            if not word.quoted and word.text in ("(", ")", ","):
                raise Invalid(f"a value is missing before {word.text!r}")
            return (word.text,)
        self._expect("(")
        values: list[str] = []
        while not self._is_next(")"):
            word = self._take("a value")
            values += (word.text,) if word.quoted else self._lists.get(word.text, (word.text,))
            if len(values) > MAX_VALUES:
                raise Invalid(f"more than {MAX_VALUES} values")
            if not self._is_next(")"):
                self._expect(",")
        self._expect(")")
        return tuple(values)


def _joined(parts: list[Condition], holds: Predicate, kinds: frozenset[str]) -> Condition:
    checks = sum(p.checks for p in parts)
    if checks > MAX_CHECKS:
        raise Invalid(f"more than {MAX_CHECKS} checks, with its macros")
    directories = frozenset().union(*(p.directories for p in parts))
    return Condition(holds=holds, kinds=kinds, directories=directories, checks=checks, depth=_deeper(parts))


def _deeper(parts: Sequence[Condition]) -> int:
    depth = 1 + max(p.depth for p in parts)
    if depth > MAX_DEPTH:
        raise Invalid("nested too deeply, with its macros")
    return depth


def _compile(name: str, sign: str, values: tuple[str, ...]) -> Condition:
    field = FIELDS[name]
    kinds = frozenset(field.facts or KINDS)
    if sign == "!=":
        same = _compile(name, "=", values).holds
        get = field.get
        return _condition(lambda s: get(s) is not None and not same(s), kinds)
    if sign == "exists":
        get = field.get
        return _condition(lambda s: get(s) is not None, kinds)
    several = sign in ("in", "intersects")
    if name == "evt.dir" and values != ("<",):
        raise Invalid("only the ends of calls are told: evt.dir = <")
    if name == "evt.type":
        kinds = frozenset(_kind_of_event(v) for v in values) if sign in ("=", "in") else kinds
    return Condition(
        holds=_predicate(name, "=" if several else sign, values),
        kinds=kinds,
        directories=_directories(name, sign, values),
        checks=1,
    )


def _condition(holds: Predicate, kinds: frozenset[str]) -> Condition:
    return Condition(holds=holds, kinds=kinds, directories=frozenset(), checks=1)


def _kind_of_event(value: str) -> str:
    if value not in EVENT_KINDS:
        raise Invalid(f"evt.type {value!r} is not told here; there are {', '.join(EVENT_KINDS)}")
    return EVENT_KINDS[value]


def _predicate(name: str, sign: str, values: tuple[str, ...]) -> Predicate:
    """Whether a field is, by an operator, one of the values."""
    field = FIELDS[name]
    if field.kind == "text":
        return _text_predicate(field.get, sign, values)
    if field.kind == "number":
        if sign not in _NUMBERS:
            raise Invalid(f"{name} is a number, which {sign!r} does not fit")
        compare, numbers = _NUMBERS[sign], tuple(_number(name, v) for v in values)
        return _of_any(field.get, lambda found: any(compare(int(found), n) for n in numbers))
    if sign != "=":
        raise Invalid(f"{name} is {'true or false' if field.kind == 'flag' else 'an address'}: use = or in")
    if field.kind == "flag":
        flags = frozenset(_flag(name, v) for v in values)
        return _of_any(field.get, lambda found: found in flags)
    networks = tuple(_network(name, v) for v in values)
    return _of_any(field.get, lambda found: _is_within(str(found), networks))


def _text_predicate(get: Callable[[Subject], Value], sign: str, values: tuple[str, ...]) -> Predicate:
    if sign not in _TEXTS:
        raise Invalid(f"a text can't be compared by {sign!r}")
    if sign == "=":
        wanted = frozenset(values)
        return _of_any(get, lambda found: found in wanted)
    compare = _TEXTS[sign]
    return _of_any(get, lambda found: any(compare(str(found), v) for v in values))


def _of_any(get: Callable[[Subject], Value], test: Callable[[str | int | bool], bool]) -> Predicate:
    def holds(subject: Subject) -> bool:
        found = get(subject)
        if found is None:
            return False
        return any(test(f) for f in found) if isinstance(found, tuple) else test(found)

    return holds


def _number(name: str, value: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", value, re.ASCII):
        raise Invalid(f"{name} is a number, and {value[:40]!r} is none")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value not in _FLAGS:
        raise Invalid(f"{name} is true or false, not {value[:40]!r}")
    return _FLAGS[value]


def _network(name: str, value: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(value, strict=False)
    except ValueError:
        raise Invalid(f"{name} is an address, and {value[:60]!r} is neither one nor a network") from None


def _is_within(text: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return any((mapped or address) in n for n in networks)


def _directories(name: str, sign: str, values: tuple[str, ...]) -> frozenset[str]:
    """Which directories a check needs to be watched."""
    if name not in ("fd.name", "fd.directory") or OPEN not in FIELDS[name].facts:
        return frozenset()
    found = set()
    for value in values:
        if not value.startswith("/") or "/../" in f"{value}/":
            continue
        if name == "fd.directory" and sign in ("=", "in"):
            found.add(value.rstrip("/") or "/")
        elif sign in ("=", "in", "startswith"):
            found.add(value.rpartition("/")[0] or "/")
    return frozenset(found)
