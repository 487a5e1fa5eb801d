"""Volumes that are files written down in a task definition, or secrets as files: hutch's own volume drivers (ADR 0028)."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.secret_references import parse_value_from
from hutch.rules.taskdef.refusals import refuse

TEXTS_DRIVER = "hutch-files"
"""`driverOpts`: path to text."""
SECRETS_DRIVER = "hutch-secret-files"
"""`driverOpts`: path to what a container's secret has as its `valueFrom`."""
DRIVERS = (TEXTS_DRIVER, SECRETS_DRIVER)
MAX_FILES = 100
MAX_PATH_BYTES = 255
MAX_DEPTH = 8
MAX_OWNER_ID = 2**31 - 1
TEXT_MODE, SECRET_MODE = 0o444, 0o400
LABEL_PREFIX = "hutch:"
_LABELS = ("hutch:mode", "hutch:uid", "hutch:gid")
_NAME = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)
_MODE = re.compile(r"0?[0-7]{3}", re.ASCII)
_NUMBER = re.compile(r"[0-9]{1,10}", re.ASCII)


class FileVolume(msgspec.Struct, frozen=True, kw_only=True):
    """The files of a volume. By path: texts as they are, or references to secrets; one of the two is empty. All files have
    the same owner and permissions."""

    texts: dict[str, str] = {}
    references: dict[str, str] = {}
    mode: int
    uid: int = 0
    gid: int = 0


def path_problem(path: str) -> str:
    """Why a file can't have a path; "" if it can. What is left is relative, and stays below the volume."""
    if len(path.encode("utf-8", "replace")) > MAX_PATH_BYTES:
        return f"is longer than {MAX_PATH_BYTES} bytes"
    parts = path.split("/")
    if len(parts) > MAX_DEPTH:
        return f"has more than {MAX_DEPTH} steps"
    for part in parts:
        if part in (".", "..") or not _NAME.fullmatch(part):
            return (
                "must be relative, its steps of letters, digits, '.', '-' and '_', none of them '.' or '..'"
            )
    return ""


def paths_problem(paths: Iterable[str]) -> str:
    """Why files can't have these paths beside each other; "" if they can."""
    known = set(paths)
    if not 1 <= len(known) <= MAX_FILES:
        return f"a volume of files has between 1 and {MAX_FILES} of them"
    for path in sorted(known):
        if problem := path_problem(path):
            return f"the path {path[:100]!r} {problem}"
    for path in sorted(known):
        parts = path.split("/")
        above = next((p for i in range(1, len(parts)) if (p := "/".join(parts[:i])) in known), "")
        if above:
            return f"{above!r} can't be a file and the directory of {path!r}"
    return ""


def check_file_volume(name: str, given: Mapping[str, Any]) -> None:
    """What a registration refuses about a `dockerVolumeConfiguration` with one of `DRIVERS`. Raises `Invalid`."""
    driver, options = given["driver"], given.get("driverOpts") or {}
    if given.get("scope", "task") != "task" or given.get("autoprovision"):
        raise refuse(f"Volume {name}: with driver {driver} scope must be task, without autoprovision.")
    if problem := paths_problem(options):
        raise refuse(f"Volume {name}: {problem} (driverOpts).")
    if driver == SECRETS_DRIVER:
        for path, reference in options.items():
            try:
                parse_value_from(reference)
            except Invalid as error:
                raise refuse(f"Volume {name}, secret {path}: {error.message}") from None
    labels = given.get("labels") or {}
    for label, value in labels.items():
        if not label.startswith(LABEL_PREFIX):
            continue
        if label not in _LABELS:
            raise refuse(f"Volume {name}: label {label[:100]!r} is not one of {', '.join(_LABELS)}.")
        if label == "hutch:mode" and not _MODE.fullmatch(value):
            raise refuse(f"Volume {name}: hutch:mode must be three octal digits, such as 0440.")
        if label != "hutch:mode" and not (_NUMBER.fullmatch(value) and int(value) <= MAX_OWNER_ID):
            raise refuse(f"Volume {name}: {label} must be a number between 0 and {MAX_OWNER_ID}.")


def file_volume(volume: Mapping[str, Any]) -> FileVolume | None:
    """The files of a volume of a registered definition; None if it is of another kind."""
    given = volume.get("dockerVolumeConfiguration") or {}
    if given.get("driver") not in DRIVERS:
        return None
    is_secret = given["driver"] == SECRETS_DRIVER
    options, labels = dict(given["driverOpts"]), given.get("labels") or {}
    default = SECRET_MODE if is_secret else TEXT_MODE
    return FileVolume(
        texts={} if is_secret else options,
        references=options if is_secret else {},
        mode=int(labels["hutch:mode"], 8) if "hutch:mode" in labels else default,
        uid=int(labels.get("hutch:uid", 0)),
        gid=int(labels.get("hutch:gid", 0)),
    )


def secret_files(document: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(volume, path, reference) of all secrets that a definition, checked or not, wants as files."""
    found = []
    for volume in document.get("volumes", ()):
        given = volume.get("dockerVolumeConfiguration") or {}
        if given.get("driver") == SECRETS_DRIVER:
            options = given.get("driverOpts") or {}
            found += [(volume.get("name", ""), path, reference) for path, reference in options.items()]
    return found
