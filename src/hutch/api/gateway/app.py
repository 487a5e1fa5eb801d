"""The HTTP edge: an ASGI application that takes AWS requests and hutch's own, verifies who sent them, and answers.

Order of checks, as in AWS: body size, known service, signature, operation, input, coverage; then the use case.
"""

import hashlib
import os
import tempfile
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import msgspec

from hutch import __version__
from hutch.api.gateway import faults
from hutch.api.gateway.dispatch import ServedService
from hutch.api.gateway.eventstream import encode_event
from hutch.api.gateway.faults import Fault, Response
from hutch.api.gateway.form import parse_fields
from hutch.api.gateway.native import NativeRequest, NativeRoute, match_route
from hutch.api.gateway.operation import EventStream, Principal, Request, Service
from hutch.api.gateway.validate import BadInput
from hutch.base import sigv4
from hutch.base.errors import HutchError, NotFound, Rejected, StorageFull
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.base.sigv4 import SignatureRefused
from hutch.control.identity import Identity
from hutch.model.cluster import AccessKey

log = get_logger(__name__)

MAX_BODY_BYTES = 2 * 1024 * 1024
_JSON_TYPES = ("application/x-amz-json-1.0", "application/x-amz-json-1.1", "application/json")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class TooLarge(Exception):
    """A body beyond its limit."""


class Gateway:
    """The ASGI application."""

    def __init__(
        self,
        *,
        services: list[Service],
        identity: Identity,
        ids: IdSource,
        region: str,
        account_id: str,
        native_routes: tuple[NativeRoute, ...] = (),
        upload_directory: Path | None = None,
        strict: bool = False,
    ) -> None:
        served = [ServedService(s, strict=strict) for s in services]
        self.by_target = {s.model.metadata.targetPrefix: s for s in served if s.model.metadata.targetPrefix}
        self.by_signing_name = {s.model.signing_name: s for s in served}
        self._identity = identity
        self._ids = ids
        self._region = region
        self._account_id = account_id
        self._native = native_routes
        self._uploads = upload_directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected ASGI scope {scope['type']}")
        request_id = self._ids.uuid()
        path = scope["path"]
        if path == "/_hutch/health":
            body = msgspec.json.encode({"status": "ok", "version": __version__})
            return await _respond(send, (200, [(b"content-type", b"application/json")], body), request_id)
        if path.startswith("/hutch/"):
            return await self._native_call(scope, receive, send, request_id)
        await self._aws_call(scope, receive, send, request_id)
        return None

    async def _aws_call(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        protocol, namespace, version = _protocol_hint(headers)
        try:
            try:
                body = await _read_body(receive, headers, MAX_BODY_BYTES)
            except TooLarge:
                message = f"The request body can have at most {MAX_BODY_BYTES} bytes."
                raise Fault("RequestEntityTooLargeException", message, 413) from None
            service, operation = self._route(scope, headers, body, protocol)
            protocol, metadata = service.protocol, service.model.metadata
            namespace, version = metadata.xmlNamespace, metadata.jsonVersion
            key = self._verify(scope, headers, body, protocol)
            request = Request(
                service=service.service.name,
                operation=operation,
                input=service.parse(operation, body),
                principal=_principal(key, self._account_id),
                request_id=request_id,
                region=self._region,
                account_id=self._account_id,
            )
            answer = await service.call(request)
            if isinstance(answer, EventStream):
                return await _stream(send, receive, answer, request_id)
        except Fault as fault:
            answer = faults.render(fault, protocol, namespace, version, request_id)
        except Exception:
            log.exception("internal error", request_id=request_id, target=headers.get("x-amz-target", ""))
            internal = Fault("InternalFailure", f"An internal error occurred; request id {request_id}.", 500)
            answer = faults.render(internal, protocol, namespace, version, request_id)
        return await _respond(send, answer, request_id)

    def _route(
        self, scope: Scope, headers: dict[str, str], body: bytes, protocol: str
    ) -> tuple[ServedService, str]:
        """Service and operation of a request. Raises `Fault`."""
        target = headers.get("x-amz-target")
        if scope["method"] != "POST" or scope["path"] != "/":
            raise Fault(
                "UnknownOperationException", f"No operation at {scope['method']} {scope['path'][:100]}.", 404
            )
        if target:
            prefix, _, operation = target.rpartition(".")
            service = self.by_target.get(prefix)
            if service is None:
                raise Fault(
                    "UnknownOperationException", f"hutch does not serve {prefix[:100] or target[:100]!r}."
                )
            if headers.get("content-type", "").partition(";")[0].strip() not in _JSON_TYPES:
                raise Fault(
                    "SerializationException",
                    f"The content type must be application/x-amz-json-{service.model.metadata.jsonVersion}.",
                )
            return service, operation
        if protocol != "query":
            raise Fault("UnknownOperationException", "The request has no X-Amz-Target header.")
        try:
            action = parse_fields(body).get("Action", "")
            name = sigv4.parse_scope(scope["query_string"].decode("latin-1"), headers).service
        except BadInput as problem:
            raise Fault("MalformedInput", problem.message) from None
        except SignatureRefused as refusal:
            raise faults.signature_fault(refusal, protocol) from None
        service = self.by_signing_name.get(name)
        if service is None or service.protocol not in ("query", "ec2"):
            raise Fault("InvalidAction", f"hutch does not serve {name[:100]!r}.")
        return service, action

    def _verify(self, scope: Scope, headers: dict[str, str], body: bytes, protocol: str) -> AccessKey:
        digest = hashlib.sha256(body).hexdigest()
        declared = headers.get("x-amz-content-sha256", digest)
        try:
            if declared not in (digest, sigv4.UNSIGNED_PAYLOAD):
                raise SignatureRefused(
                    "Mismatch", "The body does not have the x-amz-content-sha256 it declares."
                )
            key, _ = self._identity.verify(
                scope["method"], scope["raw_path"], scope["query_string"].decode("latin-1"), headers, declared
            )
        except SignatureRefused as refusal:
            raise faults.signature_fault(refusal, protocol) from None
        return key

    async def _native_call(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            answer = await self._native_answer(scope, receive, headers, request_id)
            status, body = 200, msgspec.json.encode(answer)
        except Fault as fault:
            status, body = fault.status, _native_error(fault.code, fault.message, request_id)
        except TooLarge:
            status, body = 413, _native_error("TooLarge", "The request body is too large.", request_id)
        except HutchError as error:
            status = 404 if isinstance(error, NotFound) else 400 if isinstance(error, Rejected) else 503
            body = _native_error(error.code or type(error).__name__, error.message, request_id)
        except Exception:
            log.exception("internal error", request_id=request_id, path=scope["path"])
            status, body = 500, _native_error("InternalFailure", "An internal error occurred.", request_id)
        await _respond(send, (status, [(b"content-type", b"application/json")], body), request_id)

    async def _native_answer(
        self, scope: Scope, receive: Receive, headers: dict[str, str], request_id: str
    ) -> dict[str, Any]:
        raw_path: bytes = scope["raw_path"]
        found = match_route(self._native, scope["method"], unquote(raw_path.decode("latin-1")))
        if found is None:
            raise Fault("NotFound", f"No such route: {scope['method']} {scope['path'][:100]}", 404)
        route, params = found
        declared = headers.get("x-amz-content-sha256", sigv4.EMPTY_SHA256)
        query = scope["query_string"].decode("latin-1")
        try:
            # Who it is comes before a byte of the body is kept; the body's digest is checked once it is here.
            key, _ = self._identity.verify(scope["method"], raw_path, query, headers, declared)
        except SignatureRefused as refusal:
            raise faults.signature_fault(refusal, "json") from None
        body: Any = None
        file_path = ""
        if route.takes_file:
            file_path, digest = await self._spool(receive, route.max_body_bytes)
        else:
            data = await _read_body(receive, headers, route.max_body_bytes)
            digest = hashlib.sha256(data).hexdigest()
        if digest != declared:
            if file_path:
                os.unlink(file_path)
            raise Fault("InvalidSignatureException", "The body does not have the digest it declares.", 403)
        if not route.takes_file and data:
            try:
                body = msgspec.json.decode(data)
            except msgspec.DecodeError as error:
                raise Fault("SerializationException", f"The body is not valid JSON: {error}") from None
        return await route.handler(
            NativeRequest(
                params=params,
                query={k: v[-1] for k, v in parse_qs(query).items()},
                body=body,
                file_path=file_path,
                principal=_principal(key, self._account_id),
                request_id=request_id,
            )
        )

    async def _spool(self, receive: Receive, limit: int) -> tuple[str, str]:
        """The body in a file (mode 0600) and its SHA-256."""
        digest, size = hashlib.sha256(), 0
        try:
            with tempfile.NamedTemporaryFile(dir=self._uploads, prefix="upload-", delete=False) as f:
                try:
                    async for chunk in _chunks(receive):
                        size += len(chunk)
                        if size > limit:
                            raise TooLarge
                        digest.update(chunk)
                        f.write(chunk)
                except BaseException:
                    os.unlink(f.name)
                    raise
                return f.name, digest.hexdigest()
        except OSError as error:
            raise StorageFull(f"can't keep the upload in {self._uploads}: {error.strerror}") from None


def _native_error(code: str, message: str, request_id: str) -> bytes:
    return msgspec.json.encode({"code": code, "message": message, "request_id": request_id})


def _principal(key: AccessKey, account_id: str) -> Principal:
    return Principal(
        arn=key.principal_arn, account_id=account_id, user_id=key.user_id, access_key_id=key.access_key_id
    )


def _protocol_hint(headers: dict[str, str]) -> tuple[str, str, str]:
    """The protocol family by which even a request without a known service is answered."""
    if headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        return "query", "", ""
    return "json", "", "1.0" if headers.get("content-type", "").endswith("1.0") else "1.1"


async def _chunks(receive: Receive) -> Any:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Fault("RequestTimeout", "The client closed the connection.", 400)
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return


async def _read_body(receive: Receive, headers: dict[str, str], limit: int) -> bytes:
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise TooLarge
    parts, size = [], 0
    async for chunk in _chunks(receive):
        size += len(chunk)
        if size > limit:
            raise TooLarge
        parts.append(chunk)
    return parts[0] if len(parts) == 1 else b"".join(parts)


async def _respond(send: Send, response: Response, request_id: str) -> None:
    status, headers, body = response
    headers = [
        *headers,
        (b"content-length", str(len(body)).encode()),
        (b"x-amzn-requestid", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _stream(send: Send, receive: Receive, stream: EventStream, request_id: str) -> None:
    """Send events as they come. A client that goes away ends the handler's iterator with the next event."""
    headers = [
        (b"content-type", b"application/vnd.amazon.eventstream"),
        (b"x-amzn-requestid", request_id.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send(
        {"type": "http.response.body", "body": encode_event("initial-response", {}), "more_body": True}
    )
    async for name, shape in stream.events:
        exception = name.endswith("Exception")
        body = encode_event(name, shape, exception=exception)
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": b""})
