"""From errors to AWS error codes and bodies: one place, for all protocols."""

from collections.abc import Sequence
from typing import Any

import msgspec

from hutch.api.gateway.form import error_xml
from hutch.api.gateway.service_model import XML_PROTOCOLS, ServiceModel
from hutch.base.errors import (
    AccessDenied,
    AlreadyExists,
    Conflict,
    HutchError,
    InUse,
    Invalid,
    LimitExceeded,
    NotFound,
    NotServed,
    Unavailable,
)
from hutch.base.sigv4 import SignatureRefused

Response = tuple[int, list[tuple[bytes, bytes]], bytes]
FaultTable = Sequence[tuple[type[HutchError], str]]

_JSON_SIGNATURE = {
    "Missing": ("MissingAuthenticationTokenException", 403),
    "Incomplete": ("IncompleteSignatureException", 400),
    "Expired": ("InvalidSignatureException", 403),
    "UnknownKey": ("UnrecognizedClientException", 400),
    "ExpiredToken": ("ExpiredTokenException", 400),
    "Mismatch": ("InvalidSignatureException", 403),
}
_QUERY_SIGNATURE = {
    "Missing": ("MissingAuthenticationToken", 403),
    "Incomplete": ("IncompleteSignature", 400),
    "Expired": ("SignatureDoesNotMatch", 403),
    "UnknownKey": ("InvalidClientTokenId", 403),
    "ExpiredToken": ("ExpiredToken", 403),
    "Mismatch": ("SignatureDoesNotMatch", 403),
}
_EC2_SIGNATURE = {
    "Missing": ("MissingAuthenticationToken", 403),
    "Incomplete": ("IncompleteSignature", 400),
    "Expired": ("RequestExpired", 400),
    "UnknownKey": ("AuthFailure", 401),
    "ExpiredToken": ("RequestExpired", 400),
    "Mismatch": ("AuthFailure", 401),
}

_S3_SIGNATURE = {
    "Missing": ("AccessDenied", 403),
    "Incomplete": ("AuthorizationHeaderMalformed", 400),
    "Expired": ("RequestTimeTooSkewed", 403),
    "UnknownKey": ("InvalidAccessKeyId", 403),
    "ExpiredToken": ("ExpiredToken", 400),
    "Mismatch": ("SignatureDoesNotMatch", 403),
}
_STATUS = {
    "AccessDenied": 403,
    "BucketNotEmpty": 409,
    "InternalError": 500,
    "InvalidRange": 416,
    "NoSuchBucket": 404,
    "NotImplemented": 501,
    "PreconditionFailed": 412,
}
"""Status of S3's errors, of which the model has few."""

_USUAL_CODES: dict[str, FaultTable] = {
    "json": (
        (NotFound, "ResourceNotFoundException"),
        (AlreadyExists, "ResourceAlreadyExistsException"),
        (InUse, "ResourceInUseException"),
        (LimitExceeded, "LimitExceededException"),
        (Conflict, "ConflictException"),
        (AccessDenied, "AccessDeniedException"),
        (NotServed, "UnsupportedOperationException"),
        (Unavailable, "ServiceUnavailableException"),
        (HutchError, "ValidationException"),
    ),
    "query": (
        (NotFound, "ResourceNotFound"),
        (AlreadyExists, "AlreadyExists"),
        (InUse, "ResourceInUse"),
        (LimitExceeded, "LimitExceeded"),
        (AccessDenied, "AccessDenied"),
        (NotServed, "UnsupportedOperation"),
        (Unavailable, "ServiceUnavailable"),
        (HutchError, "ValidationError"),
    ),
    "ec2": (
        (AccessDenied, "UnauthorizedOperation"),
        (LimitExceeded, "ResourceLimitExceeded"),
        (InUse, "DependencyViolation"),
        (NotServed, "UnsupportedOperation"),
        (Unavailable, "Unavailable"),
        (HutchError, "InvalidParameterValue"),
    ),
    "rest-xml": (
        (NotFound, "NoSuchKey"),
        (AlreadyExists, "BucketAlreadyOwnedByYou"),
        (InUse, "BucketNotEmpty"),
        (LimitExceeded, "EntityTooLarge"),
        (AccessDenied, "AccessDenied"),
        (NotServed, "NotImplemented"),
        (Unavailable, "ServiceUnavailable"),
        (HutchError, "InvalidRequest"),
    ),
}
"""What a kind is called where the service says nothing else; most special first."""


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


def usual_code(kind: type[HutchError], protocol: str, faults: FaultTable = ()) -> str:
    """The AWS error code of a kind: the service's, else the protocol's usual one."""
    usual = _USUAL_CODES.get(protocol, _USUAL_CODES["json"])
    return next(code for listed, code in (*faults, *usual) if issubclass(kind, listed))


def validation_fault(message: str, protocol: str, faults: FaultTable, *, serialization: bool) -> Fault:
    """The answer to malformed input: of a wrong type (`serialization`), or against a constraint."""
    if serialization and protocol == "query":
        return Fault("MalformedInput", message)
    if serialization and protocol == "rest-xml":
        return Fault("MalformedXML", message)
    if serialization and protocol != "ec2":
        return Fault("SerializationException", message)
    return Fault(usual_code(Invalid, protocol, faults), message)


def signature_fault(refusal: SignatureRefused, protocol: str) -> Fault:
    """A refused signature in a protocol's words."""
    tables = {"query": _QUERY_SIGNATURE, "ec2": _EC2_SIGNATURE, "rest-xml": _S3_SIGNATURE}
    table = tables.get(protocol, _JSON_SIGNATURE)
    code, status = table[refusal.kind]
    return Fault(code, refusal.message, status)


def access_denied_fault(message: str, protocol: str) -> Fault:
    """A request that its signer may not make."""
    if protocol == "ec2":
        return Fault(
            "UnauthorizedOperation", f"You are not authorized to perform this operation. {message}", 403
        )
    if protocol in ("query", "rest-xml"):
        return Fault("AccessDenied", message, 403)
    return Fault("AccessDeniedException", message, 403 if protocol == "rest-json" else 400)


def domain_fault(error: HutchError, faults: FaultTable, model: ServiceModel) -> Fault:
    """An error of a use case in the service's words: its own code, else that of its kind."""
    code = error.code
    if code is None:
        code = usual_code(type(error), model.protocol, faults)
    status = 503 if isinstance(error, Unavailable) else 400
    if isinstance(error, AccessDenied) and model.protocol != "json":
        status = 403
    if model.protocol == "rest-xml":
        status = _STATUS.get(code, status)
    shape = model.exception(code)
    if shape and shape.error and shape.error.httpStatusCode:
        status = shape.error.httpStatusCode
    elif shape and shape.fault:
        status = 500
    extra: dict[str, Any] = {}
    if isinstance(error, Conflict) and error.resource_ids and shape and "resourceIds" in shape.members:
        extra["resourceIds"] = list(error.resource_ids)
    if shape and shape.error and shape.error.code:
        code = shape.error.code
    return Fault(code, error.message, status, extra)


def internal_fault(request_id: str, model: ServiceModel | None) -> Fault:
    """The answer to a bug of ours."""
    message = f"hutch has an internal error; look for the request id {request_id} in its log."
    code = "InternalFailure"
    if model and model.exception("ServerException"):
        code = "ServerException"
    elif model and model.protocol in ("ec2", "rest-xml"):
        code = "InternalError"
    return Fault(code, message, 500)


def render(fault: Fault, protocol: str, namespace: str, json_version: str, request_id: str) -> Response:
    """An error answer in a protocol."""
    if protocol in (*XML_PROTOCOLS, "rest-xml"):
        body = error_xml(
            protocol, namespace, fault.code, fault.message, request_id, sender=fault.status < 500
        )
        return fault.status, [(b"content-type", b"text/xml;charset=UTF-8")], body
    kind = (
        "application/json" if protocol == "rest-json" else f"application/x-amz-json-{json_version or '1.1'}"
    )
    headers = [(b"content-type", kind.encode()), (b"x-amzn-errortype", fault.code.encode())]
    shown = {"__type": fault.code, "message": fault.message, **fault.extra}
    return fault.status, headers, msgspec.json.encode(shown)
