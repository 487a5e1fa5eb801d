"""A task's log router (FireLens), from its task definition: its configuration, its secrets, where it listens."""

from collections.abc import Iterable, Mapping
from typing import Any

from hutch.model.task import Task
from hutch.rules.logdrivers import firelens
from hutch.rules.logdrivers.checks import uses_router
from hutch.wire.taskspec import LogRouterSpec

_OWN_LOOPBACK = ("awsvpc", "bridge")
"""Network modes in which the containers of a task share an interface that is nobody else's."""


def router_of(document: dict[str, Any]) -> str:
    """The name of the container that takes the logs of others; "" if there is none."""
    containers = document["containerDefinitions"]
    return next((str(c["name"]) for c in containers if c.get("firelensConfiguration")), "")


def secret_variables(containers: Iterable[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    """What the router needs of secrets: variable to (the container that it is for, its `valueFrom`). `containers` are all
    of a task definition, in its order."""
    return {
        firelens.secret_variable(index, secret["name"]): (container["name"], secret["valueFrom"])
        for index, container in enumerate(containers)
        if uses_router(container)
        for secret in container["logConfiguration"].get("secretOptions") or ()
    }


def include_arn(definition: Mapping[str, Any]) -> str:
    """The object with a router's own part of its configuration; "" if there is none."""
    options = (definition.get("firelensConfiguration") or {}).get("options") or {}
    return str(options["config-file-value"]) if options.get("config-file-type") == "s3" else ""


def log_router_place(document: dict[str, Any], definition: dict[str, Any]) -> dict[str, str]:
    """Where the other containers reach the router, as environment for logger libraries."""
    router = router_of(document)
    shares = document.get("networkMode", "bridge") in _OWN_LOOPBACK and not definition.get(
        "disableNetworking"
    )
    if not router or router == definition["name"] or not shares:
        return {}
    return {"FLUENT_HOST": "127.0.0.1", "FLUENT_PORT": str(firelens.PORT)}


def log_router_spec(
    task: Task, definition: dict[str, Any], document: dict[str, Any], arn: str
) -> LogRouterSpec | None:
    """The configuration of a container that is the router; None for others."""
    given = definition.get("firelensConfiguration")
    if not given:
        return None
    options = given.get("options") or {}
    kept = firelens.INCLUDE_PATHS[given["type"]] if include_arn(definition) else ""
    config = firelens.RouterConfig(
        kind=given["type"],
        cluster=task.cluster,
        task_arn=arn,
        task_definition=f"{task.family}:{task.revision}",
        sources=tuple(
            _source(index, container)
            for index, container in enumerate(document["containerDefinitions"])
            if uses_router(container)
        ),
        adds_metadata=options.get("enable-ecs-log-metadata", "true").lower() == "true",
        include_path=kept or options.get("config-file-value", ""),
        listens=document.get("networkMode", "bridge") in _OWN_LOOPBACK,
    )
    path = firelens.CONFIG_PATHS[given["type"]]
    return LogRouterSpec(config_path=path, config=firelens.config_text(config), include_path=kept)


def _source(index: int, container: dict[str, Any]) -> firelens.Source:
    log = container["logConfiguration"]
    return firelens.Source(
        container=container["name"],
        options=log.get("options") or {},
        secrets={
            s["name"]: firelens.secret_variable(index, s["name"]) for s in log.get("secretOptions") or ()
        },
    )
