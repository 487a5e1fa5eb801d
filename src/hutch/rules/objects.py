"""S3's rules for buckets, keys and ranges, and how a listing goes on. Pure."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import msgspec

from hutch.base.errors import Invalid

MAX_OBJECT_BYTES = 16 * 1024 * 1024
MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2048
MAX_LISTED = 1000
AFTER_ALL = "\U0010ffff"
"""A string that comes after every key with the same beginning (keys have no such character)."""
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_ADDRESS = re.compile(r"[0-9]+(\.[0-9]+){3}")
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")
_ARN = re.compile(r"arn:aws[a-z-]*:s3:::([^/]+)/(.+)", re.DOTALL)

Item = TypeVar("Item")


def check_bucket_name(name: str) -> None:
    """Raises `Invalid` for what S3 does not take as the name of a new bucket."""
    if not _BUCKET.fullmatch(name) or ".." in name or _ADDRESS.fullmatch(name):
        raise Invalid("The specified bucket is not valid.", code="InvalidBucketName")


def check_key(key: str) -> None:
    """Raises `Invalid` for what can't be a key."""
    if len(key.encode("utf-8", "surrogatepass")) > MAX_KEY_BYTES:
        raise Invalid("Your key is too long", code="KeyTooLongError")
    if "\0" in key or AFTER_ALL in key:
        raise Invalid("The key has a character that no key can have.")


def parse_object_arn(arn: str) -> tuple[str, str]:
    """Bucket and key of an object's ARN. Raises `Invalid`."""
    match = _ARN.fullmatch(arn)
    if match is None:
        raise Invalid(f"{arn[:200]!r} is not the ARN of an object (arn:aws:s3:::BUCKET/KEY).")
    return match[1], match[2]


def parse_range(text: str, size_bytes: int) -> tuple[int, int] | None:
    """First byte and the one after the last of a Range header; None: the whole, since it is not one range of bytes.
    Raises `Invalid` if none of it is there."""
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        return None
    first, last = match.groups()
    if not first:
        start, end = max(0, size_bytes - int(last)), size_bytes
    else:
        start, end = int(first), min(size_bytes, int(last) + 1 if last else size_bytes)
        if last and int(last) < int(first):
            return None
    if start >= end:
        raise Invalid("The requested range is not satisfiable", code="InvalidRange")
    return start, end


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """A page: objects and common prefixes, and what the next one comes after ("": there is none)."""

    objects: tuple[Any, ...]
    prefixes: tuple[str, ...]
    last: str = ""


def list_page(
    scan: Callable[[str, int], Sequence[Item]],
    key_of: Callable[[Item], str],
    *,
    prefix: str,
    delimiter: str,
    after: str,
    limit: int,
) -> Listing:
    """A page of at most `limit` objects and prefixes. `scan` (key, count) gives the objects after a key, in order.

    What has a common prefix is stepped over, not read.
    """
    objects: list[Item] = []
    prefixes: list[str] = []
    last = after
    for item, group in _steps(scan, key_of, prefix, delimiter, after):
        if len(objects) + len(prefixes) == limit:
            return Listing(objects=tuple(objects), prefixes=tuple(prefixes), last=last)
        if group:
            prefixes.append(group)
            last = group + AFTER_ALL
        else:
            objects.append(item)
            last = key_of(item)
    return Listing(objects=tuple(objects), prefixes=tuple(prefixes))


def _steps(
    scan: Callable[[str, int], Sequence[Item]],
    key_of: Callable[[Item], str],
    prefix: str,
    delimiter: str,
    after: str,
) -> Iterator[tuple[Item, str]]:
    """Objects one by one, each with "" or the common prefix that stands for it and all that share it."""
    at = max(after, _before(prefix))
    while True:
        found = scan(at, MAX_LISTED)
        for item in found:
            key = key_of(item)
            if not key.startswith(prefix):
                return
            cut = key.find(delimiter, len(prefix)) if delimiter else -1
            if cut >= 0:
                group = key[: cut + len(delimiter)]
                at = group + AFTER_ALL
                yield item, group
                break
            at = key
            yield item, ""
        else:
            if len(found) < MAX_LISTED:
                return


def _before(prefix: str) -> str:
    """What comes before every key with this beginning, and after all that come before those."""
    if not prefix or prefix[-1] == "\0":
        return prefix
    point = ord(prefix[-1]) - 1
    # Surrogates are in no key.
    return prefix[:-1] + chr(0xD7FF if 0xD800 <= point < 0xE000 else point) + AFTER_ALL
