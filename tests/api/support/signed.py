"""Signed requests with any headers and any body at all."""

import hashlib

from tests.api.support.server import ApiServer

from hutch.base import sigv4
from hutch.base.clock import SystemClock


def signed_headers(
    server: ApiServer, service: str, method: str, path: str, query: str, headers: dict[str, str], body: bytes
) -> dict[str, str]:
    """The headers of a request, with the root key's signature."""
    lower = {k.lower(): v for k, v in headers.items()} | {"host": f"127.0.0.1:{server.port}"}
    return lower | sigv4.sign(
        access_key_id=server.key.access_key_id,
        secret_key=server.key.secret_key,
        region=server.region,
        service=service,
        method=method,
        raw_path=path.encode(),
        query=query,
        headers=lower,
        payload_sha256=hashlib.sha256(body).hexdigest(),
        now=SystemClock().now(),
    )
