"""One AWS request from its bytes to its answer: operation, input, coverage, handler, output."""

import base64
from collections.abc import Mapping
from typing import Any

import msgspec

from hutch.api.gateway import faults
from hutch.api.gateway.faults import Fault, Response
from hutch.api.gateway.form import FormReader, XmlWriter, parse_fields
from hutch.api.gateway.operation import Coverage, EventStream, Operation, Request, Service
from hutch.api.gateway.service_model import OperationModel, ServiceModel, load_model
from hutch.api.gateway.validate import BadInput, Validators, undeclared_output
from hutch.base.errors import HutchError


class ServedOperation:
    """An operation with all that its requests need, compiled once."""

    def __init__(self, operation: Operation, model: OperationModel, validators: Validators) -> None:
        self.operation = operation
        self.model = model
        self._validate = validators.of(model.input.shape) if model.input else None
        self._refusals = _Refusals(operation.coverage)

    def check(self, given: dict[str, Any]) -> dict[str, Any]:
        """The validated input. Raises `BadInput` or `Fault`."""
        value: dict[str, Any] = self._validate(given, "") if self._validate else {}
        self._refusals.check(value)
        return value


class _Refusals:
    """What a `Coverage` does not let through."""

    def __init__(self, coverage: Coverage) -> None:
        self._states: dict[str, str] = dict.fromkeys((*coverage.enforced, *coverage.inert), "")
        self._states |= dict(coverage.refused)
        self._inner = {p[:i] for p in self._states for i in _dots(p)}

    def check(self, value: Mapping[str, Any]) -> None:
        for name, given in value.items():
            self._walk(name, given, None)

    def _walk(self, path: str, value: Any, inherited: str | None) -> None:
        state = self._states.get(path, inherited)
        if value in ([], {}, "", None):
            # Tools send back what they were shown; nothing at all asks for nothing.
            return
        if state or (state is None and path not in self._inner):
            reason = state or "it is not served"
            raise Fault("", f"hutch does not support {path}: {reason}.")
        if path in self._inner:
            for item in value if isinstance(value, list) else (value,):
                if isinstance(item, dict):
                    for name, given in item.items():
                        self._walk(f"{path}.{name}", given, state)


def _dots(path: str) -> list[int]:
    return [i for i, c in enumerate(path) if c == "."]


class ServedService:
    """A service with its model; decodes requests and encodes answers in its protocol."""

    def __init__(self, service: Service, *, strict: bool = False) -> None:
        self.service = service
        self.model: ServiceModel = load_model(service.name)
        self.protocol = self.model.metadata.protocol
        self._strict = strict
        validators = Validators(self.model, text_scalars=self.protocol in ("query", "ec2"))
        self.operations: dict[str, ServedOperation] = {}
        for operation in service.operations:
            model = self.model.operation(operation.name)
            if model is None:
                raise ValueError(f"{service.name} has no operation {operation.name}")
            self.operations[operation.name] = ServedOperation(operation, model, validators)
        self._forms = FormReader(self.model)
        self._xml = XmlWriter(self.model)
        self.model.keep_only(set(self.operations))

    def parse(self, name: str, body: bytes) -> dict[str, Any]:
        """The checked input of an operation. Raises `Fault`."""
        served = self.operations.get(name)
        if served is None:
            raise self.unknown_operation(name)
        try:
            if self.protocol in ("query", "ec2"):
                shape = served.model.input.shape if served.model.input else ""
                given = self._forms.read(shape, parse_fields(body)) if shape else {}
            else:
                given = _json_object(body)
            return served.check(given)
        except BadInput as problem:
            code = faults.validation_code(self.service.name, serialization=problem.serialization)
            raise Fault(code, problem.message) from None
        except Fault as refusal:
            code = refusal.code or faults.validation_code(self.service.name, serialization=False)
            raise Fault(code, refusal.message) from None

    def unknown_operation(self, name: str) -> Fault:
        """AWS's answer to an operation that is not there."""
        shown = name[:100]
        if self.protocol in ("query", "ec2"):
            return Fault("InvalidAction", f"The action {shown} is not valid for this web service.")
        known = shown in self.model.operation_names
        text = f"hutch does not serve {shown} yet." if known else f"Unknown operation {shown!r}."
        return Fault("UnknownOperationException", text)

    async def call(self, request: Request) -> Response | EventStream:
        """Run the handler and encode what it gives. Raises `Fault`."""
        served = self.operations[request.operation]
        try:
            answer = await served.operation.handler(request)
        except HutchError as error:
            raise faults.domain_fault(error, self.service, self.model) from error
        if isinstance(answer, EventStream):
            return answer
        output = served.model.output
        if self._strict and output and (problems := undeclared_output(self.model, output.shape, answer)):
            raise AssertionError(f"{request.operation}: {'; '.join(problems)}")
        if self.protocol in ("query", "ec2"):
            body = self._xml.write(
                request.operation, output.shape if output else None, answer, request.request_id
            )
            return 200, [(b"content-type", b"text/xml;charset=UTF-8")], body
        kind = f"application/x-amz-json-{self.model.metadata.jsonVersion}".encode()
        # Nothing at all is an empty body, as AWS answers operations without output.
        return 200, [(b"content-type", kind)], _encode(answer) if output else b""


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=_encode_other)


def _encode_other(value: Any) -> Any:
    if isinstance(value, bytes | memoryview):
        return base64.b64encode(value).decode()
    raise TypeError(f"{type(value).__name__} can't be part of an answer")


def _json_object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BadInput(f"The request body is not valid JSON: {error}", serialization=True) from None
    if not isinstance(value, dict):
        raise BadInput("The request body must be a JSON object.", serialization=True)
    return value
