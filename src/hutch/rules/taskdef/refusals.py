"""How a task definition is refused: always AWS's `ClientException`."""

import msgspec

from hutch.base.errors import Invalid


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Something that AWS Fargate does not accept, in its words."""

    message: str


def refuse(message: str) -> Invalid:
    """The refusal to raise."""
    return Invalid(message, code="ClientException")
