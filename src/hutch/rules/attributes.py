"""Attributes of container instances: their names and values, and what is known of every instance without being told."""

import re
from collections.abc import Iterable

from hutch.base.errors import Invalid
from hutch.model.host import ContainerInstance, Host
from hutch.rules.placement_expression import TASK_GROUP, Subject

MAX_CUSTOM_ATTRIBUTES = 10
_NAME = re.compile(r"[A-Za-z0-9_/\\.-]{1,128}")
_VALUE = re.compile(r"(?! )[A-Za-z0-9_.@/\\: -]{1,128}(?<! )")


def check_attribute(name: str, value: str) -> None:
    """A custom attribute; "" for one without a value. Raises `Invalid`."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            f"Attribute name {name[:50]!r} is invalid: use 1 to 128 letters, digits, '-', '_', '/', '\\' and '.'."
        )
    if value and not _VALUE.fullmatch(value):
        raise Invalid(
            f"The value of attribute {name} is invalid: use up to 128 letters, digits, '-', '_', '.', '@', '/', '\\', "
            "':' and spaces, and no space at its ends."
        )


def all_attributes(instance: ContainerInstance, host: Host) -> dict[str, str]:
    """What placement can ask for: the built-in attributes, the host's own, and the custom ones."""
    return {
        "ecs.availability-zone": host.availability_zone,
        "ecs.cpu-architecture": host.architecture,
        "ecs.os-type": "linux",
        **host.attributes,
        **instance.attributes,
    }


def subject(instance: ContainerInstance, host: Host, running: int, groups: Iterable[str]) -> Subject:
    """An instance as the cluster query language sees it; `running`: its running tasks, `groups`: the groups of its tasks."""
    return {f"attribute:{k}": v for k, v in all_attributes(instance, host).items()} | {
        "agentConnected": "true" if host.connected else "false",
        "agentVersion": host.agent_version,
        "runningTasksCount": str(running),
        "ec2InstanceId": host.host_id,
        "registeredAt": str(instance.registered_at),
        TASK_GROUP: frozenset(groups),
    }
