"""The rest-json protocol: method and path say the operation; path, query, headers and body its input."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import formatdate, parsedate_to_datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

import msgspec

from hutch.api.gateway.service_model import OperationModel, Ref, ServiceModel, Shape
from hutch.api.gateway.validate import BadInput

Headers = list[tuple[bytes, bytes]]


class RestRouter:
    """Finds the operation of a method and path."""

    def __init__(self, operations: list[OperationModel]) -> None:
        self._routes = sorted(
            ((template_pattern(op.http.requestUri), op) for op in operations),
            # The most literal template wins: `/a/b` over `/a/{x}` over `/{path+}`.
            key=lambda route: (route[0].pattern.count("(?P"), -len(route[0].pattern)),
        )

    def find(self, method: str, raw_path: str) -> tuple[OperationModel, dict[str, str]] | None:
        """The operation, and the labels of its path, decoded. `raw_path` is as sent, without the query."""
        for pattern, operation in self._routes:
            if operation.http.method == method and (match := pattern.fullmatch(raw_path)):
                labels = {k.replace("__", "-"): unquote(v) for k, v in match.groupdict().items()}
                return operation, labels
        return None


def template_pattern(uri: str) -> re.Pattern[str]:
    """What the paths of a `requestUri` look like, its labels as named groups."""
    path = uri.partition("?")[0].rstrip("/")
    parts = re.split(r"\{([^}]+)\}", path)
    pattern = ""
    for i, part in enumerate(parts):
        if i % 2 == 0:
            pattern += re.escape(part)
        else:
            name = part.rstrip("+").replace("-", "__")
            pattern += f"(?P<{name}>.+)" if part.endswith("+") else f"(?P<{name}>[^/]+)"
    return re.compile(pattern + "/?")


class RestCodec:
    """Requests to structures and structures to answers, for one service."""

    def __init__(self, model: ServiceModel) -> None:
        self._model = model

    def read(
        self,
        operation: OperationModel,
        labels: Mapping[str, str],
        query: bytes,
        headers: Mapping[str, str],
        body: bytes,
    ) -> dict[str, Any]:
        """The input structure, not yet validated. Raises `BadInput`."""
        if operation.input is None:
            return {}
        shape = self._model.shape(operation.input.shape)
        fields = _query(query)
        result: dict[str, Any] = {}
        in_body: dict[str, str] = {}
        for member, ref in shape.members.items():
            wire = ref.locationName or member
            if ref.location == "uri":
                if wire in labels:
                    result[member] = self._scalar(ref, labels[wire])
            elif ref.location == "querystring":
                self._take_query(result, member, ref, fields)
            elif ref.location == "header":
                if wire.lower() in headers:
                    result[member] = self._scalar(ref, headers[wire.lower()])
            elif ref.location == "headers":
                prefix = wire.lower()
                result[member] = {k[len(prefix) :]: v for k, v in headers.items() if k.startswith(prefix)}
            else:
                in_body[wire] = member
        if fields:
            raise BadInput(f"Unknown query parameter {next(iter(fields))[:100]!r}.")
        self._read_body(shape, in_body, body, result)
        return result

    def _read_body(
        self, shape: Shape, in_body: Mapping[str, str], body: bytes, result: dict[str, Any]
    ) -> None:
        if shape.payload:
            ref = shape.members[shape.payload]
            kind = self._model.shape(ref.shape).type
            if kind == "blob":
                result[shape.payload] = body
            elif kind == "string":
                result[shape.payload] = body.decode("utf-8", "replace")
            elif body:
                result[shape.payload] = self._structured(ref, body)
            return
        for wire, given in self._unnamed(body).items():
            member = in_body.get(wire)
            if member is None:
                raise BadInput(f"Unknown parameter '{wire[:100]}'")
            result[member] = self._renamed(shape.members[member], given)

    def _structured(self, ref: Ref, body: bytes) -> Any:
        """The structure that a body is."""
        return self._renamed(ref, json_object(body))

    def _unnamed(self, body: bytes) -> dict[str, Any]:
        """The members, by their names on the wire, of a body that is no single member."""
        return json_object(body)

    def _take_query(
        self, result: dict[str, Any], member: str, ref: Ref, fields: dict[str, list[str]]
    ) -> None:
        shape = self._model.shape(ref.shape)
        if shape.type == "map":
            taken = {k: fields.pop(k) for k in list(fields)}
            inner = self._model.shape(shape.value.shape) if shape.value else None
            many = inner is not None and inner.type == "list"
            result[member] = {k: v if many else v[-1] for k, v in taken.items()}
            return
        given = fields.pop(ref.locationName or member, None)
        if given is None:
            return
        if shape.type == "list" and shape.member:
            element = shape.member
            result[member] = [self._scalar(element, v) for v in given]
        elif len(given) > 1:
            raise BadInput(f"Query parameter {(ref.locationName or member)!r} is given more than once.")
        else:
            result[member] = self._scalar(ref, given[0])

    def _scalar(self, ref: Ref, text: str) -> Any:
        """A scalar from text. What can't be read stays text, for validation to refuse."""
        kind = self._model.shape(ref.shape).type
        try:
            if kind in ("integer", "long") and re.fullmatch(r"-?[0-9]{1,19}", text):
                return int(text)
            if kind in ("float", "double") and len(text) <= 40:
                return float(text)
            if kind == "boolean" and text in ("true", "false"):
                return text == "true"
            if kind == "timestamp" and ref.location == "header":
                return parsedate_to_datetime(text).timestamp()
        except (ValueError, OverflowError):
            pass
        return text

    def _renamed(self, ref: Ref, value: Any) -> Any:
        """A JSON value with its members by their model names instead of those on the wire."""
        return self._rename(ref, value, to_wire=False, depth=0)

    def _rename(self, ref: Ref, value: Any, *, to_wire: bool, depth: int) -> Any:
        shape = self._model.shape(ref.shape)
        if shape.document or depth > 64:
            return value
        if shape.type == "structure" and isinstance(value, Mapping):
            names = {(m if to_wire else r.locationName or m): (m, r) for m, r in shape.members.items()}
            result = {}
            for name, given in value.items():
                if name in names:
                    member, inner = names[name]
                    wire = (inner.locationName or member) if to_wire else member
                    result[wire] = self._rename(inner, given, to_wire=to_wire, depth=depth + 1)
                else:
                    result[name] = given
            return result
        if shape.type == "list" and shape.member and isinstance(value, list | tuple):
            return [self._rename(shape.member, v, to_wire=to_wire, depth=depth + 1) for v in value]
        if shape.type == "map" and shape.value and isinstance(value, Mapping):
            return {
                k: self._rename(shape.value, v, to_wire=to_wire, depth=depth + 1) for k, v in value.items()
            }
        if to_wire and shape.type == "timestamp":
            iso = (ref.timestampFormat or shape.timestampFormat) == "iso8601"
            return datetime.fromtimestamp(value, UTC).isoformat() if iso else value
        return value

    def write(self, operation: OperationModel, value: Mapping[str, Any]) -> tuple[int, Headers, bytes]:
        """Status, headers and body of an answer."""
        headers: Headers = [(b"content-type", b"application/json")]
        status = operation.http.responseCode
        if operation.output is None:
            return status, headers, b""
        shape = self._model.shape(operation.output.shape)
        in_body: dict[str, Any] = {}
        for member, given in value.items():
            if given is None:
                continue
            ref = shape.members[member]
            wire = ref.locationName or member
            if ref.location == "statusCode":
                status = given
            elif ref.location == "header":
                headers.append((wire.lower().encode(), self._header(ref, given).encode("latin-1", "replace")))
            elif ref.location == "headers":
                headers += [(f"{wire}{k}".lower().encode(), str(v).encode()) for k, v in given.items()]
            elif member == shape.payload:
                renamed = self._rename(ref, given, to_wire=True, depth=0)
                raw = (
                    given if isinstance(given, bytes) else given.encode() if isinstance(given, str) else None
                )
                return status, headers, raw if raw is not None else msgspec.json.encode(renamed)
            else:
                in_body[wire] = self._rename(ref, given, to_wire=True, depth=0)
        return status, headers, msgspec.json.encode(in_body)

    def _header(self, ref: Ref, value: Any) -> str:
        kind = self._model.shape(ref.shape).type
        if kind == "timestamp":
            return formatdate(value, usegmt=True)
        if kind == "boolean":
            return "true" if value else "false"
        # A line end would let a value become a header of its own.
        return str(value).replace("\r", " ").replace("\n", " ")


def _query(query: bytes) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=1000)
    except ValueError:
        raise BadInput("The query string is not URL-encoded UTF-8.", serialization=True) from None
    for name, value in pairs:
        if not name.startswith("X-Amz-"):
            fields.setdefault(name, []).append(value)
    return fields


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is; an empty body is an empty one. Raises `BadInput`."""
    if not body:
        return {}
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise BadInput(f"The request body is not valid JSON: {reason}", serialization=True) from None
    if not isinstance(value, dict):
        raise BadInput("The request body must be a JSON object.", serialization=True)
    return value
