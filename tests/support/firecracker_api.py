"""Firecracker's own description of its API, as a judge of requests: unknown properties, missing ones, wrong types, wrong
methods and wrong moments are refused."""

import copy
import re
from pathlib import Path
from typing import Any

import jsonschema
import yaml
from tests.conftest import REPO

DOCUMENT: Path = REPO / "tests" / "data" / "firecracker-openapi.yaml"


class Refused(Exception):
    """Not what the document allows."""


class ApiDocument:
    """The document, read once."""

    def __init__(self) -> None:
        self.document: dict[str, Any] = yaml.load(DOCUMENT.read_text(), Loader=yaml.CSafeLoader)
        self._definitions = {name: _closed(d) for name, d in self.document["definitions"].items()}

    def operation(self, method: str, path: str) -> tuple[dict[str, Any], dict[str, str]]:
        """The operation of a request, and what its path names. Raises `Refused`."""
        for template, methods in self.document["paths"].items():
            found = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^/]+)", re.escape(template)), path)
            if found and method.lower() in methods:
                return methods[method.lower()], found.groupdict()
        raise Refused(f"no operation {method} {path}")

    def check(self, method: str, path: str, body: Any, *, booted: bool) -> str:
        """The operation's id, if the request is allowed at this moment. Raises `Refused`."""
        operation, named = self.operation(method, path)
        summary = operation["summary"]
        if (booted and "Pre-boot only" in summary) or (not booted and "Post-boot only" in summary):
            raise Refused(
                f"{method} {path} is not supported {'after' if booted else 'before'} starting the microVM"
            )
        for parameter in operation.get("parameters", []):
            if parameter["in"] == "body":
                self._check_body(parameter, body)
        for name, value in named.items():
            if not re.fullmatch(r"\w+", value) or body.get(name, body.get("id")) != value:
                raise Refused(f"{name} of path and body differ: {value!r}")
        return str(operation["operationId"])

    def _check_body(self, parameter: dict[str, Any], body: Any) -> None:
        schema = {**_closed(parameter["schema"]), "definitions": self._definitions}
        errors = list(jsonschema.Draft4Validator(schema).iter_errors(body))
        if errors:
            raise Refused(f"{'.'.join(map(str, errors[0].path))}: {errors[0].message}"[:500])


def _closed(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with all objects closed: what is not in it is refused, as Firecracker does."""
    made = copy.deepcopy(schema)

    def close(node: Any) -> None:
        if isinstance(node, dict):
            if node.get("type") == "object" and "properties" in node:
                node.setdefault("additionalProperties", False)
            for value in node.values():
                close(value)
        elif isinstance(node, list):
            for value in node:
                close(value)

    close(made)
    return made
