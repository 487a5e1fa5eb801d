"""botocore's service models as data: operations and shapes, read lazily and without importing botocore.

A model file is decoded with raw members, so that of EC2's four megabytes only the shapes in use are ever
parsed, and the rest is dropped. Documentation strings are never decoded. See ADR 0004.
"""

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path

import msgspec

XML_PROTOCOLS = ("query", "ec2")
REST_PROTOCOLS = ("rest-json", "rest-xml")


class Http(msgspec.Struct):
    """Where an operation of a REST protocol is."""

    method: str = "POST"
    requestUri: str = "/"
    responseCode: int = 200


class Ref(msgspec.Struct):
    """A use of a shape: as a member, list element, map key or value, input or output."""

    shape: str
    locationName: str | None = None
    location: str | None = None
    flattened: bool = False
    queryName: str | None = None
    resultWrapper: str | None = None
    timestampFormat: str | None = None


class OperationModel(msgspec.Struct):
    """An operation of a service model."""

    name: str
    http: Http = msgspec.field(default_factory=Http)
    input: Ref | None = None
    output: Ref | None = None
    errors: list[Ref] = []


class ErrorTrait(msgspec.Struct):
    """What the model says of an exception's HTTP form."""

    code: str | None = None
    httpStatusCode: int | None = None


class Shape(msgspec.Struct):
    """A shape; which members matter depends on `type`."""

    type: str
    members: dict[str, Ref] = {}
    required: list[str] = []
    member: Ref | None = None
    key: Ref | None = None
    value: Ref | None = None
    enum: list[str] | None = None
    min: float | None = None
    max: float | None = None
    pattern: str | None = None
    flattened: bool = False
    eventstream: bool = False
    exception: bool = False
    fault: bool = False
    error: ErrorTrait | None = None
    sensitive: bool = False
    document: bool = False
    union: bool = False
    payload: str | None = None
    timestampFormat: str | None = None

    @property
    def children(self) -> tuple[Ref, ...]:
        """The shapes this one is made of."""
        return (*self.members.values(), *(r for r in (self.member, self.key, self.value) if r))


class Metadata(msgspec.Struct):
    """A service's own properties."""

    apiVersion: str
    endpointPrefix: str
    protocol: str
    serviceFullName: str
    protocols: list[str] = []
    targetPrefix: str = ""
    jsonVersion: str = ""
    signingName: str = ""
    xmlNamespace: str = ""


class _File(msgspec.Struct):
    metadata: Metadata
    operations: dict[str, msgspec.Raw]
    shapes: dict[str, msgspec.Raw]


class ServiceModel:
    """One service's model. Shapes and operations are parsed on first use."""

    def __init__(self, name: str, data: bytes) -> None:
        parsed = msgspec.json.decode(data, type=_File)
        self.name = name
        self.metadata = parsed.metadata
        self.operation_names = tuple(parsed.operations)
        self._operations = parsed.operations
        self._shapes = parsed.shapes
        self._parsed_shapes: dict[str, Shape] = {}
        self._parsed_operations: dict[str, OperationModel] = {}
        self._exceptions: dict[str, Shape] | None = None

    @property
    def signing_name(self) -> str:
        """The service's name in a signature's scope."""
        return self.metadata.signingName or self.metadata.endpointPrefix

    @property
    def protocol(self) -> str:
        """The protocol hutch answers in: json, query, ec2, rest-json or rest-xml; json for services with CBOR, too."""
        first = self.metadata.protocol
        if first == "smithy-rpc-v2-cbor" and "json" in self.metadata.protocols:
            return "json"
        return first

    def operation(self, name: str) -> OperationModel | None:
        """An operation, or None if the model has none of that name (or `keep_only` dropped it)."""
        if name not in self._parsed_operations:
            raw = self._operations.get(name)
            if raw is None:
                return None
            self._parsed_operations[name] = msgspec.json.decode(raw, type=OperationModel)
        return self._parsed_operations[name]

    def shape(self, name: str) -> Shape:
        """A shape. Raises `KeyError` if there is none."""
        if name not in self._parsed_shapes:
            self._parsed_shapes[name] = msgspec.json.decode(self._shapes[name], type=Shape)
        return self._parsed_shapes[name]

    def exception(self, code: str) -> Shape | None:
        """The exception shape of an error code, or None."""
        if self._exceptions is None:
            self._exceptions = self._find_exceptions()
        return self._exceptions.get(code)

    def _find_exceptions(self) -> dict[str, Shape]:
        found = {}
        for name, raw in self._shapes.items():
            # Parsing every shape would cost what lazy reading saves; only exceptions have this member.
            if b'"exception"' not in memoryview(raw).tobytes():
                continue
            shape = self.shape(name)
            if shape.exception:
                found[name] = shape
                if shape.error and shape.error.code:
                    found.setdefault(shape.error.code, shape)
        return found

    def keep_only(self, operations: set[str]) -> None:
        """Forget all that these operations do not need, so that a large model does not stay in memory."""
        self.exception("")
        reached: set[str] = set()
        for name in operations:
            if operation := self.operation(name):
                for ref in (operation.input, operation.output, *operation.errors):
                    if ref:
                        self._reach(ref.shape, reached)
        self._parsed_operations = {k: v for k, v in self._parsed_operations.items() if k in operations}
        self._parsed_shapes = {k: v for k, v in self._parsed_shapes.items() if k in reached}
        self._shapes, self._operations = {}, {}

    def _reach(self, name: str, reached: set[str]) -> None:
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current not in reached:
                reached.add(current)
                waiting.extend(ref.shape for ref in self.shape(current).children)


@lru_cache(maxsize=1)
def _data_directory() -> Path:
    spec = importlib.util.find_spec("botocore")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("the botocore package is not installed; run `make setup`")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def load_model(name: str) -> ServiceModel:
    """The newest model of a service, by botocore's name for it ("ecs")."""
    newest = max(p for p in (_data_directory() / name).iterdir() if p.is_dir())
    return ServiceModel(name, gzip.decompress((newest / "service-2.json.gz").read_bytes()))
