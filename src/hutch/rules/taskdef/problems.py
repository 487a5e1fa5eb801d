"""All that RegisterTaskDefinition would refuse about a definition, not only the first thing."""

from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.sizes import (
    MAX_TASK_CPU_UNITS,
    MAX_TASK_MEMORY_MIB,
    parse_cpu_units,
    parse_memory_mib,
)
from hutch.rules.taskdef.containers import check_identity, container_defaults
from hutch.rules.taskdef.fargate import fargate_refusals
from hutch.rules.taskdef.register import definition_checks, register

_SIZES = (
    ("cpu", parse_cpu_units, str(MAX_TASK_CPU_UNITS)),
    ("memory", parse_memory_mib, str(MAX_TASK_MEMORY_MIB)),
)


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What there is to say of a definition before it is registered."""

    refusals: tuple[str, ...]
    """AWS's (or hutch's) words for each thing that is wrong; empty: it can be registered."""
    document: dict[str, Any]
    """The completed document; of a definition that can't be registered what can still be looked at."""
    compatibilities: tuple[str, ...]
    has_size: bool = True
    """Whether its cpu and memory can be read."""


def examine(given: dict[str, Any]) -> Examined:
    """Look at a RegisterTaskDefinition input (validated against the service model)."""
    refusals: list[str] = []
    document = {k: v for k, v in given.items() if k not in ("tags", "family")}
    usable = _name_all(document, refusals)
    unread = []
    for member, parse, stand_in in _SIZES:
        try:
            parse(document.get(member, stand_in))
        except Invalid as error:
            # The largest there is: so nothing else seems wrong for want of room.
            document[member] = stand_in
            unread.append(member)
            refusals.append(error.message)
    for check in definition_checks(given["family"], document):
        try:
            check()
        except Invalid as error:
            refusals.append(error.message)
    if not refusals:
        try:
            registered = register(given, strict_aws=False)
            return Examined(
                refusals=(), document=registered.document, compatibilities=registered.compatibilities
            )
        except Invalid as error:
            refusals.append(error.message)
    completed = _what_is_left(document, usable)
    if "FARGATE" in document.get("requiresCompatibilities", []):
        refusals += [p.message for p in fargate_refusals(completed)[0]]
    for member in unread:
        del completed[member]
    return Examined(
        refusals=tuple(dict.fromkeys(refusals)),
        document=completed,
        compatibilities=("EC2", "FARGATE", "EXTERNAL"),
        has_size=not unread,
    )


def _name_all(document: dict[str, Any], refusals: list[str]) -> list[str]:
    """Give containers whose name or image is no good others, on which all other checks count. Returns the names of those
    that need none."""
    containers, usable = [], []
    for number, container in enumerate(document["containerDefinitions"]):
        named = {**container}
        for member, stand_in, other in (
            ("name", f"container-{number}", {"image": "x"}),
            ("image", "x", {"name": "x"}),
        ):
            try:
                check_identity({member: container.get(member), **other})
            except Invalid as error:
                refusals.append(error.message)
                named[member] = stand_in
        if (named["name"], named["image"]) == (container.get("name"), container.get("image")):
            usable.append(named["name"])
        containers.append(named)
    document["containerDefinitions"] = containers
    return usable


def _what_is_left(document: dict[str, Any], usable: list[str]) -> dict[str, Any]:
    """The document with its defaults, without what no later step could read."""
    left = {"placementConstraints": [], **document}
    left["volumes"] = [v for v in document.get("volumes", ()) if v.get("name")]
    containers = []
    for container in document["containerDefinitions"]:
        if container["name"] not in usable:
            continue
        ports = [p for p in container.get("portMappings", []) if "containerPort" in p]
        containers.append(
            container_defaults({**container, "portMappings": ports}, left.get("networkMode", "bridge"))
        )
    left["containerDefinitions"] = containers
    return left
