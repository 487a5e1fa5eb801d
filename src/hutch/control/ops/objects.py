"""Use cases of the object store: buckets, and objects of a few megabytes in them. Contents are sealed, as secrets are."""

import asyncio
import hashlib
from collections.abc import Sequence

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, InUse, Invalid, LimitExceeded, NotFound
from hutch.base.ids import IdSource
from hutch.control.vault import Vault
from hutch.model.object import Bucket, ObjectPart, StoredObject
from hutch.model.record import Cause
from hutch.rules.objects import (
    MAX_METADATA_BYTES,
    MAX_OBJECT_BYTES,
    Listing,
    check_bucket_name,
    check_key,
    list_page,
)
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx

PART_BYTES = 1024 * 1024


class NewObject(msgspec.Struct, frozen=True, kw_only=True):
    """What PutObject gives. `if_none_match`: only if there is no such object."""

    bucket: str
    key: str
    content: bytes
    headers: dict[str, str] = {}
    metadata: dict[str, str] = {}
    if_none_match: bool = False


class ObjectOps:
    """The object store's use cases. One instance per control plane."""

    def __init__(self, store: Store, vault: Vault, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock
        self._ids = ids

    # -- buckets

    async def create_bucket(self, cause: Cause, name: str) -> Bucket:
        """A new bucket. Raises `AlreadyExists`."""
        check_bucket_name(name)

        def work(tx: Tx) -> Bucket:
            if tx.get(tables.BUCKETS, name) is not None:
                raise AlreadyExists(
                    "Your previous request to create the named bucket succeeded and you already own it."
                )
            return tx.put(tables.BUCKETS, Bucket(name=name, created_at=self._clock.now()))

        return await self._store.write(cause, work)

    async def delete_bucket(self, cause: Cause, name: str) -> None:
        """Remove an empty bucket."""

        def work(tx: Tx) -> None:
            _bucket(tx, name)
            if tx.scan(tables.OBJECTS, name, limit=1):
                raise InUse("The bucket you tried to delete is not empty")
            tx.delete(tables.BUCKETS, name)

        await self._store.write(cause, work)

    def bucket(self, name: str) -> Bucket:
        """A bucket. Raises `NotFound`."""
        with self._store.read() as reader:
            return _bucket(reader, name)

    def buckets(self) -> Sequence[Bucket]:
        """All of them, by name."""
        with self._store.read() as reader:
            return reader.scan(tables.BUCKETS)

    # -- objects

    async def put(self, cause: Cause, given: NewObject) -> StoredObject:
        """Store an object in place of the one of its key, if there is one."""
        check_key(given.key)
        if len(given.content) > MAX_OBJECT_BYTES:
            raise LimitExceeded(
                f"Your proposed upload exceeds the maximum allowed size: hutch stores objects of at most "
                f"{MAX_OBJECT_BYTES} bytes."
            )
        if sum(len(k) + len(v) for k, v in given.metadata.items()) > MAX_METADATA_BYTES:
            raise Invalid(
                "Your metadata headers exceed the maximum allowed metadata size", code="MetadataTooLarge"
            )
        self.bucket(given.bucket)
        made, parts = await asyncio.to_thread(self._sealed, given)

        def work(tx: Tx) -> StoredObject:
            _bucket(tx, given.bucket)
            before = tx.get(tables.OBJECTS, given.bucket, given.key)
            if before is not None and given.if_none_match:
                raise Invalid(
                    "At least one of the pre-conditions you specified did not hold", code="PreconditionFailed"
                )
            if before is not None:
                _drop_content(tx, before)
            for part in parts:
                tx.put(tables.OBJECT_PARTS, part)
            version = before.version if before else 0
            return tx.put(tables.OBJECTS, msgspec.structs.replace(made, version=version))

        return await self._store.write(cause, work)

    def _sealed(self, given: NewObject) -> tuple[StoredObject, list[ObjectPart]]:
        content_id = self._ids.hex(32)
        parts = [
            ObjectPart(
                content_id=content_id,
                number=number,
                sealed=self._vault.seal(given.content[at : at + PART_BYTES], _belongs(content_id, number)),
            )
            for number, at in enumerate(range(0, len(given.content), PART_BYTES))
        ]
        made = StoredObject(
            bucket=given.bucket,
            key=given.key,
            content_id=content_id,
            parts=len(parts),
            size_bytes=len(given.content),
            etag=hashlib.md5(given.content, usedforsecurity=False).hexdigest(),
            headers=given.headers,
            metadata=given.metadata,
            modified_at=self._clock.now(),
        )
        return made, parts

    async def delete(self, cause: Cause, bucket: str, keys: Sequence[str]) -> None:
        """Remove objects; one that is not there is no error, as in S3."""

        def work(tx: Tx) -> None:
            _bucket(tx, bucket)
            for key in keys:
                before = tx.get(tables.OBJECTS, bucket, key)
                if before is not None:
                    _drop_content(tx, before)
                    tx.delete(tables.OBJECTS, bucket, key)

        await self._store.write(cause, work)

    def get(self, bucket: str, key: str) -> StoredObject:
        """An object without its content. Raises `NotFound`."""
        with self._store.read() as reader:
            return self.find(reader, bucket, key)

    @staticmethod
    def find(reader: Reader, bucket: str, key: str) -> StoredObject:
        """An object in a snapshot. Raises `NotFound`."""
        _bucket(reader, bucket)
        found = reader.get(tables.OBJECTS, bucket, key)
        if found is None:
            raise NotFound("The specified key does not exist.", code="NoSuchKey")
        return found

    def content(self, bucket: str, key: str) -> tuple[StoredObject, bytes]:
        """An object with its content. Raises `NotFound`, `Unavailable`."""
        with self._store.read() as reader:
            found = self.find(reader, bucket, key)
            return found, self.read_content(reader, found)

    def read_content(self, reader: Reader, found: StoredObject) -> bytes:
        """The content of an object of the same snapshot."""
        return b"".join(
            self._vault.open(part.sealed, _belongs(part.content_id, part.number))
            for part in reader.scan(tables.OBJECT_PARTS, found.content_id)
        )

    def listing(self, bucket: str, *, prefix: str, delimiter: str, after: str, limit: int) -> Listing:
        """A page of a bucket's objects, in order of key."""
        with self._store.read() as reader:
            _bucket(reader, bucket)
            return list_page(
                lambda key, count: reader.scan(tables.OBJECTS, bucket, after=(bucket, key), limit=count),
                lambda o: o.key,
                prefix=prefix,
                delimiter=delimiter,
                after=after,
                limit=limit,
            )


def _bucket(reader: Reader, name: str) -> Bucket:
    found = reader.get(tables.BUCKETS, name)
    if found is None:
        raise NotFound("The specified bucket does not exist", code="NoSuchBucket")
    return found


def _drop_content(tx: Tx, found: StoredObject) -> None:
    for number in range(found.parts):
        tx.delete(tables.OBJECT_PARTS, found.content_id, f"{number:06d}")


def _belongs(content_id: str, number: int) -> str:
    return f"object/{content_id}/{number}"
