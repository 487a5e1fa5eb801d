"""Rules of Secrets Manager: names, ARNs, and how staging labels move from version to version."""

import re
from collections.abc import Sequence

from msgspec.structs import replace

from hutch.base.errors import Invalid
from hutch.model.secret import SecretVersion

CURRENT, PREVIOUS = "AWSCURRENT", "AWSPREVIOUS"
MAX_VERSIONS = 100
MAX_STAGES = 20
_NAME = re.compile(r"[A-Za-z0-9/_+=.@!-]{1,512}")
_SUFFIX = re.compile(r"-[A-Za-z0-9]{6}")


def check_name(name: str) -> None:
    """Raises `Invalid` in AWS's words."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            "Invalid name. Must be a valid name containing alphanumeric characters, or any of the following: "
            "-/_+=.@!",
            code="ValidationException",
        )


def name_candidates(secret_id: str, arn_prefix: str) -> tuple[tuple[str, str], ...]:
    """What a SecretId may mean, likeliest first, as (name, suffix or "" for any): a name, an ARN, or an ARN without
    its suffix. `arn_prefix` is `arn:aws:secretsmanager:<region>:<account>:secret:`; foreign ARNs mean nothing."""
    if not secret_id.startswith("arn:"):
        return ((secret_id, ""),)
    if not secret_id.startswith(arn_prefix):
        return ()
    rest = secret_id[len(arn_prefix) :]
    if _SUFFIX.fullmatch(rest[-7:]):
        return ((rest[:-7], rest[-6:]), (rest, ""))
    return ((rest, ""),)


def attach(versions: Sequence[SecretVersion], version_id: str, stages: Sequence[str]) -> list[SecretVersion]:
    """The versions that change when these staging labels move to one of them. A label is on one version only, and
    what was AWSCURRENT becomes AWSPREVIOUS."""
    holder = next((v.version_id for v in versions if CURRENT in v.stages), None)
    displaced = holder if CURRENT in stages and holder not in (None, version_id) else None
    changed = []
    for version in versions:
        kept = [s for s in version.stages if s not in stages or version.version_id == version_id]
        if displaced is not None:
            kept = [s for s in kept if s != PREVIOUS]
        if version.version_id == version_id:
            kept += [s for s in stages if s not in kept]
        elif version.version_id == displaced:
            kept.append(PREVIOUS)
        if tuple(kept) != version.stages:
            changed.append(replace(version, stages=tuple(kept)))
    return changed


def surplus(versions: Sequence[SecretVersion]) -> list[SecretVersion]:
    """The oldest deprecated versions beyond `MAX_VERSIONS`: they can go."""
    deprecated = sorted((v for v in versions if not v.stages), key=lambda v: v.created_at)
    return deprecated[: max(0, len(versions) - MAX_VERSIONS)]
