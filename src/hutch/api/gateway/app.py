"""The HTTP edge: an ASGI application that takes AWS requests and hutch's own, and verifies who sent them.

Order of checks, as in AWS: body size, signature, service, operation, input, coverage; then the use case.
"""

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from hutch import __version__
from hutch.api.gateway import faults
from hutch.api.gateway.access import AccessGuard
from hutch.api.gateway.directory import GLOBAL_SERVICES, Directory
from hutch.api.gateway.dispatch import Call, HttpRequest, ServedService
from hutch.api.gateway.eventstream import encode_error, encode_event
from hutch.api.gateway.faults import Fault, Response
from hutch.api.gateway.http import (
    App,
    Disconnected,
    Receive,
    Scope,
    Send,
    TooLarge,
    headers_of,
    read_body,
    respond,
    stream,
)
from hutch.api.gateway.native import NativeRoute
from hutch.api.gateway.native_calls import NativeCalls
from hutch.api.gateway.object_bodies import (
    MAX_OBJECT_BODY_BYTES,
    OBJECT_SERVICES,
    declared_digest,
    object_request,
)
from hutch.api.gateway.operation import EventStream, Principal, Request, Service
from hutch.api.gateway.service_model import REST_PROTOCOLS, XML_PROTOCOLS
from hutch.base import sigv4
from hutch.base.clock import Clock
from hutch.base.errors import HutchError
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.base.sigv4 import SignatureRefused
from hutch.control.authorizer import Authorizer
from hutch.control.identity import Identity

log = get_logger(__name__)

MAX_BODY_BYTES = 2 * 1024 * 1024
_JSON_TYPES = frozenset({"application/x-amz-json-1.0", "application/x-amz-json-1.1", "application/json"})
_FORM_TYPE = "application/x-www-form-urlencoded"
_EVENT_STREAM = b"application/vnd.amazon.eventstream"


class _Envelope:
    """How the answer to a request is put, refined as more becomes known of the request."""

    def __init__(self, headers: dict[str, str], query: bytes) -> None:
        content_type = headers.get("content-type", "").partition(";")[0].strip()
        self.content_type = content_type
        self.protocol = "json"
        self.namespace = ""
        self.json_version = "1.0" if content_type.endswith("json-1.0") else "1.1"
        self.service: ServedService | None = None
        if "x-amz-target" not in headers:
            if content_type == _FORM_TYPE or query.startswith(b"Action=") or b"&Action=" in query:
                self.protocol = "query"
            else:
                self.protocol = "rest-json"

    def is_for(self, service: ServedService) -> None:
        metadata = service.model.metadata
        self.service, self.protocol = service, service.protocol
        self.namespace, self.json_version = metadata.xmlNamespace, metadata.jsonVersion

    def render(self, fault: Fault, request_id: str) -> Response:
        return faults.render(fault, self.protocol, self.namespace, self.json_version, request_id)


class Gateway:
    """The ASGI application that serves these services."""

    def __init__(
        self,
        *,
        services: Sequence[Service],
        identity: Identity,
        authorizer: Authorizer,
        ids: IdSource,
        clock: Clock,
        region: str,
        account_id: str,
        native_routes: tuple[NativeRoute, ...] = (),
        upload_directory: Path | None = None,
        websockets: App | None = None,
        strict: bool = False,
    ) -> None:
        """`upload_directory`: where bodies of routes that take a file are kept while their handlers run (default: the
        system's temporary directory). `websockets`: what serves WebSockets. `strict`: load every model at start, and
        treat an answer that the service model does not describe as an internal error; for tests."""
        self._directory = Directory(services, strict=strict)
        self._identity = identity
        self._websockets = websockets
        self._ids = ids
        self._clock = clock
        self._region = region
        self._account_id = account_id
        self._access = AccessGuard(authorizer)
        self._native = NativeCalls(native_routes, self._verified, self._access.check_native, upload_directory)
        self._health = msgspec.json.encode({"status": "ok", "version": __version__})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one HTTP request, or one WebSocket."""
        if scope["type"] == "websocket" and self._websockets is not None:
            await self._websockets(scope, receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"unexpected ASGI scope {scope['type']}")
        request_id = self._ids.uuid()
        began = self._clock.monotonic()
        status = 0
        try:
            path = scope["path"]
            if path == "/_hutch/health":
                answer: Response | None = (200, [(b"content-type", b"application/json")], self._health)
            elif path.startswith("/hutch/"):
                answer = await self._native.answer(scope, receive, request_id)
            else:
                answer = await self._aws_call(scope, receive, send, request_id)
            if answer is not None:
                status = answer[0]
                await respond(send, answer, request_id)
        except Disconnected:
            status = 499
        log.debug(
            "request",
            request_id=request_id,
            method=scope["method"],
            path=scope["path"][:200],
            status=status or 200,
            ms=round((self._clock.monotonic() - began) * 1000, 1),
        )

    async def _aws_call(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> Response | None:
        """The answer to an AWS request; None if it was sent as a stream."""
        headers = headers_of(scope)
        envelope = _Envelope(headers, scope["query_string"])
        try:
            http, principal, signing_name = await self._authenticated(scope, receive, headers, envelope)
            service, call = self._route(http, signing_name, envelope)
            request = Request(
                service=service.service.name,
                operation=call.operation,
                input=service.parse(call, http),
                principal=principal,
                request_id=request_id,
                region=self._region,
                account_id=self._account_id,
                source_address=_address(scope),
                endpoint=f"{scope['scheme']}://{headers.get('host', '')}",
            )
            if not principal.caller.is_root:
                self._access.check(
                    service.service, signing_name, service.protocol, request, headers.get("user-agent", "")
                )
            answer = await service.call(request)
            if not isinstance(answer, EventStream):
                return answer
            messages = _messages(service, request, answer)
        except Fault as fault:
            return envelope.render(fault, request_id)
        except Disconnected:
            raise
        except Exception:
            log.exception(
                "internal error", request_id=request_id, target=headers.get("x-amz-target", "")[:100]
            )
            model = envelope.service.model if envelope.service else None
            return envelope.render(faults.internal_fault(request_id, model), request_id)
        await stream(send, receive, _EVENT_STREAM, messages, request_id)
        return None

    async def _authenticated(
        self, scope: Scope, receive: Receive, headers: dict[str, str], envelope: _Envelope
    ) -> tuple[HttpRequest, Principal, str]:
        """The whole request, who signed it, and for which service. Raises `Fault`."""
        signature: sigv4.Scope | None = None
        refused: SignatureRefused | None = None
        try:
            signature = sigv4.parse_scope(scope["query_string"].decode("latin-1"), headers)
        except SignatureRefused as refusal:
            refused = refusal
        is_object = signature is not None and signature.service in OBJECT_SERVICES
        if is_object:
            envelope.protocol = "rest-xml"
        elif signature is not None and signature.service == "ec2" and envelope.protocol == "query":
            envelope.protocol = "ec2"
        try:
            if signature is not None and is_object:
                declared = declared_digest(signature, headers)
                # Bodies are long: nobody else's is read.
                principal = self._verified(scope, signature, headers, declared)
                http = await self._http_request(scope, receive, headers, MAX_OBJECT_BODY_BYTES)
                return object_request(http, declared), principal, signature.service
            http = await self._http_request(scope, receive, headers, MAX_BODY_BYTES)
            if signature is None:
                raise refused or SignatureRefused("Missing", "Missing Authentication Token")
            return http, self._signer(scope, http, signature), signature.service
        except SignatureRefused as refusal:
            raise faults.signature_fault(refusal, envelope.protocol) from None

    async def _http_request(
        self, scope: Scope, receive: Receive, headers: dict[str, str], max_body_bytes: int
    ) -> HttpRequest:
        try:
            body = await read_body(receive, headers, max_body_bytes)
        except TooLarge:
            message = f"The request body can have at most {max_body_bytes} bytes."
            if max_body_bytes == MAX_OBJECT_BODY_BYTES:
                raise Fault("EntityTooLarge", message) from None
            raise Fault("RequestEntityTooLargeException", message, 413) from None
        return HttpRequest(
            method=scope["method"],
            raw_path=scope["raw_path"],
            query=scope["query_string"],
            headers=headers,
            body=body,
        )

    def _signer(self, scope: Scope, http: HttpRequest, signature: sigv4.Scope) -> Principal:
        """Who signed a request, its body included. Raises `SignatureRefused`."""
        digest = hashlib.sha256(http.body).hexdigest()
        if http.headers.get("x-amz-content-sha256", digest) != digest:
            raise SignatureRefused(
                "Mismatch", "The body does not have the SHA-256 that x-amz-content-sha256 declares."
            )
        return self._verified(scope, signature, http.headers, digest)

    def _verified(self, scope: Scope, signature: sigv4.Scope, headers: Any, payload_sha256: str) -> Principal:
        """Who signed a request. Raises `SignatureRefused`."""
        if signature.region != self._region and not (
            signature.region == "us-east-1" and signature.service in GLOBAL_SERVICES
        ):
            raise SignatureRefused(
                "Mismatch",
                f"Credential should be scoped to a valid region: this is {self._region!r}, "
                f"not {signature.region[:50]!r}.",
            )
        caller = self._identity.verify(
            signature,
            scope["method"],
            scope["raw_path"],
            scope["query_string"].decode("latin-1"),
            headers,
            payload_sha256,
        )
        return Principal(
            arn=caller.arn,
            account_id=self._account_id,
            user_id=caller.user_id,
            access_key_id=caller.access_key_id,
            caller=caller,
        )

    def _route(self, http: HttpRequest, signing_name: str, envelope: _Envelope) -> tuple[ServedService, Call]:
        """Service and operation of a request. Raises `Fault`."""
        target = http.headers.get("x-amz-target")
        if target is not None:
            return self._route_json(http, target, signing_name, envelope)
        services = self._directory.by_signing_name(signing_name)
        if envelope.protocol in XML_PROTOCOLS:
            service = next((s for s in services if s.protocol in XML_PROTOCOLS), None)
            if service is None:
                raise Fault("InvalidAction", f"hutch does not serve {signing_name[:100]!r} in this protocol.")
            envelope.is_for(service)
            in_query = envelope.content_type != _FORM_TYPE
            return service, service.form_call(http.query if in_query else http.body, is_query_string=in_query)
        for service in services:
            if service.protocol in REST_PROTOCOLS:
                envelope.is_for(service)
                if call := service.rest_call(http):
                    return service, call
        path = http.raw_path[:100].decode("latin-1")
        raise Fault(
            "UnknownOperationException",
            f"hutch serves no operation of {signing_name[:100]!r} at {http.method} {path}.",
            404,
        )

    def _route_json(
        self, http: HttpRequest, target: str, signing_name: str, envelope: _Envelope
    ) -> tuple[ServedService, Call]:
        prefix, _, operation = target.rpartition(".")
        service = self._directory.by_target(prefix)
        if service is None or service.protocol != "json":
            raise Fault(
                "UnknownOperationException", f"hutch does not serve {prefix[:100] or target[:100]!r}."
            )
        envelope.is_for(service)
        if service.model.signing_name != signing_name:
            refusal = SignatureRefused(
                "Mismatch", f"Credential should be scoped to correct service: {service.model.signing_name!r}."
            )
            raise faults.signature_fault(refusal, "json")
        if http.method != "POST" or http.raw_path != b"/":
            raise Fault("UnknownOperationException", "JSON requests are sent with POST to the path '/'.", 404)
        if envelope.content_type not in _JSON_TYPES:
            wanted = f"application/x-amz-json-{service.model.metadata.jsonVersion}"
            raise Fault("SerializationException", f"The content type must be {wanted}.", 415)
        return service, service.json_call(operation)


def _address(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client else ""


async def _messages(service: ServedService, request: Request, answer: EventStream) -> AsyncIterator[bytes]:
    """The messages of an event stream. An error ends it with an error message, as AWS does."""
    events = answer.events
    try:
        yield encode_event("initial-response", {})
        async for name, event in events:
            service.check_event(request.operation, name, event)
            yield encode_event(name, event, exception=name.endswith("Exception"))
    except HutchError as error:
        fault = faults.domain_fault(error, service.faults_of(request.operation), service.model)
        yield encode_error(fault.code, fault.message)
    except Exception:
        log.exception(
            "internal error in a stream", request_id=request.request_id, operation=request.operation
        )
        fault = faults.internal_fault(request.request_id, service.model)
        yield encode_error(fault.code, fault.message)
    finally:
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()
