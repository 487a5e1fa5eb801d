"""A client that costs little, so that it is the server that is measured: requests signed and sent as bytes, of answers no more
looked at than their status and length."""

import hashlib
import json
import re
import socket
import time
from typing import Any
from urllib.parse import urlsplit

from hutch.base import sigv4
from hutch.base.clock import SystemClock
from hutch.client.client import SERVICES

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CLOSES = re.compile(rb"^HTTP/1\.0|\r\nconnection: *close", re.IGNORECASE)


class LoadClient:
    """Sends one AWS JSON request again and again, signed anew each second, over a connection that is kept if the server keeps
    it."""

    def __init__(self, endpoint: str, key: str, secret: str, operation: str, given: dict[str, Any]) -> None:
        target, version = SERVICES["ecs"]
        parts = urlsplit(endpoint)
        assert parts.hostname and parts.port
        self._address = (parts.hostname, parts.port)
        self._key, self._secret = key, secret
        self._body = json.dumps(given).encode()
        self._digest = hashlib.sha256(self._body).hexdigest()
        self._headers = {
            "host": parts.netloc,
            "content-type": f"application/x-amz-json-{version}",
            "x-amz-target": f"{target}.{operation}",
            "x-amz-content-sha256": self._digest,
        }
        self._clock = SystemClock()
        self._socket: socket.socket | None = None
        self._request, self._signed_at = b"", 0

    def call(self) -> None:
        """One request; fails unless it is answered with 200."""
        second = int(time.time())
        if second != self._signed_at:
            self._signed_at, self._request = second, self._signed()
        if self._socket is None:
            self._socket = socket.create_connection(self._address)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(self._request)
        if not self._answered(self._socket):
            self.close()

    def _signed(self) -> bytes:
        """The request as it is sent for the rest of this second: the time in a signature is in seconds."""
        signature = sigv4.sign(
            access_key_id=self._key,
            secret_key=self._secret,
            region="us-east-1",
            service="ecs",
            method="POST",
            raw_path=b"/",
            query="",
            headers=self._headers,
            payload_sha256=self._digest,
            now=self._clock.now(),
        )
        headers = {**self._headers, **signature, "content-length": str(len(self._body))}
        head = "POST / HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in headers.items()) + "\r\n"
        return head.encode() + self._body

    def close(self) -> None:
        """Close the connection; the next call opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    @staticmethod
    def _answered(connection: socket.socket) -> bool:
        """Read an answer; whether the connection can be used again."""
        data = b""
        while (end := data.find(b"\r\n\r\n")) < 0:
            part = connection.recv(65536)
            assert part, "the server hung up"
            data += part
        head = data[:end]
        assert head.split(b" ", 2)[1] == b"200", data[:2000]
        length = _LENGTH.search(head)
        assert length is not None, head
        missing = int(length[1]) - (len(data) - end - 4)
        while missing > 0:
            part = connection.recv(65536)
            assert part, "the server hung up"
            missing -= len(part)
        return _CLOSES.search(head) is None
