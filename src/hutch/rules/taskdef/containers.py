"""The containers of a task definition: AWS's rules for them, and the defaults that are filled in (reference B.2)."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from hutch.base.errors import Invalid
from hutch.rules import secret_references
from hutch.rules.environment_files import check_environment_files
from hutch.rules.logdrivers.checks import check_log, check_router, uses_router
from hutch.rules.taskdef.linux import check_linux
from hutch.rules.taskdef.refusals import refuse

MAX_CONTAINERS = 10
MIN_CONTAINER_MEMORY_MIB = 6
_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
_PORT_NAME = re.compile(r"[a-z0-9_][a-z0-9_-]{0,63}")
_CONDITIONS = ("START", "COMPLETE", "SUCCESS", "HEALTHY")


def container_checks(document: dict[str, Any]) -> Iterator[Callable[[], None]]:
    """All checks, in AWS's order; each raises `Invalid` for the first thing that it finds. Those behind a container's first
    one, `check_identity`, count on it."""
    containers = document["containerDefinitions"]
    yield partial(_check_count, containers)
    mode = document.get("networkMode", "bridge")
    for container in containers:
        yield partial(check_identity, container)
        yield partial(check_memory, container, document)
        yield partial(_check_ports, container, mode)
        yield partial(check_environment, container["name"], container.get("environment", ()))
        yield partial(_check_health, container)
        yield partial(_check_timeouts, container)
        yield partial(check_linux, container)
        yield partial(_check_log, container)
        yield partial(_check_secrets, container)
        yield partial(check_environment_files, container["name"], container.get("environmentFiles", ()))
    yield partial(_check_names, containers)
    yield partial(check_sums, containers, document)
    yield partial(_check_router, document)
    yield partial(_check_dependencies, containers)
    yield partial(_check_volumes_from, containers)


def _check_count(containers: list[dict[str, Any]]) -> None:
    if not containers:
        raise refuse("Container list cannot be empty.")
    if len(containers) > MAX_CONTAINERS:
        raise refuse(f"Too many containers: a task definition can have at most {MAX_CONTAINERS}.")


def _check_names(containers: list[dict[str, Any]]) -> None:
    names = [c["name"] for c in containers]
    if len(set(names)) != len(names):
        raise refuse("Container names must be unique within a task definition.")
    if not any(c.get("essential", True) for c in containers):
        raise refuse("Task definition doesn't have any essential container")


def check_identity(container: dict[str, Any]) -> None:
    """Name and image, which all other checks count on. Raises `Invalid`."""
    name, image = container.get("name"), container.get("image")
    if not name:
        raise refuse("Container.name should not be null or empty.")
    if not _NAME.fullmatch(name):
        raise refuse("Container.name contains invalid characters.")
    if not image:
        raise refuse("Container.image should not be null or empty.")
    if len(image) > 1024 or re.search(r"\s", image):
        raise refuse(f"Container.image contains invalid characters: {image[:100]!r}.")


def check_environment(name: str, environment: Iterable[Mapping[str, Any]]) -> None:
    """The variables of the container of this name. Raises `Invalid`."""
    if not all(e.get("name") for e in environment):
        raise refuse(f"Container '{name}': each environment variable needs a name.")


def check_memory(container: Mapping[str, Any], document: Mapping[str, Any]) -> None:
    """What a container asks for of what its task has. Raises `Invalid`."""
    name, hard, soft = container["name"], container.get("memory"), container.get("memoryReservation")
    if hard is None and soft is None and "memory" not in document:
        raise refuse(
            f"Invalid setting for container '{name}'. At least one of 'memory' or 'memoryReservation' must be "
            f"specified."
        )
    if hard is not None and hard < MIN_CONTAINER_MEMORY_MIB:
        raise refuse(
            f"Invalid setting for container '{name}'. 'memory' must be at least {MIN_CONTAINER_MEMORY_MIB} MiB."
        )
    if soft is not None and soft < MIN_CONTAINER_MEMORY_MIB:
        raise refuse(
            f"Invalid setting for container '{name}'. 'memoryReservation' must be at least "
            f"{MIN_CONTAINER_MEMORY_MIB} MiB."
        )
    if hard is not None and soft is not None and hard < soft:
        raise refuse(
            f"Invalid setting for container '{name}'. The 'memory' setting must be greater than or equal to "
            f"'memoryReservation'."
        )
    if hard is not None and "memory" in document and hard > int(document["memory"]):
        raise refuse(
            f"Invalid setting for container '{name}'. The 'memory' setting for container '{name}' is greater "
            f"than for the task."
        )
    if container.get("cpu", 0) < 0:
        raise refuse(f"Invalid setting for container '{name}'. 'cpu' can't be negative.")


def check_sums(containers: Sequence[Mapping[str, Any]], document: Mapping[str, Any]) -> None:
    """What all containers ask for of what their task has. Raises `Invalid`."""
    cpu = sum(c.get("cpu", 0) for c in containers)
    memory = sum(c.get("memoryReservation", c.get("memory", 0)) for c in containers)
    if "cpu" in document and cpu > int(document["cpu"]):
        raise refuse(f"The containers' cpu ({cpu}) is more than the task's ({document['cpu']}).")
    if "memory" in document and memory > int(document["memory"]):
        raise refuse(
            f"The containers' memory ({memory} MiB) is more than the task's ({document['memory']} MiB)."
        )


def _check_ports(container: dict[str, Any], mode: str) -> None:
    seen: set[tuple[int, str]] = set()
    for mapping in container.get("portMappings", []):
        if "containerPortRange" in mapping:
            raise refuse("hutch does not support containerPortRange yet: list the ports one by one.")
        port, host = mapping.get("containerPort"), mapping.get("hostPort")
        if port is None or not 1 <= port <= 65535:
            raise refuse(f"Invalid containerPort {port}: use 1 to 65535.")
        if host is not None and not 0 <= host <= 65535:
            raise refuse(f"Invalid hostPort {host}: use 0 to 65535.")
        if mode in ("awsvpc", "host") and host not in (None, 0, port):
            raise refuse(
                f"When networkMode={mode}, the host ports and container ports in port mappings must match."
            )
        name = mapping.get("name")
        if name and not _PORT_NAME.fullmatch(name):
            raise refuse(f"Invalid port mapping name {name[:100]!r}.")
        key = (port, mapping.get("protocol", "tcp"))
        if key in seen:
            raise refuse(f"Duplicate port mapping {port}/{key[1]} in container '{container['name']}'.")
        seen.add(key)


def _check_health(container: dict[str, Any]) -> None:
    check = container.get("healthCheck")
    if check is None:
        return
    command = check.get("command") or [""]
    if command[0] not in ("CMD", "CMD-SHELL", "NONE") or (len(command) < 2 and command[0] != "NONE"):
        raise refuse("Health check command must start with CMD or CMD-SHELL and name what to run.")
    for name, low, high in (
        ("interval", 5, 300),
        ("timeout", 2, 60),
        ("retries", 1, 10),
        ("startPeriod", 0, 300),
    ):
        value = check.get(name)
        if value is not None and not low <= value <= high:
            raise refuse(f"Health check {name} must be between {low} and {high}.")


def _check_timeouts(container: dict[str, Any]) -> None:
    for member, word in (("startTimeout", "start"), ("stopTimeout", "stop")):
        value = container.get(member)
        if value is not None and value < 2:
            raise refuse(
                f"Granular {word} timeout on container '{container['name']}' must be at least 2 seconds."
            )
    policy = container.get("restartPolicy", {})
    period = policy.get("restartAttemptPeriod")
    if period is not None and not 60 <= period <= 1800:
        raise refuse("restartAttemptPeriod must be between 60 and 1800 seconds.")
    if len(policy.get("ignoredExitCodes", ())) > 50:
        raise refuse("ignoredExitCodes can have at most 50 items.")


def _check_volumes_from(containers: list[dict[str, Any]]) -> None:
    names = {c["name"] for c in containers}
    edges = {}
    for container in containers:
        sources = [v.get("sourceContainer", "") for v in container.get("volumesFrom", [])]
        for source in sources:
            if source not in names or source == container["name"]:
                raise refuse(
                    f"Container '{container['name']}' takes volumes from '{source}', which is not another container."
                )
        edges[container["name"]] = sources
    if _has_cycle(edges):
        raise refuse("The containers' volumesFrom form a cycle.")


def _check_log(container: dict[str, Any]) -> None:
    try:
        check_log(container)
    except Invalid as error:
        raise refuse(error.message) from None


def _check_router(document: dict[str, Any]) -> None:
    try:
        check_router(document)
    except Invalid as error:
        raise refuse(error.message) from None


def _check_secrets(container: dict[str, Any]) -> None:
    try:
        secret_references.check_container(container)
    except Invalid as error:
        raise refuse(error.message) from None


def _check_dependencies(containers: list[dict[str, Any]]) -> None:
    by_name = {c["name"]: c for c in containers}
    edges: dict[str, list[str]] = {}
    for container in containers:
        edges[container["name"]] = []
        for dependency in container.get("dependsOn", []):
            name, condition = dependency["containerName"], dependency["condition"]
            target = by_name.get(name)
            if target is None:
                raise refuse(f"Cannot depend on container + '{name}' because it does not exist")
            if condition not in _CONDITIONS:
                raise refuse(f"dependsOn condition must be one of {', '.join(_CONDITIONS)}.")
            if condition in ("SUCCESS", "COMPLETE") and target.get("essential", True):
                raise refuse(
                    "A dependency container with SUCCESS or COMPLETE condition cannot be an essential container"
                )
            if condition == "HEALTHY" and not target.get("healthCheck"):
                raise refuse(
                    "A dependency container with HEALTHY condition must have health check configured"
                )
            edges[container["name"]].append(name)
    if _has_cycle(edges):
        raise refuse("The containers' dependsOn form a cycle.")
    for router in (c["name"] for c in containers if c.get("firelensConfiguration")):
        for container in filter(uses_router, containers):
            edges[container["name"]].append(router)
        if _has_cycle(edges):
            raise refuse(f"Log router '{router}' can't depend on a container whose logs it is to take.")


def _has_cycle(edges: dict[str, list[str]]) -> bool:
    remaining = dict(edges)
    while remaining:
        free = [n for n, targets in remaining.items() if not any(t in remaining for t in targets)]
        if not free:
            return True
        for name in free:
            del remaining[name]
    return False


def container_defaults(container: dict[str, Any], mode: str) -> dict[str, Any]:
    """A container definition with AWS's defaults filled in."""
    completed: dict[str, Any] = {
        "cpu": 0,
        "essential": True,
        "environment": [],
        "mountPoints": [],
        "volumesFrom": [],
        "systemControls": [],
        **container,
    }
    completed["portMappings"] = [_port(p, mode) for p in container.get("portMappings", [])]
    if "healthCheck" in container:
        completed["healthCheck"] = {"interval": 30, "timeout": 5, "retries": 3, **container["healthCheck"]}
    return completed


def _port(mapping: dict[str, Any], mode: str) -> dict[str, Any]:
    host = mapping.get("hostPort", 0 if mode == "bridge" else mapping["containerPort"])
    if mode != "bridge":
        host = mapping["containerPort"]
    return {"protocol": "tcp", **mapping, "hostPort": host}
