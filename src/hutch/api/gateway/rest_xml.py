"""The rest-xml protocol (S3): as rest-json, with bodies of XML, and operations that share their paths."""

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode
from xml.parsers import expat

from hutch.api.gateway.form import XmlWriter, escape
from hutch.api.gateway.rest import Headers, RestCodec, template_pattern
from hutch.api.gateway.service_model import OperationModel, Ref, ServiceModel
from hutch.api.gateway.validate import BadInput

MAX_XML_BYTES = 1024 * 1024
MAX_XML_ELEMENTS = 10_000
MAX_XML_DEPTH = 16
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_ROOTS = {
    "ListBucketsOutput": "ListAllMyBucketsResult",
    "ListObjectsOutput": "ListBucketResult",
    "ListObjectsV2Output": "ListBucketResult",
    "DeleteObjectsOutput": "DeleteResult",
    "GetBucketLocationOutput": "LocationConstraint",
}
"""What an answer's outermost element is called: S3's documentation says it, botocore's model does not."""
_UNWRAPPED = frozenset({"GetBucketLocationOutput"})
"""Answers that are the text of their only member."""
_SDK_QUERY = frozenset({"x-id"})
"""What clients add to a query without a meaning for the service."""


class _Route:
    """An operation, and what tells it from the others at its path."""

    def __init__(self, operation: OperationModel, model: ServiceModel) -> None:
        self.operation = operation
        path, _, literal = operation.http.requestUri.partition("?")
        self.pattern = template_pattern(path)
        self.literal = dict(parse_qsl(literal, keep_blank_values=True))
        self.query, self.headers = set(self.literal), set()
        shape = model.shape(operation.input.shape) if operation.input else None
        for member in shape.required if shape else ():
            ref = shape.members[member] if shape else None
            if ref is not None and ref.location == "querystring":
                self.query.add(ref.locationName or member)
            elif ref is not None and ref.location == "header":
                self.headers.add((ref.locationName or member).lower())

    @property
    def demands(self) -> int:
        return len(self.query) + len(self.headers)

    def fits(self, query: Mapping[str, str], headers: Mapping[str, str]) -> bool:
        wanted = all(name in query and (not v or query[name] == v) for name, v in self.literal.items())
        return wanted and query.keys() >= self.query and headers.keys() >= self.headers


class QueryRouter:
    """Finds the operation of a request whose query and headers say what its method and path leave open."""

    def __init__(self, operations: list[OperationModel], model: ServiceModel) -> None:
        routes = [_Route(o, model) for o in operations]
        # Whoever demands most is meant: `GET /bucket?location` is not a listing.
        self._routes = sorted(routes, key=lambda r: (-r.demands, r.pattern.pattern.count("(?P")))

    def find(
        self, method: str, raw_path: str, query: bytes, headers: Mapping[str, str]
    ) -> tuple[OperationModel, dict[str, str]] | None:
        """The operation, and the labels of its path, decoded."""
        fields = dict(parse_qsl(query.decode("latin-1"), keep_blank_values=True))
        for route in self._routes:
            if route.operation.http.method != method or not route.fits(fields, headers):
                continue
            if match := route.pattern.fullmatch(raw_path):
                labels = {k.replace("__", "-"): unquote(v) for k, v in match.groupdict().items()}
                return route.operation, labels
        return None


class RestXmlCodec(RestCodec):
    """Requests to structures and structures to answers, for one service."""

    def __init__(self, model: ServiceModel) -> None:
        super().__init__(model)
        self._xml = XmlWriter(model)

    def read(
        self,
        operation: OperationModel,
        labels: Mapping[str, str],
        query: bytes,
        headers: Mapping[str, str],
        body: bytes,
    ) -> dict[str, Any]:
        """The input structure, not yet validated. Raises `BadInput`."""
        literal = dict(parse_qsl(operation.http.requestUri.partition("?")[2], keep_blank_values=True))
        known = _SDK_QUERY | literal.keys()
        fields = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
        left = urlencode([(k, v) for k, v in fields if k not in known]).encode()
        return super().read(operation, labels, left, headers, body)

    def _structured(self, ref: Ref, body: bytes) -> Any:
        return self._value(ref, parse_xml(body))

    def _unnamed(self, body: bytes) -> dict[str, Any]:
        if body:
            raise BadInput("The operation takes no request body.")
        return {}

    def _value(self, ref: Ref, node: "Element") -> Any:
        shape = self._model.shape(ref.shape)
        if shape.type == "structure":
            return self._structure(ref.shape, node)
        if shape.type == "list" and shape.member is not None:
            return [self._value(shape.member, child) for child in node.children]
        return self._scalar(ref, node.text)

    def _structure(self, shape_name: str, node: "Element") -> dict[str, Any]:
        result: dict[str, Any] = {}
        names = {r.locationName or m: (m, r) for m, r in self._model.shape(shape_name).members.items()}
        for child in node.children:
            if child.name not in names:
                raise BadInput(f"Unknown element <{child.name[:100]}>.")
            member, ref = names[child.name]
            shape = self._model.shape(ref.shape)
            if shape.type == "list" and shape.member is not None and (shape.flattened or ref.flattened):
                result.setdefault(member, []).append(self._value(shape.member, child))
            elif member in result:
                raise BadInput(f"Element <{child.name[:100]}> is given more than once.")
            else:
                result[member] = self._value(ref, child)
        return result

    def write(self, operation: OperationModel, value: Mapping[str, Any]) -> tuple[int, Headers, bytes]:
        """Status, headers and body of an answer. A part of an object (`ContentRange`) has the status 206."""
        status = operation.http.responseCode
        if operation.output is None:
            return status, [], b""
        name = operation.output.shape
        shape = self._model.shape(name)
        headers: Headers = []
        body, has_members = b"", False
        for member, ref in shape.members.items():
            given = value.get(member)
            if member == shape.payload:
                body = given or b""
            elif ref.location in ("header", "headers"):
                headers += self._answer_headers(ref, member, given)
            else:
                has_members = True
        if "ContentRange" in value:
            status = 206
        if shape.payload or not has_members:
            return status, headers, body
        return status, [*headers, (b"content-type", b"application/xml")], self._document(name, value)

    def _answer_headers(self, ref: Ref, member: str, given: Any) -> Headers:
        wire = (ref.locationName or member).lower()
        if given is None:
            return []
        if ref.location == "headers":
            return [(f"{wire}{k}".lower().encode(), str(v).encode("utf-8")) for k, v in given.items()]
        return [(wire.encode(), self._header(ref, given).encode("latin-1", "replace"))]

    def _document(self, shape_name: str, value: Mapping[str, Any]) -> bytes:
        root = _ROOTS.get(shape_name, shape_name.removesuffix("Output") + "Result")
        unwrapped = shape_name in _UNWRAPPED
        inner = "".join(map(_text_of, value.values())) if unwrapped else self._xml.members(shape_name, value)
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{_NAMESPACE}">{inner}</{root}>'.encode()
        )


def _text_of(value: Any) -> str:
    return escape(str(value))


class Element:
    """An element of a request's XML: its name without namespace, its text, and the elements in it."""

    __slots__ = ("children", "name", "text")

    def __init__(self, name: str) -> None:
        self.name = name
        self.text = ""
        self.children: list[Element] = []


class _XmlRefused(Exception):
    pass


def parse_xml(body: bytes) -> Element:
    """The outermost element. Raises `BadInput` for what is no XML, or has a document type (and so entities)."""
    top = Element("")
    above = [top]
    count = 0

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal count
        count += 1
        if count > MAX_XML_ELEMENTS or len(above) > MAX_XML_DEPTH:
            raise _XmlRefused("it has too many elements")
        element = Element(re.sub(r".*[: ]", "", name))
        above[-1].children.append(element)
        above.append(element)

    def end(name: str) -> None:
        above.pop()

    def text(data: str) -> None:
        above[-1].text += data

    def doctype(*about: Any) -> None:
        raise _XmlRefused("document types are not accepted")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, doctype
    try:
        if len(body) > MAX_XML_BYTES:
            raise _XmlRefused(f"it has more than {MAX_XML_BYTES} bytes")
        parser.Parse(body, True)
    except (expat.ExpatError, _XmlRefused) as error:
        raise BadInput(f"The request body is not acceptable XML: {error}", serialization=True) from None
    return top.children[0]
