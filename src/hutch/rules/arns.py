"""ECS names and ARNs (the long format, the only one for new resources)."""

import re

from hutch.base.errors import Invalid

_TASK_ID_LENGTHS = (32, 36)
_ARN = re.compile(r"arn:aws[a-z-]*:ecs:[a-z0-9-]*:[0-9]*:[a-z-]+/[A-Za-z0-9_/:.-]+")


def short_name(reference: str) -> str:
    """The last part of an ARN, or the name itself. Raises `Invalid` for what looks like an ARN and is none."""
    if not reference.startswith("arn:"):
        return reference
    if not _ARN.fullmatch(reference):
        raise Invalid("Invalid ARN.", code="InvalidParameterException")
    return reference.rpartition("/")[2]


def member_name(reference: str, kind: str, cluster: str) -> str:
    """The id of a cluster's task or container instance, from itself or its ARN.

    Raises `Invalid` in AWS's words for the ARN of another kind of thing, or of one in another cluster.
    """
    if not reference.startswith("arn:"):
        return reference
    found, parts = parse_resource(reference)
    if found != kind:
        raise Invalid(f"Unsupported resource type: {found}")
    if len(parts) == 2 and parts[0] != cluster:
        raise Invalid(f"Invalid identifier: Identifier is for cluster {parts[0]}. Your cluster is {cluster}")
    return parts[-1]


def task_id(reference: str, cluster: str, member: str = "taskId") -> str:
    """The id of a cluster's task, from itself or its ARN; `member` is what AWS calls it. Raises `Invalid`."""
    found = member_name(reference, "task", cluster)
    if len(found) not in _TASK_ID_LENGTHS:
        raise Invalid(f"{member} length should be one of [32,36]")
    return found


def parse_resource(arn: str) -> tuple[str, tuple[str, ...]]:
    """The resource type of an ECS ARN and the parts of its name: ("task", ("cluster", "id"))."""
    if not _ARN.fullmatch(arn):
        raise Invalid(f"Invalid ARN: {arn[:200]}", code="InvalidParameterException")
    kind, _, rest = arn.split(":", 5)[5].partition("/")
    return kind, tuple(rest.split("/"))
