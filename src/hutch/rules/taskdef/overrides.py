"""What a launch may override of a task definition: the outcome must be one that could have been registered."""

from collections.abc import Mapping
from typing import Any

from hutch.base.errors import Invalid
from hutch.rules.sizes import check_ephemeral_gib, parse_cpu_units, parse_memory_mib
from hutch.rules.taskdef.containers import check_environment, check_memory, check_sums

_SIZES = ("cpu", "memory", "memoryReservation")


def check_overrides(overrides: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """The sizes and the variables of a launch. Raises `Invalid`; containers that are not there are the caller's to find."""
    try:
        given = {o.get("name"): o for o in overrides.get("containerOverrides", ())}
        for name, override in given.items():
            check_environment(str(name), override.get("environment") or ())
        check_ephemeral_gib(overrides.get("ephemeralStorage", {}).get("sizeInGiB"))
        if any(m in source for source in (overrides, *given.values()) for m in _SIZES):
            _check_sizes(overrides, given, document)
    except Invalid as error:
        # Of a request, not of a task definition, whatever the check was made for.
        raise Invalid(error.message) from None


def _check_sizes(
    overrides: Mapping[str, Any], given: Mapping[str, Mapping[str, Any]], document: Mapping[str, Any]
) -> None:
    whole = dict(document)
    if overrides.get("cpu"):
        whole["cpu"] = str(parse_cpu_units(overrides["cpu"]))
    if overrides.get("memory"):
        whole["memory"] = str(parse_memory_mib(overrides["memory"]))
    containers = []
    for container in document["containerDefinitions"]:
        override = given.get(container["name"], {})
        containers.append(container | {m: override[m] for m in _SIZES if m in override})
        check_memory(containers[-1], whole)
    check_sums(containers, whole)
