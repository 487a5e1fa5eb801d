"""Serves hutch's own routes.

Who it is comes before a byte of the body is kept; the body's digest is checked once it is here.
"""

import asyncio
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qsl, unquote

import msgspec

from hutch.api.gateway.faults import Fault, Response, signature_fault
from hutch.api.gateway.http import Disconnected, Receive, Scope, TooLarge, chunks, headers_of, read_body
from hutch.api.gateway.native import NativeRequest, NativeRoute, match_route
from hutch.api.gateway.operation import Principal
from hutch.base import sigv4
from hutch.base.errors import AccessDenied, Conflict, HutchError, NotFound, Rejected, StorageFull
from hutch.base.log import get_logger
from hutch.base.sigv4 import SignatureRefused

log = get_logger(__name__)

SIGNING_NAME = "hutch"
_WRITE_BYTES = 1024 * 1024

Verify = Callable[[Scope, sigv4.Scope, dict[str, str], str], Principal]
"""(ASGI scope, signature scope, headers, body digest) to who signed. Raises `SignatureRefused`."""


class NativeCalls:
    """The routes under /hutch/v1."""

    def __init__(
        self,
        routes: tuple[NativeRoute, ...],
        verify: Verify,
        authorise: Callable[[Principal, str], None],
        uploads: Path | None,
    ) -> None:
        """`authorise` (principal, action) raises `AccessDenied`."""
        self._routes = routes
        self._verify = verify
        self._authorise = authorise
        self._uploads = uploads

    async def answer(self, scope: Scope, receive: Receive, request_id: str) -> Response:
        """The answer to a request, errors included. Raises `Disconnected`."""
        try:
            status, body = 200, msgspec.json.encode(await self._call(scope, receive, request_id))
        except Disconnected:
            raise
        except Fault as fault:
            status, body = fault.status, _error(fault.code, fault.message, request_id)
        except HutchError as error:
            status, body = (
                _status(error),
                _error(error.code or type(error).__name__, error.message, request_id),
            )
        except Exception:
            log.exception("internal error", request_id=request_id, path=scope["path"])
            message = f"hutch has an internal error; look for the request id {request_id} in its log."
            status, body = 500, _error("InternalFailure", message, request_id)
        return status, [(b"content-type", b"application/json")], body

    async def _call(self, scope: Scope, receive: Receive, request_id: str) -> dict[str, Any]:
        headers = headers_of(scope)
        query = scope["query_string"].decode("latin-1")
        raw_path: bytes = scope["raw_path"]
        declared = headers.get("x-amz-content-sha256", sigv4.EMPTY_SHA256)
        try:
            signature = sigv4.parse_scope(query, headers)
            if signature.service != SIGNING_NAME:
                raise SignatureRefused(
                    "Mismatch", f"Credential should be scoped to correct service: '{SIGNING_NAME}'."
                )
            principal = self._verify(scope, signature, headers, declared)
        except SignatureRefused as refusal:
            raise signature_fault(refusal, "json") from None
        found = match_route(self._routes, scope["method"], raw_path.decode("latin-1"))
        if found is None:
            raise Fault("NotFound", f"No such route: {scope['method']} {unquote(scope['path'])[:100]}.", 404)
        route, params = found
        self._authorise(principal, route.action)
        request = NativeRequest(
            params=params,
            query=dict(parse_qsl(query, keep_blank_values=True)),
            body=None,
            file_path="",
            principal=principal,
            request_id=request_id,
        )
        if route.takes_file:
            return await self._with_file(route, request, receive, declared)
        try:
            data = await read_body(receive, headers, route.max_body_bytes)
        except TooLarge:
            raise _too_large(route) from None
        _check_digest(hashlib.sha256(data).hexdigest(), declared)
        return await route.handler(msgspec.structs.replace(request, body=_json(data)))

    async def _with_file(
        self, route: NativeRoute, request: NativeRequest, receive: Receive, declared: str
    ) -> dict[str, Any]:
        """Run a handler with the body in a file (mode 0600), removed afterwards unless it was moved."""
        try:
            fd, path = tempfile.mkstemp(dir=self._uploads, prefix="upload-")
        except OSError as error:
            raise StorageFull(f"can't keep the upload in {self._uploads}: {error.strerror}") from None
        try:
            with os.fdopen(fd, "wb") as file:
                digest = await _spool(receive, file, route)
            _check_digest(digest, declared)
            return await route.handler(msgspec.structs.replace(request, file_path=path))
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)


async def _spool(receive: Receive, file: BinaryIO, route: NativeRoute) -> str:
    digest, size, waiting = hashlib.sha256(), 0, bytearray()

    def write(data: bytes) -> None:
        digest.update(data)
        file.write(data)

    try:
        async for chunk in chunks(receive):
            size += len(chunk)
            if size > route.max_body_bytes:
                raise _too_large(route)
            waiting += chunk
            if len(waiting) >= _WRITE_BYTES:
                full, waiting = bytes(waiting), bytearray()
                await asyncio.to_thread(write, full)
        await asyncio.to_thread(write, bytes(waiting))
        file.flush()
    except OSError as error:
        raise StorageFull(f"can't keep the upload: {error.strerror}") from None
    return digest.hexdigest()


def _too_large(route: NativeRoute) -> Fault:
    return Fault("TooLarge", f"The request body can have at most {route.max_body_bytes} bytes.", 413)


def _check_digest(digest: str, declared: str) -> None:
    if digest != declared:
        raise Fault(
            "InvalidSignatureException", "The body does not have the x-amz-content-sha256 it declares.", 403
        )


def _json(data: bytes) -> Any:
    if not data:
        return None
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Fault("SerializationException", f"The body is not valid JSON: {error}") from None


def _status(error: HutchError) -> int:
    if isinstance(error, NotFound):
        return 404
    if isinstance(error, Conflict):
        return 409
    if isinstance(error, AccessDenied):
        return 403
    return 400 if isinstance(error, Rejected) else 503


def _error(code: str, message: str, request_id: str) -> bytes:
    return msgspec.json.encode({"code": code, "message": message, "request_id": request_id})
