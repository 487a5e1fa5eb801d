"""RegisterTaskDefinition: a validated input to a document with AWS's defaults, or AWS's own refusal (reference B.2)."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.placement_request import check_constraints
from hutch.rules.secret_references import SecretReference, parse_value_from
from hutch.rules.sizes import check_ephemeral_gib, parse_cpu_units, parse_memory_mib
from hutch.rules.taskdef.containers import container_checks, container_defaults
from hutch.rules.taskdef.fargate import fargate_refusals
from hutch.rules.taskdef.linux import check_task_namespaces
from hutch.rules.taskdef.refusals import Problem, refuse
from hutch.rules.taskdef.volumes import check_volumes, has_file_systems

MAX_DOCUMENT_BYTES = 64 * 1024
_FAMILY = re.compile(r"[A-Za-z0-9_-]{1,255}")
_MODES = ("bridge", "host", "awsvpc", "none")


class Registration(msgspec.Struct, frozen=True, kw_only=True):
    """A definition that can be stored."""

    family: str
    document: dict[str, Any]
    compatibilities: tuple[str, ...]
    requires_attributes: tuple[str, ...]
    warnings: tuple[str, ...]


def register(given: dict[str, Any], *, strict_aws: bool) -> Registration:
    """Check and complete a RegisterTaskDefinition input (validated against the service model). Raises `Invalid`.

    Under `strict_aws` what AWS Fargate would refuse is refused in its words; else it becomes a warning.
    """
    document = {k: v for k, v in given.items() if k not in ("tags", "family")}
    for check in definition_checks(given["family"], document):
        check()
    document["containerDefinitions"] = [
        container_defaults(c, document.get("networkMode", "bridge")) for c in document["containerDefinitions"]
    ]
    hard, soft = fargate_refusals(document)
    wants_fargate = "FARGATE" in document.get("requiresCompatibilities", [])
    if wants_fargate and hard:
        raise refuse(hard[0].message)
    if wants_fargate and strict_aws and soft:
        raise refuse(soft[0].message)
    return Registration(
        family=given["family"],
        document=document,
        compatibilities=_compatibilities(document, hard),
        requires_attributes=_attributes(document),
        warnings=tuple(p.message for p in soft) if wants_fargate else (),
    )


def definition_checks(family: str, document: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """All checks but Fargate's, in AWS's order; each raises `Invalid` for the first thing that it finds. The document's
    sizes are brought into one spelling on the way, and its lists are there from then on."""
    yield partial(_check_family, family)
    yield partial(_check_length, document)
    yield partial(_task_size, document)
    document.setdefault("volumes", [])
    document.setdefault("placementConstraints", [])
    yield partial(_network_mode, document)
    yield partial(_placement, document)
    yield partial(check_volumes, document)
    yield partial(check_task_namespaces, document)
    yield from container_checks(document)


def _check_family(family: str) -> None:
    if not _FAMILY.fullmatch(family):
        raise refuse("Family contains invalid characters.")


def _check_length(document: dict[str, Any]) -> None:
    if len(msgspec.json.encode(document)) > MAX_DOCUMENT_BYTES:
        raise refuse(f"The task definition can have at most {MAX_DOCUMENT_BYTES} bytes.")


def _task_size(document: dict[str, Any]) -> None:
    if "cpu" in document:
        document["cpu"] = str(parse_cpu_units(document["cpu"]))
    if "memory" in document:
        document["memory"] = str(parse_memory_mib(document["memory"]))
    check_ephemeral_gib(document.get("ephemeralStorage", {}).get("sizeInGiB"))


def _network_mode(document: dict[str, Any]) -> None:
    mode = document.get("networkMode")
    wants_fargate = "FARGATE" in document.get("requiresCompatibilities", [])
    if mode is not None and mode not in _MODES:
        raise refuse(f"Network mode {mode} is not supported; use one of {', '.join(_MODES)}.")
    if wants_fargate and mode != "awsvpc":
        raise refuse("Fargate only supports network mode ‘awsvpc’.")


def _placement(document: dict[str, Any]) -> None:
    try:
        check_constraints(document["placementConstraints"])
    except Invalid as error:
        raise refuse(error.message) from None


def _compatibilities(document: dict[str, Any], hard: list[Problem]) -> tuple[str, ...]:
    """Every launch type that the definition passes for."""
    found = ["EC2"]
    if document.get("networkMode") == "awsvpc":
        if not hard:
            found.append("FARGATE")
    else:
        found.append("EXTERNAL")
    missing = [t for t in document.get("requiresCompatibilities", []) if t not in found]
    if missing:
        raise refuse(
            f"The task definition is not compatible with {missing[0]}"
            + (": it needs network mode bridge, host or none." if missing[0] == "EXTERNAL" else ".")
        )
    return tuple(found)


def _attributes(document: dict[str, Any]) -> tuple[str, ...]:
    """What AWS asks of a container instance for it, in AWS's names."""
    found = {"com.amazonaws.ecs.capability.docker-remote-api.1.18"}
    if document.get("networkMode") == "awsvpc":
        found.add("ecs.capability.task-eni")
    if document.get("taskRoleArn"):
        found.add("com.amazonaws.ecs.capability.task-iam-role")
    if has_file_systems(document):
        found.add("ecs.capability.efs")
        if any(v.get("efsVolumeConfiguration", {}).get("authorizationConfig") for v in document["volumes"]):
            found.add("ecs.capability.efsAuth")
    for container in document["containerDefinitions"]:
        driver = container.get("logConfiguration", {}).get("logDriver")
        if driver:
            found.add(f"com.amazonaws.ecs.capability.logging-driver.{driver}")
        if driver and document.get("executionRoleArn"):
            found.add(f"ecs.capability.execution-role-{driver}")
        if container.get("healthCheck"):
            found.add("ecs.capability.container-health-check")
        if container.get("dependsOn"):
            found.add("ecs.capability.container-ordering")
        if container.get("privileged"):
            found.add("com.amazonaws.ecs.capability.privileged-container")
        if container.get("repositoryCredentials"):
            found.add("ecs.capability.private-registry-authentication.secretsmanager")
        if container.get("environmentFiles"):
            found.add("ecs.capability.env-files.s3")
        if router := container.get("firelensConfiguration"):
            found.add(f"ecs.capability.firelens.{router['type']}")
            if kind := (router.get("options") or {}).get("config-file-type"):
                found.add(f"ecs.capability.firelens.options.config.{kind}")
        for secret in container.get("secrets", ()):
            found.add(f"ecs.capability.secrets.{_store_of(secret)}.environment-variables")
        for secret in container.get("logConfiguration", {}).get("secretOptions") or ():
            found.add(f"ecs.capability.secrets.{_store_of(secret)}.bootstrap.log-driver")
    return tuple(sorted(found))


def _store_of(secret: dict[str, Any]) -> str:
    return "asm" if isinstance(parse_value_from(secret["valueFrom"]), SecretReference) else "ssm"
