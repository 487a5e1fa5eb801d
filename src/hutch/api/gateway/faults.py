"""From errors to AWS error codes and bodies: one place, for all protocols."""

from typing import Any

import msgspec

from hutch.api.gateway.form import error_xml
from hutch.api.gateway.operation import Service
from hutch.api.gateway.service_model import ServiceModel
from hutch.base.errors import Conflict, HutchError, NotServed, Unavailable
from hutch.base.sigv4 import SignatureRefused

Response = tuple[int, list[tuple[bytes, bytes]], bytes]

_JSON_SIGNATURE = {
    "Missing": ("MissingAuthenticationTokenException", 400),
    "Incomplete": ("IncompleteSignatureException", 400),
    "Expired": ("InvalidSignatureException", 400),
    "UnknownKey": ("UnrecognizedClientException", 400),
    "Mismatch": ("InvalidSignatureException", 403),
}
_QUERY_SIGNATURE = {
    "Missing": ("MissingAuthenticationToken", 403),
    "Incomplete": ("IncompleteSignature", 400),
    "Expired": ("SignatureDoesNotMatch", 403),
    "UnknownKey": ("InvalidClientTokenId", 403),
    "Mismatch": ("SignatureDoesNotMatch", 403),
}
_EC2_SIGNATURE = {
    "Missing": ("MissingParameter", 400),
    "Incomplete": ("IncompleteSignature", 400),
    "Expired": ("RequestExpired", 400),
    "UnknownKey": ("AuthFailure", 401),
    "Mismatch": ("AuthFailure", 401),
}
_VALIDATION_CODES = {
    "ecs": "InvalidParameterException",
    "logs": "InvalidParameterException",
    "ec2": "InvalidParameterValue",
    "sts": "ValidationError",
}


class Fault(Exception):
    """An error answer that is ready to be put into a protocol."""

    def __init__(
        self, code: str, message: str, status: int = 400, extra: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status
        self.extra = extra or {}


def validation_code(service: str, *, serialization: bool) -> str:
    """The code that a service answers malformed input with."""
    if serialization and service not in ("ec2", "sts"):
        return "SerializationException"
    return _VALIDATION_CODES.get(service, "ValidationException")


def signature_fault(refusal: SignatureRefused, protocol: str) -> Fault:
    """A refused signature in a protocol's words."""
    table = {"query": _QUERY_SIGNATURE, "ec2": _EC2_SIGNATURE}.get(protocol, _JSON_SIGNATURE)
    code, status = table[refusal.kind]
    return Fault(code, refusal.message, status)


def domain_fault(error: HutchError, service: Service, model: ServiceModel) -> Fault:
    """An error of a use case in the service's words: its own code, else that of its kind."""
    code = error.code
    if code is None and isinstance(error, NotServed):
        code = "UnsupportedFeatureException" if model.exception("UnsupportedFeatureException") else None
    if code is None:
        code = next((c for kind, c in service.faults if isinstance(error, kind)), None)
    if code is None:
        code = "ServiceUnavailableException" if isinstance(error, Unavailable) else "ValidationException"
    status = 503 if isinstance(error, Unavailable) else 400
    shape = model.exception(code)
    if shape and shape.error and shape.error.httpStatusCode:
        status = shape.error.httpStatusCode
    extra: dict[str, Any] = {}
    if isinstance(error, Conflict) and error.resource_ids:
        extra["resourceIds"] = list(error.resource_ids)
    return Fault(code, error.message, status, extra)


def render(fault: Fault, protocol: str, namespace: str, json_version: str, request_id: str) -> Response:
    """An error answer in a protocol."""
    if protocol in ("query", "ec2"):
        body = error_xml(
            protocol, namespace, fault.code, fault.message, request_id, sender=fault.status < 500
        )
        return fault.status, [(b"content-type", b"text/xml;charset=UTF-8")], body
    body = msgspec.json.encode({"__type": fault.code, "message": fault.message, **fault.extra})
    headers = [
        (b"content-type", f"application/x-amz-json-{json_version or '1.1'}".encode()),
        (b"x-amzn-errortype", fault.code.encode()),
    ]
    return fault.status, headers, body
