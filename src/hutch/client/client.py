"""A small client for the public API: AWS's JSON services and hutch's own routes. Quick to import, no SDK."""

from collections.abc import Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec

from hutch.base.clock import Clock, SystemClock
from hutch.client.errors import AwsError, Unreachable
from hutch.client.eventstream import read_events
from hutch.client.http import SignedConnection

SERVICES = {
    "ecs": ("AmazonEC2ContainerServiceV20141113", "1.1"),
    "logs": ("Logs_20140328", "1.1"),
}
"""X-Amz-Target prefix and JSON version of the services spoken here. A test keeps this equal to the models."""

NATIVE_SIGNING_NAME = "hutch"
_READS = ("Describe", "Get", "List", "Filter")
_MAX_BODY_BYTES = 64 * 1024 * 1024


class HutchClient:
    """Calls one endpoint with one access key. Not for use by several threads at once.

    Use it as a context manager, or `close` it.
    """

    def __init__(
        self,
        endpoint: str,
        access_key_id: str,
        secret_key: str,
        region: str,
        *,
        timeout_s: float = 60.0,
        clock: Clock | None = None,
    ) -> None:
        self._connection = SignedConnection(
            endpoint, access_key_id, secret_key, region, clock or SystemClock(), timeout_s
        )

    def __enter__(self) -> "HutchClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def call(self, service: str, operation: str, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The answer of an AWS operation, members by their model names; timestamps are epoch seconds.

        Raises `AwsError` if it is refused, `Unreachable` if no answer comes.
        """
        response = self._aws(service, operation, params)
        return _object(self._read(response))

    def stream(
        self, service: str, operation: str, params: Mapping[str, Any] | None = None
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """The events of an operation that streams, as (name, event) pairs, until it ends.

        Close the iterator to leave early. Raises what `call` raises; `AwsError` also where the stream ends.
        """
        response = self._aws(service, operation, params)
        if response.status != 200:
            self._read(response)
        try:
            yield from read_events(response, response.headers.get("x-amzn-requestid", ""))
        except (OSError, HTTPException) as error:
            raise Unreachable(f"the event stream broke off: {error or type(error).__name__}") from None
        finally:
            response.close()
            self._connection.close()

    def paginate(
        self, service: str, operation: str, params: Mapping[str, Any] | None, items: str
    ) -> Iterator[Any]:
        """The elements of the list member `items`, of all pages of an operation that has `nextToken`."""
        given = dict(params or {})
        while True:
            page = self.call(service, operation, given)
            yield from page.get(items, ())
            token = page.get("nextToken")
            if not token or token == given.get("nextToken"):
                return
            given["nextToken"] = token

    def native(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        file: Path | None = None,
    ) -> dict[str, Any]:
        """The answer of one of hutch's own routes: `path` below /hutch/v1, not encoded, e.g. "/images".

        Sends `body` as JSON, or the content of `file`. Raises what `call` raises.
        """
        data: bytes | Path = b"" if body is None else msgspec.json.encode(body)
        headers = {"content-type": "application/json"}
        if file is not None:
            data, headers = file, {"content-type": "application/octet-stream"}
        encoded = "&".join(
            f"{quote(k, safe='-_.~')}={quote(v, safe='-_.~')}" for k, v in (query or {}).items()
        )
        response = self._connection.request(
            method,
            "/hutch/v1" + quote(path, safe="/-_.~"),
            encoded,
            headers,
            data,
            service=NATIVE_SIGNING_NAME,
            repeatable=method == "GET",
        )
        return _object(self._read(response))

    def _aws(self, service: str, operation: str, params: Mapping[str, Any] | None) -> HTTPResponse:
        prefix, version = SERVICES[service]
        return self._connection.request(
            "POST",
            "/",
            "",
            {"content-type": f"application/x-amz-json-{version}", "x-amz-target": f"{prefix}.{operation}"},
            msgspec.json.encode(params or {}),
            service=service,
            repeatable=operation.startswith(_READS),
        )

    def _read(self, response: HTTPResponse) -> bytes:
        """The body of a good answer. Raises `AwsError` for any other."""
        try:
            data = response.read(_MAX_BODY_BYTES + 1)
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise Unreachable(f"the answer broke off: {error or type(error).__name__}") from None
        if len(data) > _MAX_BODY_BYTES:
            self._connection.close()
            raise Unreachable(f"the answer has more than {_MAX_BODY_BYTES} bytes")
        if response.status == 200:
            return data
        request_id = response.headers.get("x-amzn-requestid", "")
        try:
            shown = _object(data)
        except Unreachable:
            shown = {}
        code = shown.get("code") or shown.get("__type") or response.headers.get("x-amzn-errortype", "")
        message = shown.get("message") or f"HTTP {response.status} {response.reason}"
        raise AwsError(str(code).rpartition("#")[2], str(message), request_id, response.status)


def _object(data: bytes) -> dict[str, Any]:
    if not data:
        return {}
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        value = None
    if not isinstance(value, dict):
        raise Unreachable("what listens there does not answer as hutch does; check the endpoint")
    return value
