"""Requests whose bodies are objects (S3): signed before they are read, longer than others, and maybe in chunks."""

import hashlib
import re

from hutch.api.gateway.dispatch import HttpRequest
from hutch.api.gateway.faults import Fault
from hutch.base.sigv4 import EMPTY_SHA256, UNSIGNED_PAYLOAD, Scope, SignatureRefused

OBJECT_SERVICES = frozenset({"s3"})
"""Signing names of services that take objects."""
MAX_OBJECT_BODY_BYTES = 17 * 1024 * 1024
"""An object, and what chunks put around it."""
_CHUNKED = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_SIZE = re.compile(rb"([0-9a-fA-F]{1,8})(;[^\r\n]{0,200})?")
_HOST = re.compile(r"([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])\.localhost(:[0-9]+)?")


def declared_digest(signature: Scope, headers: dict[str, str]) -> str:
    """What the signature covers of the body: its SHA-256, or a word that says why not. Raises `Fault`."""
    if signature.expires_s:
        return UNSIGNED_PAYLOAD
    declared = headers.get("x-amz-content-sha256", "")
    if not declared:
        raise Fault("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    if declared not in (UNSIGNED_PAYLOAD, _CHUNKED) and not _SHA256.fullmatch(declared):
        raise Fault(
            "NotImplemented",
            f"hutch does not take bodies signed as {declared[:60]!r}: let the client sign the whole body, or none of it.",
            501,
        )
    return declared


def object_request(http: HttpRequest, declared: str) -> HttpRequest:
    """The request with the body that was meant, and with its bucket in the path wherever the client had put it. To be
    called once the signature, which covers it as it came, is verified. Raises `Fault`, `SignatureRefused`."""
    body = http.body
    if declared == _CHUNKED:
        body = unchunked(body)
    elif declared != UNSIGNED_PAYLOAD and declared != (
        hashlib.sha256(body).hexdigest() if body else EMPTY_SHA256
    ):
        raise SignatureRefused(
            "Mismatch", "The body does not have the SHA-256 that x-amz-content-sha256 declares."
        )
    path = http.raw_path
    if host := _HOST.fullmatch(http.headers.get("host", "")):
        path = f"/{host[1]}".encode() + path
    return HttpRequest(method=http.method, raw_path=path, query=http.query, headers=http.headers, body=body)


def unchunked(body: bytes) -> bytes:
    """The content of a body of the transfer coding aws-chunked; its trailers are left out. Raises `Fault`."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = body.find(b"\r\n", at, at + 256)
        size_line = _CHUNK_SIZE.fullmatch(body[at:end]) if end >= 0 else None
        if size_line is None:
            break
        size = int(size_line[1], 16)
        if not size:
            return b"".join(parts)
        at = end + 2 + size
        if body[at : at + 2] != b"\r\n":
            break
        parts.append(body[end + 2 : at])
        at += 2
    raise Fault("IncompleteBody", "The body is not what its aws-chunked coding says.")
