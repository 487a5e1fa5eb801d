"""S3, as far as small objects go: shape in, one use case, shape out. For environment files and the like (ADR 0022)."""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from hutch.api.aws.s3.access import rules
from hutch.api.gateway.operation import Operation, Request, Service, operation
from hutch.api.gateway.paging import Paging
from hutch.base.errors import (
    AlreadyExists,
    Invalid,
    NotServed,
)
from hutch.control.ops.objects import NewObject, ObjectOps
from hutch.model.object import StoredObject
from hutch.rules.objects import MAX_LISTED, parse_range

NO_REGION_NAMED = "us-east-1"
_KEPT = ("ContentType", "CacheControl", "ContentDisposition", "ContentEncoding", "ContentLanguage")
_AWS_CHUNKED = "aws-chunked"
_OWNER = {"ExpectedBucketOwner": "a platform has one account"}
_PAYER = {"RequestPayer": "nobody pays"}
_UNCHECKED = "not checked: the signature covers the body's SHA-256"
_NO_LOCKS = "hutch locks no objects"
_PUT_INERT = {
    **_OWNER,
    **_PAYER,
    "ContentLength": "the body has its length",
    "ChecksumAlgorithm": "the checksum itself says which it is",
    "StorageClass": "there is one",
    "ServerSideEncryption": "AES256 is what every object has; other kinds are refused",
    **{
        f"Checksum{n}": _UNCHECKED
        for n in ("CRC32C", "CRC64NVME", "SHA512", "MD5", "XXHASH64", "XXHASH3", "XXHASH128")
    },
}
_VERSIONS = {"VersionId": "hutch keeps the newest version only"}


class ObjectHandlers:
    """The operations of S3 that hutch serves."""

    def __init__(self, ops: ObjectOps, paging: Paging, *, region: str, account_id: str) -> None:
        self._ops = ops
        self._paging = paging
        self._region = region
        self._account_id = account_id

    def operations(self) -> tuple[Operation, ...]:
        read = ("Bucket", "Key", "Range")
        shown = {"ChecksumMode": "checksums are not kept", **_OWNER, **_PAYER}
        listed = ("Bucket", "Prefix", "Delimiter", "MaxKeys", "EncodingType")
        return (
            operation(
                "CreateBucket", self.create_bucket, "Bucket", "CreateBucketConfiguration.LocationConstraint"
            ),
            operation("HeadBucket", self.head_bucket, "Bucket", inert=_OWNER),
            operation("GetBucketLocation", self.location, "Bucket", inert=_OWNER),
            operation("ListBuckets", self.buckets, "Prefix"),
            operation("DeleteBucket", self.delete_bucket, "Bucket", inert=_OWNER),
            operation(
                "PutObject",
                self.put,
                *("Bucket", "Key", "Body", "Metadata", "IfNoneMatch", *_KEPT),
                *("ContentMD5", "ChecksumCRC32", "ChecksumSHA1", "ChecksumSHA256"),
                inert=_PUT_INERT,
                refused={"ACL": "policies say who may read", "ObjectLockMode": _NO_LOCKS},
            ),
            operation("GetObject", self.get, *read, inert=shown, refused=_VERSIONS),
            operation("HeadObject", self.head, *read, inert=shown, refused=_VERSIONS),
            operation(
                "DeleteObject", self.delete, "Bucket", "Key", inert={**_OWNER, **_PAYER}, refused=_VERSIONS
            ),
            operation(
                "DeleteObjects",
                self.delete_many,
                *("Bucket", "Delete.Objects.Key", "Delete.Quiet"),
                inert={"ChecksumAlgorithm": _UNCHECKED, **_OWNER, **_PAYER},
            ),
            operation("ListObjects", self.list_old, *listed, "Marker", inert={**_OWNER, **_PAYER}),
            operation(
                "ListObjectsV2",
                self.list_new,
                *(*listed, "ContinuationToken", "StartAfter", "FetchOwner"),
                inert={**_OWNER, **_PAYER},
            ),
        )

    # -- buckets

    async def create_bucket(self, request: Request) -> dict[str, Any]:
        name = request.input["Bucket"]
        wanted = request.input.get("CreateBucketConfiguration", {}).get("LocationConstraint", self._region)
        if wanted != self._region:
            raise Invalid(
                f"The specified location-constraint is not valid: this is {self._region}.",
                code="InvalidLocationConstraint",
            )
        try:
            await self._ops.create_bucket(request.cause, name)
        except AlreadyExists:
            # S3's first region says yes again to its owner; the others do not.
            if self._region != NO_REGION_NAMED:
                raise
        return {"Location": f"/{name}"}

    async def head_bucket(self, request: Request) -> dict[str, Any]:
        self._ops.bucket(request.input["Bucket"])
        return {"BucketRegion": self._region}

    async def location(self, request: Request) -> dict[str, Any]:
        self._ops.bucket(request.input["Bucket"])
        return {} if self._region == NO_REGION_NAMED else {"LocationConstraint": self._region}

    async def buckets(self, request: Request) -> dict[str, Any]:
        prefix = request.input.get("Prefix", "")
        found = [b for b in self._ops.buckets() if b.name.startswith(prefix)]
        return {
            "Buckets": [{"Name": b.name, "CreationDate": b.created_at} for b in found],
            "Owner": {"ID": self._account_id},
            **({"Prefix": prefix} if prefix else {}),
        }

    async def delete_bucket(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_bucket(request.cause, request.input["Bucket"])
        return {}

    # -- objects

    async def put(self, request: Request) -> dict[str, Any]:
        given = request.input
        body = given.get("Body", b"")
        if given.get("ServerSideEncryption", "AES256") != "AES256":
            raise NotServed("hutch has no KMS: objects are encrypted with AES256.")
        if given.get("IfNoneMatch", "*") != "*":
            raise NotServed("hutch takes If-None-Match with * only.")
        _check_body(body, given)
        headers = {k: given[k] for k in _KEPT if k in given}
        encoding = [
            e for e in (p.strip() for p in headers.pop("ContentEncoding", "").split(",")) if e != _AWS_CHUNKED
        ]
        if any(encoding):
            headers["ContentEncoding"] = ",".join(encoding)
        stored = await self._ops.put(
            request.cause,
            NewObject(
                bucket=given["Bucket"],
                key=given["Key"],
                content=body,
                headers=headers,
                metadata=given.get("Metadata", {}),
                if_none_match="IfNoneMatch" in given,
            ),
        )
        return {"ETag": f'"{stored.etag}"', "ServerSideEncryption": "AES256"}

    async def get(self, request: Request) -> dict[str, Any]:
        found, content = self._ops.content(request.input["Bucket"], request.input["Key"])
        return self._shown(request, found) | {"Body": _part(request, content)}

    async def head(self, request: Request) -> dict[str, Any]:
        return self._shown(request, self._ops.get(request.input["Bucket"], request.input["Key"]))

    def _shown(self, request: Request, found: StoredObject) -> dict[str, Any]:
        shape = {
            "ContentType": "binary/octet-stream",
            **found.headers,
            "AcceptRanges": "bytes",
            "LastModified": found.modified_at,
            "ETag": f'"{found.etag}"',
            "Metadata": found.metadata,
            "ServerSideEncryption": "AES256",
            "ContentLength": found.size_bytes,
        }
        part = parse_range(request.input.get("Range", ""), found.size_bytes)
        if part is not None:
            shape["ContentLength"] = part[1] - part[0]
            shape["ContentRange"] = f"bytes {part[0]}-{part[1] - 1}/{found.size_bytes}"
        return shape

    async def delete(self, request: Request) -> dict[str, Any]:
        await self._ops.delete(request.cause, request.input["Bucket"], [request.input["Key"]])
        return {}

    async def delete_many(self, request: Request) -> dict[str, Any]:
        wanted = request.input["Delete"]
        keys = [o["Key"] for o in wanted["Objects"]]
        if len(keys) > MAX_LISTED:
            raise Invalid(f"A request deletes at most {MAX_LISTED} objects.", code="MalformedXML")
        await self._ops.delete(request.cause, request.input["Bucket"], keys)
        return {} if wanted.get("Quiet") else {"Deleted": [{"Key": k} for k in keys]}

    # -- listings

    async def list_new(self, request: Request) -> dict[str, Any]:
        given = request.input
        token = given.get("ContinuationToken")
        after = self._paging.decode_token(given["Bucket"], token)[0] if token else given.get("StartAfter", "")
        answer, last = self._list(request, after)
        answer["KeyCount"] = len(answer["Contents"]) + len(answer["CommonPrefixes"])
        if given.get("FetchOwner"):
            for item in answer["Contents"]:
                item["Owner"] = {"ID": self._account_id}
        if token:
            answer["ContinuationToken"] = token
        elif "StartAfter" in given:
            answer["StartAfter"] = self._named(request, given["StartAfter"])
        if last:
            answer["NextContinuationToken"] = self._paging.encode_token(given["Bucket"], (last,))
        return answer

    async def list_old(self, request: Request) -> dict[str, Any]:
        marker = request.input.get("Marker", "")
        delimiter = request.input.get("Delimiter", "")
        # A marker that is a common prefix stands for all that have it.
        after = marker + "\U0010ffff" if delimiter and marker.endswith(delimiter) else marker
        answer, last = self._list(request, after)
        answer["Marker"] = self._named(request, marker)
        if last:
            answer["NextMarker"] = self._named(request, last.rstrip("\U0010ffff"))
        return answer

    def _list(self, request: Request, after: str) -> tuple[dict[str, Any], str]:
        given = request.input
        prefix, delimiter = given.get("Prefix", ""), given.get("Delimiter", "")
        asked = given.get("MaxKeys", MAX_LISTED)
        if asked < 0:
            raise Invalid(
                "Argument max-keys must be an integer between 0 and 2147483647", code="InvalidArgument"
            )
        limit = min(asked, MAX_LISTED)
        page = self._ops.listing(
            given["Bucket"], prefix=prefix, delimiter=delimiter, after=after, limit=limit
        )
        answer: dict[str, Any] = {
            "Name": given["Bucket"],
            "Prefix": self._named(request, prefix),
            "MaxKeys": limit,
            "IsTruncated": bool(page.last),
            "Contents": [
                {
                    "Key": self._named(request, o.key),
                    "LastModified": o.modified_at,
                    "ETag": f'"{o.etag}"',
                    "Size": o.size_bytes,
                    "StorageClass": "STANDARD",
                }
                for o in page.objects
            ],
            "CommonPrefixes": [{"Prefix": self._named(request, p)} for p in page.prefixes],
        }
        if delimiter:
            answer["Delimiter"] = self._named(request, delimiter)
        if "EncodingType" in given:
            answer["EncodingType"] = given["EncodingType"]
        return answer, page.last

    @staticmethod
    def _named(request: Request, text: str) -> str:
        """A key as the client wants it written: XML can't say every character that a key can have."""
        return quote(text, safe="/") if request.input.get("EncodingType") == "url" else text


def _part(request: Request, content: bytes) -> bytes:
    part = parse_range(request.input.get("Range", ""), len(content))
    return content[part[0] : part[1]] if part is not None else content


def _check_body(body: bytes, given: dict[str, Any]) -> None:
    """Raises `Invalid` if the body is not the one that its checksums are of."""
    checks: Sequence[tuple[str, Any, str]] = (
        ("ContentMD5", lambda: hashlib.md5(body, usedforsecurity=False).digest(), "BadDigest"),
        ("ChecksumCRC32", lambda: zlib.crc32(body).to_bytes(4, "big"), "BadDigest"),
        ("ChecksumSHA1", lambda: hashlib.sha1(body, usedforsecurity=False).digest(), "BadDigest"),
        ("ChecksumSHA256", lambda: hashlib.sha256(body).digest(), "BadDigest"),
    )
    for member, digest, code in checks:
        if member not in given:
            continue
        try:
            wanted = base64.b64decode(given[member], validate=True)
        except (binascii.Error, ValueError):
            raise Invalid(f"{member} is not base64.", code="InvalidDigest") from None
        if wanted != digest():
            raise Invalid(f"The {member} you specified did not match what we received.", code=code)


def service(ops: ObjectOps, paging: Paging, *, region: str, account_id: str) -> Service:
    """S3, on these use cases."""
    return Service(
        name="s3",
        operations=ObjectHandlers(ops, paging, region=region, account_id=account_id).operations(),
        faults=(),
        access=rules(),
    )
