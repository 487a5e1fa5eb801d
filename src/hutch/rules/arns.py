"""ECS names and ARNs (the long format, the only one for new resources)."""

import re

from hutch.base.errors import Invalid

_ARN = re.compile(r"arn:aws[a-z-]*:ecs:[a-z0-9-]*:[0-9]*:[a-z-]+/[A-Za-z0-9_/:.-]+")


def short_name(reference: str) -> str:
    """The last part of an ARN, or the name itself. Raises `Invalid` for what looks like an ARN and is none."""
    if not reference.startswith("arn:"):
        return reference
    if not _ARN.fullmatch(reference):
        raise Invalid("Invalid ARN.", code="InvalidParameterException")
    return reference.rpartition("/")[2]


def parse_resource(arn: str) -> tuple[str, tuple[str, ...]]:
    """The resource type of an ECS ARN and the parts of its name: ("task", ("cluster", "id"))."""
    if not _ARN.fullmatch(arn):
        raise Invalid(f"Invalid ARN: {arn[:200]}", code="InvalidParameterException")
    kind, _, rest = arn.split(":", 5)[5].partition("/")
    return kind, tuple(rest.split("/"))
