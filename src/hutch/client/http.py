"""A signed HTTP connection that is kept open between calls."""

import contextlib
import hashlib
import http.client
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from hutch.base import sigv4
from hutch.base.clock import Clock
from hutch.client.errors import ClientError, Unreachable

_IDLE_S = 3.0
"""Shorter than the server's own patience (uvicorn: 5 s): a connection that it is closing is rarely used."""
_BLOCK_BYTES = 1024 * 1024


class SignedConnection:
    """Sends requests signed with one access key to one endpoint; one request at a time."""

    def __init__(
        self, endpoint: str, access_key_id: str, secret_key: str, region: str, clock: Clock, timeout_s: float
    ) -> None:
        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ClientError(f"{endpoint!r} is not an endpoint; it looks like http://127.0.0.1:4566")
        self.endpoint = f"{parts.scheme}://{parts.netloc}"
        self._host, self._port, self._tls = parts.hostname, parts.port, parts.scheme == "https"
        self._host_header = parts.netloc.rpartition("@")[2]
        self._access_key_id = access_key_id
        self._secret_key = secret_key
        self._region = region
        self._clock = clock
        self._timeout_s = timeout_s
        self._connection: http.client.HTTPConnection | None = None
        self._last_used = 0.0

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def request(
        self,
        method: str,
        path: str,
        query: str,
        headers: Mapping[str, str],
        body: bytes | Path,
        *,
        service: str,
        repeatable: bool,
    ) -> http.client.HTTPResponse:
        """Send a request, give its response unread.

        `path` and `query` are URL-encoded, header names lower case.
        `repeatable`: may be sent again if a kept connection turns out to be dead. Raises `Unreachable`.
        """
        digest = _file_sha256(body) if isinstance(body, Path) else hashlib.sha256(body).hexdigest()
        length = body.stat().st_size if isinstance(body, Path) else len(body)
        to_sign = {**headers, "host": self._host_header, "x-amz-content-sha256": digest}
        signature = sigv4.sign(
            access_key_id=self._access_key_id,
            secret_key=self._secret_key,
            region=self._region,
            service=service,
            method=method,
            raw_path=path.encode(),
            query=query,
            headers=to_sign,
            payload_sha256=digest,
            now=self._clock.now(),
        )
        complete = {**to_sign, **signature, "content-length": str(length)}
        target = f"{path}?{query}" if query else path
        reused = self._open()
        try:
            return self._send(method, target, complete, body)
        except (ConnectionError, http.client.RemoteDisconnected) as error:
            self.close()
            if not (reused and repeatable):
                raise self._unreachable(error) from None
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from None
        try:
            self._open()
            return self._send(method, target, complete, body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._unreachable(error) from None

    def _open(self) -> bool:
        """Have a connection; True if it was used before."""
        now = self._clock.monotonic()
        if self._connection is not None and now - self._last_used > _IDLE_S:
            self.close()
        self._last_used = now
        if self._connection is not None:
            return True
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        self._connection = kind(self._host, self._port, timeout=self._timeout_s)
        return False

    def _send(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | Path
    ) -> http.client.HTTPResponse:
        assert self._connection is not None
        if isinstance(body, Path):
            with body.open("rb") as file, contextlib.suppress(BrokenPipeError, ConnectionResetError):
                # A server that refuses closes before it has read it all; its answer says why.
                self._connection.request(method, target, body=file, headers=dict(headers))
        else:
            self._connection.request(method, target, body=body or None, headers=dict(headers))
        return self._connection.getresponse()

    def _unreachable(self, error: BaseException) -> Unreachable:
        if isinstance(error, ConnectionRefusedError):
            return Unreachable(f"hutch is not running at {self.endpoint}: start it with `hutch up`")
        if isinstance(error, TimeoutError):
            return Unreachable(f"hutch at {self.endpoint} did not answer within {self._timeout_s:g} s")
        return Unreachable(f"can't reach hutch at {self.endpoint}: {error or type(error).__name__}")


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return _sha256(file)
    except OSError as error:
        raise ClientError(f"can't read {path}: {error.strerror}") from None


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := file.read(_BLOCK_BYTES):
        digest.update(block)
    return digest.hexdigest()
