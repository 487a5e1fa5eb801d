"""botocore's service models as data: operations and shapes, read lazily and without importing botocore.

A model file is decoded with raw members, so that of EC2's ten megabytes only the shapes in use are ever parsed.
"""

import gzip
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec


class _Http(msgspec.Struct):
    method: str = "POST"
    requestUri: str = "/"


class _Ref(msgspec.Struct):
    """A use of a shape: as a member, list element, map key or value, input or output."""

    shape: str
    locationName: str | None = None
    location: str | None = None
    flattened: bool = False
    queryName: str | None = None
    jsonvalue: bool = False
    resultWrapper: str | None = None
    xmlNamespace: Any = None


class OperationModel(msgspec.Struct):
    """An operation of a service model."""

    name: str
    http: _Http = msgspec.field(default_factory=_Http)
    input: _Ref | None = None
    output: _Ref | None = None
    errors: list[_Ref] = []


class _ErrorTrait(msgspec.Struct):
    code: str | None = None
    httpStatusCode: int | None = None
    senderFault: bool = True


class Shape(msgspec.Struct):
    """A shape; which members matter depends on `type`."""

    type: str
    members: dict[str, _Ref] = {}
    required: list[str] = []
    member: _Ref | None = None
    key: _Ref | None = None
    value: _Ref | None = None
    enum: list[str] | None = None
    min: float | None = None
    max: float | None = None
    pattern: str | None = None
    flattened: bool = False
    eventstream: bool = False
    exception: bool = False
    fault: bool = False
    error: _ErrorTrait | None = None
    sensitive: bool = False
    payload: str | None = None
    timestampFormat: str | None = None


class _Metadata(msgspec.Struct):
    apiVersion: str
    endpointPrefix: str
    protocol: str
    serviceFullName: str
    targetPrefix: str = ""
    jsonVersion: str = ""
    signingName: str = ""
    xmlNamespace: str = ""


class _File(msgspec.Struct):
    metadata: _Metadata
    operations: dict[str, msgspec.Raw]
    shapes: dict[str, msgspec.Raw]


class ServiceModel:
    """One service's model. Shapes and operations are parsed on first use."""

    def __init__(self, name: str, data: bytes) -> None:
        parsed = msgspec.json.decode(data, type=_File)
        self.name = name
        self.metadata = parsed.metadata
        self._operations = parsed.operations
        self._shapes = parsed.shapes
        self._parsed_shapes: dict[str, Shape] = {}
        self._parsed_operations: dict[str, OperationModel] = {}

    @property
    def signing_name(self) -> str:
        return self.metadata.signingName or self.metadata.endpointPrefix

    @property
    def operation_names(self) -> tuple[str, ...]:
        return tuple(self._operations)

    def operation(self, name: str) -> OperationModel | None:
        """An operation, or None if the model has none of that name."""
        if name not in self._parsed_operations:
            raw = self._operations.get(name)
            if raw is None:
                return None
            self._parsed_operations[name] = msgspec.json.decode(raw, type=OperationModel)
        return self._parsed_operations[name]

    def shape(self, name: str) -> Shape:
        if name not in self._parsed_shapes:
            self._parsed_shapes[name] = msgspec.json.decode(self._shapes[name], type=Shape)
        return self._parsed_shapes[name]

    def exception(self, code: str) -> Shape | None:
        """The exception shape of an error code, or None."""
        if code in self._shapes:
            shape = self.shape(code)
            return shape if shape.exception else None
        return None

    def keep_only(self, operations: set[str]) -> None:
        """Forget all that these operations do not need, so that a large model does not stay in memory."""
        for name in operations:
            operation = self.operation(name)
            if operation:
                for ref in (operation.input, operation.output, *operation.errors):
                    if ref:
                        self._reach(ref.shape)
        self._shapes = {}
        self._operations = {k: msgspec.Raw(b"null") for k in self._operations}

    def _reach(self, name: str) -> None:
        if name in self._parsed_shapes:
            return
        shape = self.shape(name)
        for ref in (*shape.members.values(), shape.member, shape.key, shape.value):
            if ref:
                self._reach(ref.shape)


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
