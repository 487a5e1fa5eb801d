"""Buckets and their objects, as S3 has them. Contents are only ever stored sealed, in parts."""

from hutch.model.record import Record
from hutch.model.secret import Sealed


class Bucket(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A named set of objects."""

    name: str
    created_at: float


class StoredObject(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An object without its content, which is in `parts` records under `content_id`: each put makes a new one."""

    bucket: str
    key: str
    content_id: str
    parts: int
    size_bytes: int
    etag: str
    """MD5 of the content, hexadecimal."""
    headers: dict[str, str] = {}
    """What comes back with it: ContentType, CacheControl, ContentDisposition, ContentEncoding, ContentLanguage."""
    metadata: dict[str, str] = {}
    """The owner's own (`x-amz-meta-*`)."""
    modified_at: float


class ObjectPart(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A part of an object's content. Written once."""

    content_id: str
    number: int
    sealed: Sealed
