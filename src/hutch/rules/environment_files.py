"""Environment files of containers: how one is named, and what is read out of it, as the ECS agent does. Pure.

A line is `NAME=VALUE`, taken as it is: quotes and spaces are part of it. Lines that begin with `#`, have no `=`, or
nothing before or after it, are left out. Within a file the last line of a name counts, of several files the first.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from hutch.base.errors import Invalid, LimitExceeded
from hutch.rules.objects import parse_object_arn

MAX_FILES = 10
MAX_FILE_BYTES = 512 * 1024
MAX_LINE_BYTES = 64 * 1024
SUFFIX = ".env"
_ENDS = re.compile(r"\r?\n")


def check_environment_files(container: str, files: Iterable[Mapping[str, Any]]) -> None:
    """What is refused of a container's `environmentFiles`, before any is read. Raises `Invalid`."""
    count = 0
    for file in files:
        count += 1
        value = str(file.get("value", ""))
        if file.get("type") != "s3":
            raise Invalid(
                f"Container '{container}': the only type of environment files is s3.", code="ClientException"
            )
        try:
            parse_object_arn(value)
        except Invalid as error:
            raise Invalid(
                f"Container '{container}', environment file: {error.message}", code="ClientException"
            ) from None
        if not value.endswith(SUFFIX):
            raise Invalid(
                f"Container '{container}': the environment file {value[:200]!r} must end with {SUFFIX}.",
                code="ClientException",
            )
    if count > MAX_FILES:
        raise Invalid(
            f"Container '{container}' can have at most {MAX_FILES} environment files.", code="ClientException"
        )


def parse_environment_file(content: bytes) -> dict[str, str]:
    """The variables of a file. Raises `Invalid` or `LimitExceeded`, never with a part of the content."""
    if len(content) > MAX_FILE_BYTES:
        raise LimitExceeded(f"it has {len(content)} bytes, and {MAX_FILE_BYTES} can be read")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise Invalid("it is not UTF-8") from None
    if "\0" in text:
        raise Invalid("it has a null byte, which no environment variable can")
    variables: dict[str, str] = {}
    for number, line in enumerate(_ENDS.split(text), 1):
        if len(line.encode()) > MAX_LINE_BYTES:
            raise LimitExceeded(f"line {number} has more than {MAX_LINE_BYTES} bytes")
        name, _, value = line.partition("=")
        if name and value and not line.startswith("#"):
            variables[name] = value
    return variables


def merged_files(files: Iterable[Mapping[str, str]], known: Mapping[str, str]) -> dict[str, str]:
    """What files add to variables that are `known`: the first file that has a name counts."""
    added: dict[str, str] = {}
    for variables in files:
        added.update({k: v for k, v in variables.items() if k not in known and k not in added})
    return added
