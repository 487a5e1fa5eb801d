"""The query and ec2 protocols: form bodies to structures, structures to XML. Derived from the service model."""

from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from hutch.api.gateway.service_model import ServiceModel
from hutch.api.gateway.validate import BadInput

MAX_FIELDS = 5000


def parse_fields(body: bytes) -> dict[str, str]:
    """The fields of a form body. Raises `BadInput`."""
    try:
        pairs = parse_qsl(body.decode("utf-8"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except (UnicodeDecodeError, ValueError):
        raise BadInput("The request body is not a URL-encoded form in UTF-8.", serialization=True) from None
    return dict(pairs)


class FormReader:
    """Form fields to a structure. Scalars stay text; validation parses them."""

    def __init__(self, model: ServiceModel) -> None:
        self._model = model
        self._ec2 = model.metadata.protocol == "ec2"

    def read(self, shape_name: str, fields: dict[str, str]) -> dict[str, Any]:
        """The input structure. Fields that belong to no member raise `BadInput`."""
        tree: dict[str, Any] = {}
        for name, value in fields.items():
            if name in ("Action", "Version"):
                continue
            node = tree
            parts = name.split(".")
            if len(parts) > 32:
                raise BadInput(f"Unknown parameter: {name[:100]!r}.")
            for part in parts[:-1]:
                node = node.setdefault(part, {})
                if not isinstance(node, dict):
                    raise BadInput(f"Parameter {name[:100]!r} contradicts another one.")
            node[parts[-1]] = value
        value = self._structure(shape_name, tree, "")
        assert isinstance(value, dict)
        return value

    def _value(self, shape_name: str, node: Any, path: str) -> Any:
        shape = self._model.shape(shape_name)
        if shape.type == "structure":
            return self._structure(shape_name, node, path)
        if shape.type == "list":
            return self._list(shape_name, node, path)
        if shape.type == "map":
            return self._map(shape_name, node, path)
        if not isinstance(node, str):
            raise BadInput(f"{path} must be a single value.", serialization=True)
        return node

    def _structure(self, shape_name: str, node: Any, path: str) -> Any:
        shape = self._model.shape(shape_name)
        if not isinstance(node, dict):
            raise BadInput(f"{path} must be a structure.", serialization=True)
        names: dict[str, tuple[str, str]] = {}
        for member, ref in shape.members.items():
            wire = ref.locationName or member
            if self._ec2:
                wire = ref.queryName or (wire[0].upper() + wire[1:])
            names[wire] = (member, ref.shape)
        result = {}
        for wire, child in node.items():
            if wire not in names:
                raise BadInput(f"Unknown parameter: {(f'{path}.{wire}' if path else wire)[:100]!r}.")
            member, member_shape = names[wire]
            result[member] = self._value(member_shape, child, f"{path}.{wire}" if path else wire)
        return result

    def _list(self, shape_name: str, node: Any, path: str) -> list[Any]:
        shape = self._model.shape(shape_name)
        assert shape.member is not None
        if node == "":
            return []
        if not isinstance(node, dict):
            raise BadInput(f"{path} must be a list.", serialization=True)
        if not self._ec2 and not shape.flattened:
            node = node.get(shape.member.locationName or "member", node)
        items = self._numbered(node, path)
        return [self._value(shape.member.shape, v, f"{path}.{k}") for k, v in items]

    def _map(self, shape_name: str, node: Any, path: str) -> dict[str, Any]:
        shape = self._model.shape(shape_name)
        assert shape.key is not None and shape.value is not None
        if not isinstance(node, dict):
            raise BadInput(f"{path} must be a map.", serialization=True)
        entries = self._numbered(node if shape.flattened else node.get("entry", {}), path)
        result = {}
        for number, entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
                raise BadInput(f"{path}.{number} must have a key.")
            result[entry["key"]] = self._value(shape.value.shape, entry.get("value", ""), f"{path}.{number}")
        return result

    @staticmethod
    def _numbered(node: dict[str, Any], path: str) -> list[tuple[int, Any]]:
        if not isinstance(node, dict) or not all(k.isdecimal() and len(k) < 8 for k in node):
            raise BadInput(f"{path} must be numbered from 1.")
        return sorted((int(k), v) for k, v in node.items())


class XmlWriter:
    """A structure to the XML of its shape."""

    def __init__(self, model: ServiceModel) -> None:
        self._model = model

    def write(self, operation: str, shape_name: str | None, value: dict[str, Any], request_id: str) -> bytes:
        """The whole answer of an operation."""
        namespace = self._model.metadata.xmlNamespace
        body = self._members(shape_name, value) if shape_name else ""
        if self._model.metadata.protocol == "ec2":
            inner = f"<requestId>{escape(request_id)}</requestId>{body}"
        else:
            inner = (
                f"<{operation}Result>{body}</{operation}Result>"
                f"<ResponseMetadata><RequestId>{escape(request_id)}</RequestId></ResponseMetadata>"
            )
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><{operation}Response xmlns="{namespace}">'
            f"{inner}</{operation}Response>"
        ).encode()

    def _members(self, shape_name: str, value: dict[str, Any]) -> str:
        shape = self._model.shape(shape_name)
        parts = []
        for member, ref in shape.members.items():
            given = value.get(member)
            if given is not None:
                parts.append(self._element(ref.locationName or member, ref.shape, given))
        return "".join(parts)

    def _element(self, name: str, shape_name: str, value: Any) -> str:
        shape = self._model.shape(shape_name)
        if shape.type == "structure":
            return f"<{name}>{self._members(shape_name, value)}</{name}>"
        if shape.type == "list":
            assert shape.member is not None
            item = shape.member.locationName or "member"
            if shape.flattened:
                return "".join(self._element(name, shape.member.shape, v) for v in value)
            inner = "".join(self._element(item, shape.member.shape, v) for v in value)
            return f"<{name}>{inner}</{name}>"
        if shape.type == "map":
            assert shape.key is not None and shape.value is not None
            inner = "".join(
                f"<entry>{self._element('key', shape.key.shape, k)}"
                f"{self._element('value', shape.value.shape, v)}</entry>"
                for k, v in value.items()
            )
            return f"<{name}>{inner}</{name}>"
        return f"<{name}>{escape(_text(shape.type, value))}</{name}>"


def _text(kind: str, value: Any) -> str:
    if kind == "boolean":
        return "true" if value else "false"
    if kind == "timestamp":
        return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
    return str(value)


def error_xml(
    protocol: str, namespace: str, code: str, message: str, request_id: str, *, sender: bool
) -> bytes:
    """An error answer in the query or ec2 protocol."""
    code, message, request_id = escape(code), escape(message), escape(request_id)
    if protocol == "ec2":
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><Response><Errors><Error><Code>{code}</Code>'
            f"<Message>{message}</Message></Error></Errors><RequestID>{request_id}</RequestID></Response>"
        ).encode()
    kind = "Sender" if sender else "Receiver"
    return (
        f'<ErrorResponse xmlns="{namespace}"><Error><Type>{kind}</Type><Code>{code}</Code>'
        f"<Message>{message}</Message></Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    ).encode()
