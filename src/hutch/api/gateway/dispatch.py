"""One AWS request from its parts to its answer: operation, input, coverage, handler, output."""

from collections.abc import Mapping
from typing import Any

import msgspec

from hutch.api.gateway import faults
from hutch.api.gateway.coverage import CoverageGuard
from hutch.api.gateway.faults import Fault, FaultTable, Response
from hutch.api.gateway.form import FormReader, XmlWriter, parse_fields
from hutch.api.gateway.operation import EventStream, Operation, Request, Service
from hutch.api.gateway.rest import RestCodec, RestRouter, json_object
from hutch.api.gateway.rest_xml import QueryRouter, RestXmlCodec
from hutch.api.gateway.service_model import (
    REST_PROTOCOLS,
    XML_PROTOCOLS,
    OperationModel,
    ServiceModel,
    load_model,
)
from hutch.api.gateway.validate import BadInput, Validators, undeclared_output
from hutch.base.errors import HutchError


class HttpRequest(msgspec.Struct, frozen=True, kw_only=True):
    """An HTTP request as received, body included."""

    method: str
    raw_path: bytes
    query: bytes
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """Which operation a request is for, and what the protocol's envelope says of it."""

    operation: str
    fields: Mapping[str, str] = {}
    """The form's fields without Action and Version (query, ec2)."""
    labels: Mapping[str, str] = {}
    """The labels in the path (rest-json, rest-xml)."""


class ServedOperation:
    """An operation with all that its requests need, compiled once."""

    def __init__(self, operation: Operation, model: OperationModel, service_model: ServiceModel) -> None:
        self.operation = operation
        self.model = model
        self.input_shape = model.input.shape if model.input else None
        try:
            self.guard = CoverageGuard(operation.coverage, service_model, self.input_shape)
        except ValueError as error:
            raise ValueError(f"{operation.name}: {error}") from None


class ServedService:
    """A service with its model; decodes requests and encodes answers in its protocol.

    `strict` makes an answer that the model does not describe an internal error: for tests.
    """

    def __init__(self, service: Service, *, strict: bool = False) -> None:
        self.service = service
        self.model: ServiceModel = load_model(service.name)
        self.protocol = self.model.protocol
        self._strict = strict
        self._validators = Validators(self.model, text_scalars=self.protocol in XML_PROTOCOLS)
        self.operations: dict[str, ServedOperation] = {}
        for operation in service.operations:
            model = self.model.operation(operation.name)
            if model is None:
                raise ValueError(f"{service.name} has no operation {operation.name}")
            self.operations[operation.name] = ServedOperation(operation, model, self.model)
        self._forms = FormReader(self.model)
        self._xml = XmlWriter(self.model)
        self._rest = RestXmlCodec(self.model) if self.protocol == "rest-xml" else RestCodec(self.model)
        self._router = RestRouter(self._all()) if self.protocol == "rest-json" else None
        self._query_router = QueryRouter(self._all(), self.model) if self.protocol == "rest-xml" else None
        self.model.keep_only(set(self.operations))

    def _all(self) -> list[OperationModel]:
        models = (self.model.operation(name) for name in self.model.operation_names)
        return [m for m in models if m]

    def faults_of(self, operation: str) -> FaultTable:
        """The fault tables that an operation's errors are looked up in."""
        served = self.operations.get(operation)
        return (*served.operation.faults, *self.service.faults) if served else self.service.faults

    def json_call(self, operation: str) -> Call:
        """The call of a JSON request, by its target. Raises `Fault`."""
        if operation not in self.operations:
            raise self.unknown_operation(operation)
        return Call(operation=operation)

    def form_call(self, form: bytes, *, is_query_string: bool) -> Call:
        """The call of a form, by its Action and Version. Raises `Fault`."""
        try:
            fields = parse_fields(form)
        except BadInput as problem:
            raise self._bad_input(problem, "") from None
        action, version = fields.pop("Action", ""), fields.pop("Version", "")
        if is_query_string:
            fields = {k: v for k, v in fields.items() if not k.startswith("X-Amz-")}
        if not action:
            raise Fault("MissingAction", "The request must contain the parameter Action.")
        if version and version != self.model.metadata.apiVersion:
            code = "NoSuchVersion" if self.protocol == "ec2" else "InvalidAction"
            wanted = self.model.metadata.apiVersion
            raise Fault(
                code, f"Could not find operation {action[:100]} for version {version[:20]}; use {wanted}."
            )
        if action not in self.operations:
            raise self.unknown_operation(action)
        return Call(operation=action, fields=fields)

    def rest_call(self, http: HttpRequest) -> Call | None:
        """The call of a request by its method and path; None if they are not this service's. Raises `Fault`."""
        path = http.raw_path.decode("latin-1")
        found = self._router.find(http.method, path) if self._router else None
        if self._query_router is not None:
            found = self._query_router.find(http.method, path, http.query, http.headers)
        if found is None:
            return None
        operation, labels = found
        if operation.name not in self.operations:
            raise self.unknown_operation(operation.name)
        return Call(operation=operation.name, labels=labels)

    def parse(self, call: Call, http: HttpRequest) -> dict[str, Any]:
        """The checked input of an operation. Raises `Fault`."""
        served = self.operations[call.operation]
        try:
            given = self._decode(served, call, http)
            if served.input_shape is None:
                return {}
            value: dict[str, Any] = self._validators.check(served.input_shape, given)
            served.guard.check(value)
            return value
        except BadInput as problem:
            raise self._bad_input(problem, call.operation) from None
        except HutchError as error:
            raise faults.domain_fault(error, self.faults_of(call.operation), self.model) from None

    def _decode(self, served: ServedOperation, call: Call, http: HttpRequest) -> dict[str, Any]:
        if self.protocol in XML_PROTOCOLS:
            return self._forms.read(served.input_shape, call.fields)
        if self.protocol in REST_PROTOCOLS:
            return self._rest.read(served.model, call.labels, http.query, http.headers, http.body)
        given = json_object(http.body)
        if served.input_shape is None and given:
            raise BadInput(f"Unknown parameter '{next(iter(given))[:100]}'")
        return given

    def _bad_input(self, problem: BadInput, operation: str) -> Fault:
        return faults.validation_fault(
            problem.message, self.protocol, self.faults_of(operation), serialization=problem.serialization
        )

    def unknown_operation(self, name: str) -> Fault:
        """AWS's answer to an operation that is not there, saying whether it is hutch that lacks it."""
        shown = name[:100]
        known = name in self.model.operation_names
        if self.protocol in XML_PROTOCOLS:
            text = f"The action {shown} is not valid for this web service."
            return Fault("InvalidAction", f"hutch does not serve {shown} yet." if known else text)
        if self.protocol == "rest-xml":
            return Fault("NotImplemented", f"hutch does not serve {shown} yet.", 501)
        text = f"hutch does not serve {shown} yet." if known else f"Unknown operation {shown!r}."
        return Fault("UnknownOperationException", text, 404 if self.protocol == "rest-json" else 400)

    async def call(self, request: Request) -> Response | EventStream:
        """Run the handler and encode what it gives. Raises `Fault`."""
        served = self.operations[request.operation]
        try:
            answer = await served.operation.handler(request)
        except HutchError as error:
            raise faults.domain_fault(error, self.faults_of(request.operation), self.model) from error
        if isinstance(answer, EventStream):
            return answer
        output = served.model.output
        if self._strict:
            self._check_output(request.operation, output.shape if output else None, answer)
        if self.protocol in XML_PROTOCOLS:
            body = self._xml.write(request.operation, output, answer, request.request_id)
            return 200, [(b"content-type", b"text/xml;charset=UTF-8")], body
        if self.protocol in REST_PROTOCOLS:
            return self._rest.write(served.model, answer)
        kind = f"application/x-amz-json-{self.model.metadata.jsonVersion}".encode()
        # Nothing at all is an empty body, as AWS answers operations without output.
        return 200, [(b"content-type", kind)], msgspec.json.encode(answer) if output else b""

    def check_event(self, operation: str, name: str, event: dict[str, Any]) -> None:
        """In strict mode: raise `AssertionError` for an event that the operation's stream does not have."""
        output = self.operations[operation].model.output
        if not self._strict or output is None:
            return
        for ref in self.model.shape(output.shape).members.values():
            stream = self.model.shape(ref.shape)
            if stream.eventstream and name in stream.members:
                self._check_output(f"{operation} {name}", stream.members[name].shape, event)
                return
        raise AssertionError(f"{operation} has no event {name}")

    def _check_output(self, what: str, shape: str | None, answer: dict[str, Any]) -> None:
        problems = undeclared_output(self.model, shape, answer) if shape else [str(k) for k in answer]
        if problems:
            raise AssertionError(f"{what} answered what the model does not have: {'; '.join(problems)}")
