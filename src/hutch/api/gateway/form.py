"""The query and ec2 protocols: forms to structures, structures to XML. Derived from the service model."""

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape as _escape

from hutch.api.gateway.service_model import Ref, ServiceModel, Shape
from hutch.api.gateway.validate import BadInput

MAX_FIELDS = 5000
MAX_PARTS = 32
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def parse_fields(form: bytes) -> dict[str, str]:
    """The fields of a form (a body or a query string). Raises `BadInput`."""
    try:
        pairs = parse_qsl(
            form.decode("utf-8"), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS
        )
    except ValueError:
        raise BadInput(
            f"The request is not a URL-encoded form in UTF-8 with at most {MAX_FIELDS} fields.",
            serialization=True,
        ) from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(n for n in fields if names.count(n) > 1)
        raise BadInput(f"Parameter {twice[:100]!r} is given more than once.", serialization=True)
    return fields


class FormReader:
    """Form fields to a structure. Scalars stay text; validation parses them."""

    def __init__(self, model: ServiceModel) -> None:
        self._model = model
        self._ec2 = model.protocol == "ec2"
        self._names: dict[str, dict[str, tuple[str, str]]] = {}

    def read(self, shape_name: str | None, fields: Mapping[str, str]) -> dict[str, Any]:
        """The input structure. Fields that belong to no member raise `BadInput`."""
        tree: dict[str, Any] = {}
        for name, value in fields.items():
            node = tree
            parts = name.split(".")
            if len(parts) > MAX_PARTS:
                raise BadInput(f"Unknown parameter: {name[:100]!r}.")
            for part in parts[:-1]:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise BadInput(f"Parameter {name[:100]!r} contradicts another one.", serialization=True)
            if parts[-1] in node:
                raise BadInput(f"Parameter {name[:100]!r} contradicts another one.", serialization=True)
            node[parts[-1]] = value
        if shape_name is None:
            if tree:
                raise BadInput(f"Unknown parameter: {next(iter(tree))[:100]!r}.")
            return {}
        return self._structure(shape_name, tree, "")

    def _value(self, shape_name: str, node: Any, path: str) -> Any:
        shape = self._model.shape(shape_name)
        if shape.type == "structure":
            return self._structure(shape_name, node, path)
        if shape.type == "list":
            return self._list(shape, node, path)
        if shape.type == "map":
            return self._map(shape, node, path)
        if not isinstance(node, str):
            raise BadInput(f"Parameter {path[:100]!r} must be a single value.", serialization=True)
        if _NOT_IN_XML.search(node):
            # The answers are XML, which has no way to say such a character.
            raise BadInput(f"Parameter {path[:100]!r} contains a control character.")
        return node

    def _structure(self, shape_name: str, node: Any, path: str) -> dict[str, Any]:
        if node == "":
            return {}
        if not isinstance(node, dict):
            raise BadInput(f"Parameter {path[:100]!r} must be a structure.", serialization=True)
        names = self._names.get(shape_name)
        if names is None:
            names = self._names[shape_name] = self._wire_names(shape_name)
        result = {}
        for wire, child in node.items():
            inner = f"{path}.{wire}" if path else wire
            if wire not in names:
                raise BadInput(f"Unknown parameter: {inner[:100]!r}.")
            member, member_shape = names[wire]
            result[member] = self._value(member_shape, child, inner)
        return result

    def _wire_names(self, shape_name: str) -> dict[str, tuple[str, str]]:
        names = {}
        for member, ref in self._model.shape(shape_name).members.items():
            wire = ref.locationName or member
            if self._ec2:
                wire = ref.queryName or (wire[0].upper() + wire[1:])
            else:
                inner = self._model.shape(ref.shape)
                if (ref.flattened or inner.flattened) and inner.member and inner.member.locationName:
                    wire = inner.member.locationName
            names[wire] = (member, ref.shape)
        return names

    def _list(self, shape: Shape, node: Any, path: str) -> list[Any]:
        assert shape.member is not None
        if node == "":
            return []
        if isinstance(node, dict) and not self._ec2 and not shape.flattened:
            wrapper = shape.member.locationName or "member"
            if set(node) != {wrapper}:
                raise BadInput(f"Parameter {path[:100]!r} must be numbered as {path[:100]}.{wrapper}.N.")
            node = node[wrapper]
        inner = shape.member.shape
        return [self._value(inner, v, f"{path}.{k}") for k, v in _numbered(node, path)]

    def _map(self, shape: Shape, node: Any, path: str) -> dict[str, Any]:
        assert shape.key is not None and shape.value is not None
        if node == "":
            return {}
        if not shape.flattened:
            if not isinstance(node, dict) or set(node) != {"entry"}:
                raise BadInput(f"Parameter {path[:100]!r} must be numbered as {path[:100]}.entry.N.")
            node = node["entry"]
        key_name, value_name = shape.key.locationName or "key", shape.value.locationName or "value"
        result = {}
        for number, entry in _numbered(node, path):
            if not isinstance(entry, dict) or set(entry) != {key_name, value_name}:
                raise BadInput(
                    f"Parameter '{path[:100]}.{number}' must have a {key_name} and a {value_name}."
                )
            key = self._value(shape.key.shape, entry[key_name], f"{path}.{number}.{key_name}")
            result[key] = self._value(shape.value.shape, entry[value_name], f"{path}.{number}.{value_name}")
        return result


def _numbered(node: Any, path: str) -> list[tuple[int, Any]]:
    if not isinstance(node, dict) or not all(k.isascii() and k.isdecimal() and len(k) < 8 for k in node):
        raise BadInput(f"Parameter {path[:100]!r} must be a list, numbered from 1.", serialization=True)
    numbered = {int(k): v for k, v in node.items()}
    if len(numbered) != len(node):
        raise BadInput(f"Parameter {path[:100]!r} has a number more than once.", serialization=True)
    return sorted(numbered.items())


class XmlWriter:
    """A structure to the XML of its shape."""

    def __init__(self, model: ServiceModel) -> None:
        self._model = model

    def write(self, operation: str, output: Ref | None, value: Mapping[str, Any], request_id: str) -> bytes:
        """The whole answer of an operation."""
        namespace = escape(self._model.metadata.xmlNamespace)
        body = self.members(output.shape, value) if output else ""
        if self._model.protocol == "ec2":
            inner = f"<requestId>{escape(request_id)}</requestId>{body}"
        else:
            wrapper = (output.resultWrapper if output else None) or f"{operation}Result"
            result = f"<{wrapper}>{body}</{wrapper}>" if output else ""
            inner = (
                f"{result}<ResponseMetadata><RequestId>{escape(request_id)}</RequestId></ResponseMetadata>"
            )
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><{operation}Response xmlns="{namespace}">'
            f"{inner}</{operation}Response>"
        ).encode()

    def members(self, shape_name: str, value: Mapping[str, Any]) -> str:
        """The elements of a structure, without one around them."""
        parts = []
        for member, ref in self._model.shape(shape_name).members.items():
            given = value.get(member)
            if given is not None and ref.location is None:
                parts.append(self._element(ref.locationName or member, ref, given))
        return "".join(parts)

    def _element(self, name: str, ref: Ref, value: Any) -> str:
        shape = self._model.shape(ref.shape)
        if shape.type == "structure":
            return f"<{name}>{self.members(ref.shape, value)}</{name}>"
        flattened = shape.flattened or ref.flattened
        if shape.type == "list":
            assert shape.member is not None
            item = shape.member.locationName or ("item" if self._model.protocol == "ec2" else "member")
            if flattened:
                own = shape.member.locationName or name
                return "".join(self._element(own, shape.member, v) for v in value)
            inner = "".join(self._element(item, shape.member, v) for v in value)
            return f"<{name}>{inner}</{name}>"
        if shape.type == "map":
            entry = name if flattened else "entry"
            inner = "".join(f"<{entry}>{self._entry(shape, k, v)}</{entry}>" for k, v in value.items())
            return inner if flattened else f"<{name}>{inner}</{name}>"
        return f"<{name}>{escape(_text(shape.type, value))}</{name}>"

    def _entry(self, shape: Shape, key: str, value: Any) -> str:
        assert shape.key is not None and shape.value is not None
        key_name, value_name = shape.key.locationName or "key", shape.value.locationName or "value"
        return self._element(key_name, shape.key, key) + self._element(value_name, shape.value, value)


def escape(text: str) -> str:
    """Text for XML; what XML can't say becomes U+FFFD."""
    return _escape(_NOT_IN_XML.sub("�", text), {'"': "&quot;", "\r": "&#13;"})


def _text(kind: str, value: Any) -> str:
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "timestamp":
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    if kind == "blob":
        return base64.b64encode(value).decode()
    return str(value)


def error_xml(
    protocol: str, namespace: str, code: str, message: str, request_id: str, *, sender: bool
) -> bytes:
    """An error answer in a protocol of XML."""
    code, message, request_id = escape(code), escape(message), escape(request_id)
    if protocol == "rest-xml":
        return (
            f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{message}</Message>'
            f"<RequestId>{request_id}</RequestId></Error>"
        ).encode()
    if protocol == "ec2":
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{code}</Code>'
            f"<Message>{message}</Message></Error></Errors><RequestID>{request_id}</RequestID></Response>"
        ).encode()
    kind = "Sender" if sender else "Receiver"
    attribute = f' xmlns="{escape(namespace)}"' if namespace else ""
    return (
        f"<ErrorResponse{attribute}><Error><Type>{kind}</Type><Code>{code}</Code>"
        f"<Message>{message}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    ).encode()
