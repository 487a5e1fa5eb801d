"""What a target's ARN names, and what events look like to it."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from hutch.base.errors import Invalid, NotServed
from hutch.model.event import Target
from hutch.rules.events.inputs import at_path, transformed

ECS, LOGS, BUS, WEBHOOK = "ecs", "logs", "bus", "webhook"
MAX_URL_CHARACTERS = 2048
CONCURRENCY_TAG = "hutch:concurrencyPolicy"
POLICIES = ("Allow", "Forbid", "Replace")
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


def concurrency_policy(tags: Mapping[str, str]) -> str:
    """What happens while a task of an earlier run still runs. Raises `Invalid`."""
    policy = tags.get(CONCURRENCY_TAG, "Allow")
    if policy not in POLICIES:
        raise Invalid(f"tag {CONCURRENCY_TAG}: {policy[:40]!r} is not Allow, Forbid or Replace.")
    return policy
