"""What a target's ARN names, and what events look like to it."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from hutch.base.errors import Invalid, NotServed
from hutch.model.event import Target
from hutch.rules.cpu_burst import ANY_SIZE, cpu_capped
from hutch.rules.deadline import max_runtime_s
from hutch.rules.events.inputs import at_path, check_transformer, parse_path, transformed

ECS, LOGS, BUS, WEBHOOK = "ecs", "logs", "bus", "webhook"
MAX_URL_CHARACTERS = 2048
MAX_TASKS = 10
CONCURRENCY_TAG = "hutch:concurrencyPolicy"
POLICIES = ("Allow", "Forbid", "Replace")
ECS_MEMBERS = (
    "TaskDefinitionArn",
    "TaskCount",
    "LaunchType",
    "NetworkConfiguration",
    "PlatformVersion",
    "Group",
    "CapacityProviderStrategy",
    "EnableECSManagedTags",
    "EnableExecuteCommand",
    "PlacementConstraints",
    "PlacementStrategy",
    "PropagateTags",
    "Tags",
)
"""Members of `EcsParameters` that a run heeds, whether a rule or a schedule has them."""
_OWN_HEADERS = frozenset(
    [
        "host",
        "content-length",
        "content-type",
        "connection",
        "transfer-encoding",
        "user-agent",
        "x-hutch-delivery",
    ]
)
_ARN = re.compile(r"arn:aws[a-z-]*:(ecs|logs|events):([a-z0-9-]*):(\d*):(.+)", re.DOTALL)


def target_name(arn: str, *, region: str, account_id: str) -> tuple[str, str]:
    """(kind, name): the cluster, log group, event bus or URL. Raises `NotServed`, `Invalid`."""
    if arn.startswith(("http://", "https://")):
        return WEBHOOK, _checked_url(arn)
    match = _ARN.fullmatch(arn)
    if match is None:
        raise NotServed(
            f"hutch can't deliver to {arn[:200]!r}: a target is an ECS cluster, a log group, an event bus, "
            "or an http:// or https:// URL."
        )
    service, where, owner, resource = match.groups()
    if (where, owner) != (region, account_id):
        raise Invalid(f"{arn[:200]!r} is not of this platform: it is {region} of account {account_id}.")
    if service == "ecs" and resource.startswith("cluster/"):
        return ECS, resource.removeprefix("cluster/")
    if service == "logs" and resource.startswith("log-group:"):
        return LOGS, resource.removeprefix("log-group:").removesuffix(":*")
    if service == "events" and resource.startswith("event-bus/"):
        return BUS, resource.removeprefix("event-bus/")
    raise NotServed(f"hutch can't deliver to {arn[:200]!r}.")


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if (
        not usable
        or len(url) > MAX_URL_CHARACTERS
        or not url.isascii()
        or not url.isprintable()
        or " " in url
    ):
        raise Invalid(f"{url[:200]!r} is not a URL that can be called.")
    if "@" in parts.netloc:
        raise Invalid("A URL with a user and password in it would be shown to everybody; use HttpParameters.")
    return url


def payload_of(target: Target, event: Mapping[str, Any], reserved: Mapping[str, Any], *, is_ecs: bool) -> str:
    """What the target gets of an event. A cluster gets overrides, so the event itself says nothing to it."""
    if target.constant is not None:
        return target.constant
    if target.path:
        return msgspec.json.encode(at_path(event, target.path)).decode()
    if target.template:
        return transformed(event, target.template_paths, target.template, reserved)
    return "" if is_ecs else msgspec.json.encode(event).decode()


def overrides_in(text: str | None) -> dict[str, Any]:
    """A task's overrides out of the input of a target that is a cluster. Raises `Invalid`."""
    if not text:
        return {}
    try:
        found = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise Invalid("The input of a target that is an ECS cluster is a JSON object: a task's overrides.")
    return found


def concurrency_policy(tags: Mapping[str, str]) -> str:
    """What happens while a task of an earlier run still runs. Raises `Invalid`."""
    policy = tags.get(CONCURRENCY_TAG, "Allow")
    if policy not in POLICIES:
        raise Invalid(f"tag {CONCURRENCY_TAG}: {policy[:40]!r} is not Allow, Forbid or Replace.")
    return policy


def check_target(target: Target, *, region: str, account_id: str) -> str:
    """The kind of a target that is whole; raises `Invalid`, `NotServed` for one that could never be served."""
    kind, _ = target_name(target.arn, region=region, account_id=account_id)
    if sum((target.constant is not None, bool(target.path), bool(target.template))) > 1:
        raise Invalid("Only one of Input, InputPath, or InputTransformer must be provided.")
    if target.path:
        parse_path(target.path)
    if target.template:
        check_transformer(target.template_paths, target.template)
    if kind == ECS:
        _check_ecs(target)
    elif "TaskDefinitionArn" in target.parameters:
        raise Invalid("EcsParameters are for targets that are ECS clusters.")
    if kind == WEBHOOK:
        check_headers(target.parameters.get("HeaderParameters", {}))
    elif target.parameters.keys() & {"HeaderParameters", "QueryStringParameters"}:
        raise Invalid("HttpParameters are for targets that are URLs.")
    return kind


def _check_ecs(target: Target) -> None:
    given = target.parameters
    if "TaskDefinitionArn" not in given:
        raise Invalid("A target that is an ECS cluster needs EcsParameters with a TaskDefinitionArn.")
    if not 1 <= given.get("TaskCount", 1) <= MAX_TASKS:
        raise Invalid(f"TaskCount must be between 1 and {MAX_TASKS}.")
    tags = {
        str(t.get("Key", t.get("key"))): str(t.get("Value", t.get("value"))) for t in given.get("Tags", ())
    }
    concurrency_policy(tags)
    max_runtime_s(tags)
    cpu_capped(tags, {}, ANY_SIZE)
    overrides_in(target.constant)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raises `Invalid` for what would break out of its line, or is hutch's own to set."""
    for name, value in headers.items():
        if not name or not name.isascii() or not all(c.isalnum() or c in "!#$%&'*+-.^_`|~" for c in name):
            raise Invalid(f"{name[:40]!r} is not the name of an HTTP header.")
        if name.lower() in _OWN_HEADERS:
            raise Invalid(f"The header {name} is set by hutch.")
        if not value.isprintable() or not all(ord(c) < 256 for c in value):
            raise Invalid(f"The value of header {name} has characters that a header can't have.")
