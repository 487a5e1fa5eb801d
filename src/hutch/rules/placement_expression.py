"""The cluster query language of memberOf constraints and of ListContainerInstances' filter.

    expression := term (("or" | "||") term)*        term := factor (("and" | "&&") factor)*
    factor     := ("not" | "!")? ("(" expression ")" | subject operator value)
    operator   := == equals != > greater_than >= < less_than <= exists !exists in not_in =~ matches !~

Grammar: the ECS developer guide's "cluster query language"; at most 2,000 characters.
"""

import re
from collections.abc import Callable, Collection, Mapping

from hutch.base.errors import Invalid
from hutch.rules.regex import Wildcard

MAX_LENGTH = 2000
MAX_DEPTH = 40
MAX_WILDCARDS = 4

_TOKEN = re.compile(
    r"\s*(?:(&&|\|\||==|!=|>=|<=|=~|!~|!exists|!in|!|>|<|\(|\)|\[|\]|,)|([^\s()\[\],!=<>&|~]+))"
)
_WORDS = {
    "equals": "==",
    "not_equals": "!=",
    "greater_than": ">",
    "greater_than_equal": ">=",
    "less_than": "<",
    "less_than_equal": "<=",
    "not_exists": "!exists",
    "not_in": "!in",
    "matches": "=~",
    "not_matches": "!~",
    "and": "&&",
    "or": "||",
    "not": "!",
}
TASK_GROUP = "task:group"
_SUBJECTS = (
    "agentConnected",
    "agentVersion",
    "ec2InstanceId",
    "registeredAt",
    "runningTasksCount",
    TASK_GROUP,
)
Value = str | frozenset[str]
Subject = Mapping[str, Value]
"""What is known of an instance. `task:group` has many values, the groups of the tasks on it: a comparison holds if it
holds for one of them, a negated one if it holds for none."""
Predicate = Callable[[Subject], bool]


def matches(expression: str, subject: Subject) -> bool:
    """Whether a container instance satisfies an expression. Raises `Invalid` if it can't be parsed."""
    return parse(expression)(subject)


def parse(expression: str) -> Predicate:
    """A predicate over a container instance's subjects (`attribute:<name>`, `agentConnected`, ...)."""
    if not expression or len(expression) > MAX_LENGTH:
        raise Invalid(f"The expression must have 1 to {MAX_LENGTH} characters.")
    tokens: list[str] = []
    position = 0
    text = expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Invalid(f"Invalid expression at character {position + 1}.")
        word = match.group(1) or match.group(2)
        tokens.append(_WORDS.get(word, word))
        position = match.end()
    parser = _Parser(tokens)
    predicate = parser.expression(0)
    if parser.peek():
        raise Invalid(f"Invalid expression: unexpected {parser.peek()!r}.")
    return predicate


class _Parser:
    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens
        self._at = 0

    def peek(self) -> str:
        return self._tokens[self._at] if self._at < len(self._tokens) else ""

    def take(self, wanted: str = "") -> str:
        token = self.peek()
        if not token or (wanted and token != wanted):
            raise Invalid(f"Invalid expression: {wanted or 'a value'} is missing.")
        self._at += 1
        return token

    def expression(self, depth: int) -> Predicate:
        if depth > MAX_DEPTH:
            raise Invalid("Invalid expression: nested too deeply.")
        terms = [self._term(depth)]
        while self.peek() == "||":
            self.take()
            terms.append(self._term(depth))
        return lambda s: any(t(s) for t in terms)

    def _term(self, depth: int) -> Predicate:
        factors = [self._factor(depth)]
        while self.peek() == "&&":
            self.take()
            factors.append(self._factor(depth))
        return lambda s: all(f(s) for f in factors)

    def _factor(self, depth: int) -> Predicate:
        if depth > MAX_DEPTH:
            raise Invalid("Invalid expression: nested too deeply.")
        if self.peek() == "!":
            self.take()
            inner = self._factor(depth + 1)
            return lambda s: not inner(s)
        if self.peek() == "(":
            self.take()
            inner = self.expression(depth + 1)
            self.take(")")
            return inner
        return self._comparison()

    def _comparison(self) -> Predicate:
        subject = self.take()
        if subject not in _SUBJECTS and not subject.startswith("attribute:"):
            raise Invalid(
                f"Invalid expression: {subject[:100]!r} is none of attribute:<name>, {', '.join(_SUBJECTS)}."
            )
        operator = self.take()
        if operator in ("exists", "!exists"):
            return lambda s: bool(_values(s, subject)) == (operator == "exists")
        if operator in ("in", "!in"):
            listed = self._list()
            return lambda s: any(v in listed for v in _values(s, subject)) == (operator == "in")
        value = self.take()
        if operator in ("=~", "!~"):
            pattern = _wildcard(value)
            return lambda s: (
                any(pattern.matches(v) for v in _values(s, subject) or ("",)) == (operator == "=~")
            )
        if operator not in _COMPARE:
            raise Invalid(f"Invalid expression: {operator!r} is not an operator.")
        if operator == "!=" and subject == TASK_GROUP:
            return lambda s: value not in _values(s, subject)
        return lambda s: any(_COMPARE[operator](_number_or_text(v, value)) for v in _values(s, subject))

    def _list(self) -> set[str]:
        self.take("[")
        values = {self.take()}
        while self.peek() == ",":
            self.take()
            values.add(self.take())
        self.take("]")
        return values


def _values(known: Subject, subject: str) -> Collection[str]:
    value = known.get(subject)
    if value is None:
        return ()
    return (value,) if isinstance(value, str) else value


def _wildcard(value: str) -> Wildcard:
    """AWS documents Java patterns; only `.`, `*` and `.*` are taken over, so that no pattern can run for ever."""
    body = value.replace(".*", "*")
    if body.count("*") > MAX_WILDCARDS:
        raise Invalid(f"Invalid expression: a pattern can have at most {MAX_WILDCARDS} wildcards.")
    return Wildcard(body, dots=True)


def _number_or_text(left: str, right: str) -> int:
    """-1, 0 or 1; as numbers where both are."""
    try:
        a, b = float(left), float(right)
        return (a > b) - (a < b)
    except ValueError:
        return (left > right) - (left < right)


_COMPARE: dict[str, Callable[[int], bool]] = {
    "==": lambda c: c == 0,
    "!=": lambda c: c != 0,
    ">": lambda c: c > 0,
    ">=": lambda c: c >= 0,
    "<": lambda c: c < 0,
    "<=": lambda c: c <= 0,
}
