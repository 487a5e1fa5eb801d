"""What placement constraints and strategies may say (reference B.7). Raises `Invalid` for the first thing that is wrong."""

from collections.abc import Mapping, Sequence

from hutch.base.errors import Invalid
from hutch.rules.placement_expression import parse

MAX_CONSTRAINTS = 10
MAX_STRATEGIES = 5
_STRATEGIES = ("random", "spread", "binpack")
_BINPACK = ("cpu", "memory")
_SPREAD = ("", "instanceId", "host")


def check_constraints(constraints: Sequence[Mapping[str, str]]) -> None:
    """Those of a task definition, or those and a launch's."""
    if len(constraints) > MAX_CONSTRAINTS:
        raise Invalid(
            f"A task can have at most {MAX_CONSTRAINTS} placement constraints, those of its task definition included."
        )
    for constraint in constraints:
        kind, expression = constraint.get("type"), constraint.get("expression", "")
        if kind == "memberOf":
            parse(expression)
        elif kind != "distinctInstance":
            raise Invalid("A placement constraint needs a type: memberOf or distinctInstance.")
        elif expression:
            raise Invalid("A placement constraint of type distinctInstance can't have an expression.")


def check_strategies(strategies: Sequence[Mapping[str, str]]) -> None:
    """Those of a launch. `random` uses no field, and any is taken, as by AWS."""
    if len(strategies) > MAX_STRATEGIES:
        raise Invalid(f"A task can have at most {MAX_STRATEGIES} placement strategies.")
    for strategy in strategies:
        kind, field = strategy.get("type"), strategy.get("field", "")
        if kind not in _STRATEGIES:
            raise Invalid(f"A placement strategy needs a type: {', '.join(_STRATEGIES)}.")
        if kind == "binpack" and field.lower() not in _BINPACK:
            raise Invalid(f"binpack field '{field[:100]}' is invalid")
        if kind == "spread" and field not in _SPREAD and not field.startswith("attribute:"):
            raise Invalid(f"spread field '{field[:100]}' is invalid")
