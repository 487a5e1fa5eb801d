"""What AWS Fargate refuses. *Hard* is what hutch's microVMs can't do either; *soft* is what they can: a warning.

Messages: reference B.2.
"""

from typing import Any

from hutch.rules.sizes import check_fargate_size
from hutch.rules.taskdef.refusals import Problem

_UNSUPPORTED_LINUX = ("devices", "sharedMemorySize", "maxSwap", "swappiness", "tmpfs")
_UNSUPPORTED_CONTAINER = (
    "dnsServers",
    "dnsSearchDomains",
    "extraHosts",
    "dockerSecurityOptions",
    "disableNetworking",
)
_FARGATE_LOG_DRIVERS = ("awslogs", "splunk", "awsfirelens")


def fargate_refusals(document: dict[str, Any]) -> tuple[list[Problem], list[Problem]]:
    """(hard, soft) problems of a completed document, in the order in which AWS finds them."""
    hard: list[str] = []
    soft: list[str] = []
    if document.get("networkMode") != "awsvpc":
        hard.append("Fargate only supports network mode ‘awsvpc’.")
    for name in ("cpu", "memory"):
        if name not in document:
            hard.append(f"Fargate requires that '{name}' be defined at the task level.")
    if "cpu" in document and "memory" in document:
        soft.append(check_fargate_size(int(document["cpu"]), int(document["memory"])))
    if document.get("pidMode") == "host":
        hard.append("Fargate compatible task definitions support only pidMode task")
    if "ipcMode" in document:
        (hard if document["ipcMode"] == "host" else soft).append(
            "Fargate compatible task definitions do not support ipcMode"
        )
    if document.get("placementConstraints"):
        hard.append("Fargate compatible task definitions do not support constraints")
    for volume in document.get("volumes", []):
        if volume.get("host", {}).get("sourcePath"):
            hard.append("Fargate compatible task definitions do not support sourcePath")
        if "dockerVolumeConfiguration" in volume:
            soft.append("Fargate compatible task definitions do not support dockerVolumeConfiguration")
    size = document.get("ephemeralStorage", {}).get("sizeInGiB")
    if size is not None and size < 21:
        soft.append("EphemeralStorage size should be at least 21")
    if size is not None and size > 200:
        soft.append("EphemeralStorage size should be at most 200")
    for container in document["containerDefinitions"]:
        soft += _container(container, document)
    return [Problem(message=m) for m in hard if m], [Problem(message=m) for m in soft if m]


def _container(container: dict[str, Any], document: dict[str, Any]) -> list[str]:
    found: list[str] = []
    linux = container.get("linuxParameters", {})
    if container.get("privileged"):
        found.append("Fargate requires that the 'privileged' setting be 'false'")
    found += [
        f"Fargate compatible task definitions do not support {name}"
        for name in _UNSUPPORTED_LINUX
        if name in linux
    ]
    found += [
        f"Fargate compatible task definitions do not support {name}"
        for name in _UNSUPPORTED_CONTAINER
        if container.get(name)
    ]
    if set(linux.get("capabilities", {}).get("add", ())) - {"SYS_PTRACE"}:
        found.append("Fargate compatible task definitions support only SYS_PTRACE in capabilities.add")
    if container.get("stopTimeout", 0) > 120:
        found.append(
            "Tasks using the Fargate launch type must have a container stop timeout of less than 120 seconds."
        )
    if container.get("secrets") and not document.get("executionRoleArn"):
        found.append(
            "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'."
        )
    log = container.get("logConfiguration", {})
    driver = log.get("logDriver")
    router = (container.get("firelensConfiguration") or {}).get("options") or {}
    if router.get("config-file-type") == "s3":
        found.append("Fargate launch type does not support FirelensConfiguration config file from 's3'")
    if log.get("secretOptions") and not document.get("executionRoleArn"):
        found.append(
            "When you are specifying container secrets, you must also specify a value for 'executionRoleArn'."
        )
    if driver and driver not in _FARGATE_LOG_DRIVERS:
        found.append(f"{driver} is not a valid log driver. Must be one of [awslogs, splunk, awsfirelens]")
    if driver == "awslogs":
        if "awslogs-stream-prefix" not in log.get("options", {}):
            found.append(
                "Log driver awslogs requires options: awslogs-region, awslogs-group, awslogs-stream-prefix"
            )
        if not document.get("executionRoleArn"):
            found.append(
                "Fargate requires task definition to have execution role ARN to support log driver awslogs."
            )
    return found
