"""What RegisterTaskDefinition refuses about logs: drivers, their options and secrets, and the log router (reference B.2)."""

import re
from collections.abc import Mapping
from typing import Any

from hutch.base.errors import Invalid
from hutch.rules import awslogs
from hutch.rules.logdrivers import files, firelens, fluentd, syslog
from hutch.rules.logdrivers.options import DELIVERY_OPTIONS, parse_delivery, refuse_unknown
from hutch.rules.objects import parse_object_arn
from hutch.rules.secret_references import parse_value_from

LOG_DRIVERS = ("awslogs", "awsfirelens", "fluentd", "json-file", "local", "none", "syslog")
_ELSEWHERE = {
    "gelf": "run a log router in the task (awsfirelens, with the output plugin gelf)",
    "journald": "hutch keeps output in files of its own (json-file): hutch logs shows it",
    "logentries": "run a log router in the task (awsfirelens)",
    "splunk": "run a log router in the task (awsfirelens, with the output plugin splunk)",
}
"""Log drivers that are not served, and what to do instead."""
_AWSLOGS_OPTIONS = DELIVERY_OPTIONS | {
    "awslogs-group",
    "awslogs-region",
    "awslogs-stream-prefix",
    "awslogs-create-group",
    "awslogs-datetime-format",
    "awslogs-multiline-pattern",
}
_NAMES_OF_LOGS = ("awslogs-group", "awslogs-region", "awslogs-stream-prefix")
_ROUTER_OPTIONS = frozenset({"enable-ecs-log-metadata", "config-file-type", "config-file-value"})


def check_log(container: Mapping[str, Any]) -> None:
    """A container's logConfiguration by itself. Raises `Invalid`."""
    log = container.get("logConfiguration")
    if log is None:
        return
    driver, options = log.get("logDriver"), log.get("options") or {}
    if driver not in LOG_DRIVERS:
        instead = _ELSEWHERE.get(str(driver), "")
        raise Invalid(
            f"hutch does not support log driver {str(driver)[:50]}; use one of {', '.join(LOG_DRIVERS)}"
            + (f", or {instead}." if instead else ".")
        )
    secrets = _secret_options(container["name"], log)
    given = {**dict.fromkeys(secrets, ""), **options}
    if driver == "awslogs":
        _check_awslogs(options, secrets)
    elif driver == "none":
        refuse_unknown("none", given, frozenset())
    elif driver == "awsfirelens":
        parse_delivery(options)
    elif secrets:
        _check_with_secrets(driver, options, secrets)
    else:
        _parse(driver, options)


def _parse(driver: str, options: Mapping[str, str]) -> None:
    if driver == "fluentd":
        fluentd.parse_options(options)
    elif driver == "syslog":
        syslog.parse_options(options)
    else:
        files.parse_options(driver, options)


def _check_with_secrets(driver: str, options: Mapping[str, str], secrets: list[str]) -> None:
    """Only the names of what is secret are known yet; what is not must be right by itself."""
    known = {"fluentd": fluentd.OPTIONS, "syslog": syslog.OPTIONS}.get(driver, files.OPTIONS)
    refuse_unknown(driver, dict.fromkeys([*options, *secrets], ""), known)
    if driver not in ("fluentd", "syslog"):
        raise Invalid(f"Log driver {driver}: option {secrets[0]} can't be a secret.")
    stand_in = {"syslog-address": "udp://host:514"} if "syslog-address" in secrets else {}
    _parse(driver, {**options, **stand_in})


def _secret_options(container: str, log: Mapping[str, Any]) -> list[str]:
    """The names of the options whose values are secret. Raises `Invalid`."""
    names: list[str] = []
    for secret in log.get("secretOptions") or ():
        name = secret.get("name", "")
        if not name or len(name) > 255 or name in names or name in (log.get("options") or {}):
            raise Invalid(
                f"Container '{container}': a secret option of its log driver needs a name that no other option has, "
                f"not {name[:50]!r}."
            )
        names.append(name)
        try:
            parse_value_from(secret.get("valueFrom", ""))
        except Invalid as error:
            raise Invalid(f"Container '{container}', secret option {name}: {error.message}") from None
    return names


def _check_awslogs(options: Mapping[str, str], secrets: list[str]) -> None:
    if "awslogs-group" not in options or "awslogs-region" not in options:
        raise Invalid("Log driver awslogs requires options: awslogs-region, awslogs-group")
    unknown = sorted({*options, *secrets} - _AWSLOGS_OPTIONS)
    if unknown:
        raise Invalid(f"Log driver awslogs has no option {unknown[0]!r}.")
    if hidden := sorted(set(secrets) & set(_NAMES_OF_LOGS)):
        raise Invalid(
            f"Log driver awslogs: option {hidden[0]} can't be a secret: whoever reads the log sees it."
        )
    if "awslogs-datetime-format" in options and "awslogs-multiline-pattern" in options:
        raise Invalid("awslogs-datetime-format and awslogs-multiline-pattern exclude each other.")
    parse_delivery(options)
    if not re.fullmatch(r"[.\-_/#A-Za-z0-9]{1,512}", options["awslogs-group"]):
        raise Invalid(f"{options['awslogs-group'][:100]!r} is not a log group name.")
    try:
        awslogs.start_pattern(options)
    except Invalid as error:
        raise Invalid(f"{error.message}.") from None


def check_router(document: Mapping[str, Any]) -> None:
    """The containers that send to a log router, and the router: all or none of it. Raises `Invalid`, in AWS's words where
    these are known."""
    containers = document["containerDefinitions"]
    routers = [c for c in containers if c.get("firelensConfiguration")]
    users = [c for c in containers if uses_router(c)]
    if users and not routers:
        raise Invalid(
            "When awsfirelens log driver is specified in log configuration, a firelens configuration object must be "
            "configured in one of the containers."
        )
    if routers and not users:
        raise Invalid(
            "When a firelensConfiguration object is specified, at least one container has to be configured with the "
            "awsfirelens log driver."
        )
    if len(routers) > 1:
        raise Invalid("Only one container of a task can have a firelensConfiguration.")
    for router in routers:
        _check_router(router, users)


def uses_router(container: Mapping[str, Any]) -> bool:
    """Whether a container's logs go to the task's log router."""
    driver = (container.get("logConfiguration") or {}).get("logDriver")
    return bool(driver == firelens.DRIVER)


def _check_router(router: Mapping[str, Any], users: list[Mapping[str, Any]]) -> None:
    name, given = router["name"], router["firelensConfiguration"]
    kind, options = given.get("type"), given.get("options") or {}
    if kind not in firelens.CONFIG_PATHS:
        raise Invalid("firelensConfiguration.type must be fluentd or fluentbit.")
    if unknown := sorted(set(options) - _ROUTER_OPTIONS):
        raise Invalid(f"firelensConfiguration has no option {unknown[0][:50]!r}.")
    if options.get("enable-ecs-log-metadata", "true").lower() not in ("true", "false"):
        raise Invalid("firelensConfiguration option enable-ecs-log-metadata must be true or false.")
    file_type, value = options.get("config-file-type"), options.get("config-file-value", "")
    if (file_type is None) != (not value) or file_type not in (None, "file", "s3"):
        raise Invalid(
            "firelensConfiguration options config-file-type (file, s3) and config-file-value go together."
        )
    if file_type == "s3":
        parse_object_arn(value)
    elif value and not re.fullmatch(r"/[^\s]{1,1023}", value):
        raise Invalid("firelensConfiguration option config-file-value must be a path in the router's image.")
    if value == firelens.CONFIG_PATHS[kind]:
        raise Invalid(f"config-file-value can't be {value}: that is where the generated configuration is.")
    if router.get("user") and not re.fullmatch(r"(0|root)(:.*)?", router["user"]):
        raise Invalid(
            f"Container '{name}' has a firelensConfiguration and so has to run as root: leave out user."
        )
    if uses_router(router):
        raise Invalid(f"Container '{name}' is the log router, and can't use log driver awsfirelens itself.")
    for user in users:
        log = user["logConfiguration"]
        secrets = [s.get("name", "") for s in log.get("secretOptions") or ()]
        firelens.check_options(kind, log.get("options") or {}, secrets)
