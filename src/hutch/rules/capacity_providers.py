"""What a capacity provider strategy may say (reference B.7)."""

from collections.abc import Mapping, Sequence
from typing import Any

from hutch.base.errors import Invalid


def check_bases(strategy: Sequence[Mapping[str, Any]]) -> None:
    """One provider at most has a base. Raises `Invalid`."""
    if sum(1 for item in strategy if item.get("base")) > 1:
        raise Invalid("Only one capacity provider in a strategy can have a base value.")


def check_weights(strategy: Sequence[Mapping[str, Any]]) -> None:
    """Some provider can take tasks beyond the base. AWS looks at this only when tasks are launched. Raises `Invalid`."""
    if not any(item.get("weight") for item in strategy):
        raise Invalid(
            "There are no capacity providers in the capacity provider strategy with a weight value greater than "
            "zero. Specify a weight value greater than zero and try again."
        )
