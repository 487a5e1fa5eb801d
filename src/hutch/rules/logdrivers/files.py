"""The drivers json-file and local: how much of a container's output its host keeps. Pure."""

from collections.abc import Mapping

import msgspec

from hutch.base.errors import Invalid
from hutch.base.units import GIB, KIB, MIB
from hutch.rules.awslogs import parse_size
from hutch.rules.logdrivers.options import refuse_unknown

OPTIONS = frozenset({"max-size", "max-file"})
MIN_FILE_BYTES = 4 * KIB
MAX_KEPT_BYTES = GIB
MAX_FILES = 100


class FileBounds(msgspec.Struct, frozen=True, kw_only=True):
    """A file of at most `max_bytes`, and so many of them in all, the one that is being written included."""

    max_bytes: int = 64 * MIB
    files: int = 2


HOST_BOUNDS = FileBounds()
"""Of containers that say nothing: enough for shippers to be behind, and not more than a host can bear."""


def parse_options(driver: str, options: Mapping[str, str]) -> FileBounds:
    """The options of a task definition; what is not given is the host's own. Raises `Invalid`."""
    refuse_unknown(driver, options, OPTIONS)
    files = HOST_BOUNDS.files
    if "max-file" in options:
        text = options["max-file"]
        files = int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 0
        if not 1 <= files <= MAX_FILES:
            raise Invalid(f"Log driver option max-file must be between 1 and {MAX_FILES}.")
        if "max-size" not in options:
            raise Invalid("Log driver option max-file needs max-size too.")
    max_bytes = HOST_BOUNDS.max_bytes
    if "max-size" in options:
        try:
            max_bytes = parse_size(options["max-size"])
        except Invalid:
            raise Invalid("Log driver option max-size must be a size such as 10m.") from None
        files = files if "max-file" in options else 1
    if max_bytes < MIN_FILE_BYTES:
        raise Invalid(f"Log driver option max-size must be at least {MIN_FILE_BYTES // KIB}k.")
    if max_bytes * files > MAX_KEPT_BYTES:
        raise Invalid(
            f"A host keeps at most {MAX_KEPT_BYTES // GIB}g of a container's output: max-size x max-file."
        )
    return FileBounds(max_bytes=max_bytes, files=files)


def bounds_of(driver: str, options: Mapping[str, str]) -> FileBounds:
    """The bounds of a container's files, whatever its driver. Options that can't be read are as none."""
    if driver not in ("json-file", "local"):
        return HOST_BOUNDS
    try:
        return parse_options(driver, options)
    except Invalid:
        return HOST_BOUNDS
