"""A file of threat rules: the subset of Falco's YAML that is served. Whatever the text is, it takes bounded time.

The file is a list of items: `- list:` with `items`, `- macro:` with `condition`, `- rule:` with `desc`, `condition`, `output`,
`priority`, and perhaps `tags`, `enabled`, `source: syscall`. A list or macro must come before what uses it. What Falco has
besides (exceptions, append, override, versions) is refused by name: nothing is left out in silence.
"""

import re
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.base.units import KIB
from hutch.rules.threats.condition import MAX_VALUES, Condition, parse_condition
from hutch.rules.threats.fields import CHMOD, CONNECT, EXEC, FIELDS, LOAD, OPEN, SETUID, Subject, shown

MAX_FILE_BYTES = 256 * KIB
MAX_ITEMS = 500
MAX_NESTING = 8
MAX_DIRECTORIES = 64
MAX_OUTPUT = 2000
MAX_TEXT = 1000
MAX_SHOWN = 200
PRIORITIES = ("EMERGENCY", "ALERT", "CRITICAL", "ERROR", "WARNING", "NOTICE", "INFORMATIONAL", "DEBUG")
_PRIORITY_WORDS = {"INFO": "INFORMATIONAL"}
_MEMBERS = {
    "list": frozenset(("list", "items")),
    "macro": frozenset(("macro", "condition")),
    "rule": frozenset(
        ("rule", "desc", "condition", "output", "priority", "tags", "enabled", "source")
    ),
}  # fmt: skip
_FIELD_IN_OUTPUT = re.compile(r"%(?:\{([^{}%]{1,80})\}|([a-z_]+(?:\.[a-z_]+)+(?:\[[0-9]\])?))")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class ThreatRule(msgspec.Struct, frozen=True, kw_only=True):
    """A rule that is on."""

    name: str
    description: str
    priority: str
    output: str
    tags: tuple[str, ...] = ()
    condition: Condition

    def line(self, subject: Subject) -> str:
        """The rule's output about a subject: one line, without control characters, bounded."""
        filled = _FIELD_IN_OUTPUT.sub(lambda m: shown(m[1] or m[2], subject)[:MAX_SHOWN], self.output)
        words = " ".join(filled.split())
        return "".join(c if c.isprintable() else "?" for c in words)[:MAX_OUTPUT]


class ThreatRules(msgspec.Struct, frozen=True, kw_only=True):
    """All rules of a file, and what must be watched for them."""

    rules: tuple[ThreatRule, ...]
    sources: tuple[str, ...]
    directories: tuple[str, ...]


def parse_rules(text: str) -> ThreatRules:
    """The rules of a file. Raises `Invalid`: which item, and what is wrong with it."""
    lists: dict[str, tuple[str, ...]] = {}
    macros: dict[str, Condition] = {}
    rules: dict[str, ThreatRule] = {}
    for number, item in enumerate(_items(text), 1):
        kind = next((k for k in _MEMBERS if k in item), "")
        if not kind:
            raise Invalid(f"item {number}: it must be a rule, macro or list, not {_words(item)}")
        name = item[kind]
        where = f"item {number} ({kind} {str(name)[:100]!r})"
        if unknown := sorted(str(k) for k in item if k not in _MEMBERS[kind]):
            raise Invalid(f"{where}: {unknown[0][:60]!r} is not served; there are {_words(_MEMBERS[kind])}")
        try:
            if not isinstance(name, str) or not 1 <= len(name) <= 200:
                raise Invalid("its name must be a text of 1 to 200 characters")
            if kind == "list":
                lists[_unique(name, lists, macros)] = _values(item.get("items"), lists)
            elif kind == "macro":
                macros[_unique(name, lists, macros)] = parse_condition(
                    _text(item, "condition"), macros, lists
                )
            elif name in rules:
                raise Invalid("there is a rule of that name already")
            elif (rule := _rule(item, macros, lists)) is not None:
                rules[name] = rule
        except Invalid as error:
            raise Invalid(f"{where}: {error.message}") from None
    return _watched(tuple(rules.values()))


def _items(text: str) -> list[dict[Any, Any]]:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_FILE_BYTES:
        raise Invalid(f"a file of rules has at most {MAX_FILE_BYTES // KIB} KiB")
    # Here and not above: where threat detection is off, nothing of this is loaded.
    import yaml

    try:
        depth = 0
        # Before anything is built: an alias can make a short text a huge value, and nesting costs stack.
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise Invalid("YAML aliases (*name) are not served")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if depth > MAX_NESTING:
                raise Invalid("nested too deeply")
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f"line {mark.line + 1}: " if mark is not None else ""
        raise Invalid(f"not YAML: {at}{getattr(error, 'problem', None) or str(error)[:200]}") from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise Invalid(f"not YAML that can be used: {str(error)[:200]}") from None
    if not isinstance(found, list) or not all(isinstance(i, dict) for i in found):
        raise Invalid("a file of rules is a list of items, each `- rule:`, `- macro:` or `- list:`")
    if len(found) > MAX_ITEMS:
        raise Invalid(f"more than {MAX_ITEMS} items")
    return found


def _unique(name: str, *known: dict[str, Any]) -> str:
    if not _NAME.fullmatch(name) or name in ("and", "or", "not", "in", "exists"):
        raise Invalid("a name has letters, digits, _, . and -")
    if any(name in k for k in known):
        raise Invalid("there is a list or macro of that name already")
    return name


def _values(given: Any, lists: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    if not isinstance(given, list):
        raise Invalid("items must be a list")
    values: list[str] = []
    for each in given:
        if isinstance(each, bool) or not isinstance(each, str | int):
            raise Invalid("items must be texts and numbers")
        values += lists.get(str(each), (str(each),))
        if len(values) > MAX_VALUES:
            raise Invalid(f"more than {MAX_VALUES} values")
    return tuple(values)


def _text(item: dict[Any, Any], member: str) -> str:
    value = item.get(member)
    if not isinstance(value, str) or not value.strip():
        raise Invalid(f"{member} is missing")
    return value


def _rule(
    item: dict[Any, Any], macros: dict[str, Condition], lists: dict[str, tuple[str, ...]]
) -> ThreatRule | None:
    """The rule; None if it is off (and yet must be right)."""
    enabled = item.get("enabled", True)
    if not isinstance(enabled, bool):
        raise Invalid("enabled must be true or false")
    if item.get("source", "syscall") != "syscall":
        raise Invalid("the only source is syscall")
    priority = _text(item, "priority").upper()
    priority = _PRIORITY_WORDS.get(priority, priority)
    if priority not in PRIORITIES:
        raise Invalid(f"priority must be one of {', '.join(PRIORITIES)}")
    output = _text(item, "output").strip()
    if len(output) > MAX_OUTPUT:
        raise Invalid(f"an output has at most {MAX_OUTPUT} characters")
    for match in _FIELD_IN_OUTPUT.finditer(output):
        if (match[1] or match[2]) not in FIELDS:
            raise Invalid(f"the output's field {match[0]!r} is not known here")
    tags = item.get("tags", [])
    if not isinstance(tags, list) or len(tags) > 50 or not all(isinstance(t, str) for t in tags):
        raise Invalid("tags must be a list of at most 50 texts")
    condition = parse_condition(_text(item, "condition"), macros, lists)
    if not condition.kinds:
        raise Invalid("its condition can never hold: no event has all of its fields")
    if condition.kinds == {OPEN} and not condition.directories:
        raise Invalid(
            "it is about writes and names no directory: add fd.directory, or fd.name with = or startswith"
        )
    name, description = str(item["rule"]), _text(item, "desc").strip()[:MAX_TEXT]
    rule = ThreatRule(
        name=name,
        description=description,
        priority=priority,
        output=output,
        tags=tuple(t[:100] for t in tags),
        condition=condition,
    )
    return rule if enabled else None


def _watched(rules: tuple[ThreatRule, ...]) -> ThreatRules:
    kinds = frozenset().union(*(r.condition.kinds for r in rules))
    named = frozenset().union(*(r.condition.directories for r in rules if OPEN in r.condition.kinds))
    # What lies below another one is watched with it.
    outer = sorted(d for d in named if not any(d != o and d.startswith(o.rstrip("/") + "/") for o in named))
    if len(outer) > MAX_DIRECTORIES:
        raise Invalid(f"the rules name more than {MAX_DIRECTORIES} directories to watch")
    sources = tuple(
        k for k in (EXEC, CONNECT, OPEN, SETUID, CHMOD, LOAD) if k in kinds and (k != OPEN or outer)
    )
    return ThreatRules(rules=rules, sources=sources, directories=tuple(outer) if OPEN in kinds else ())


def _words(names: Any) -> str:
    return ", ".join(sorted(str(n)[:40] for n in list(names)[:20])) or "nothing"
