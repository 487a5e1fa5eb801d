"""From published endpoints to an HAProxy configuration. Pure: the same endpoints give the same text."""

from collections.abc import Sequence

import msgspec

MAX_CONNECTIONS = 10_000


class PublishedEndpoint(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A host port that leads to a task."""

    host_port: int
    task_id: str
    container_port: int
    address: str


def configuration(
    endpoints: Sequence[PublishedEndpoint],
    *,
    bind_address: str,
    stats_socket: str,
    max_connections: int = MAX_CONNECTIONS,
) -> str:
    """A whole configuration: one TCP listener for each endpoint, so that any protocol passes through untouched."""
    lines = [
        "global",
        f"    maxconn {max_connections}",
        f"    stats socket {stats_socket} mode 600 level admin expose-fd listeners",
        "    hard-stop-after 30s",
        "    log stderr format raw daemon warning",
        "defaults",
        "    mode tcp",
        "    log global",
        "    option dontlognull",
        "    option splice-auto",
        "    timeout connect 5s",
        "    timeout client 1h",
        "    timeout server 1h",
        "    timeout client-fin 30s",
        "    timeout tunnel 24h",
        "    retries 3",
        "    option redispatch",
    ]
    for endpoint in sorted(endpoints):
        lines += [
            f"listen p{endpoint.host_port}",
            f"    bind {bind_address}:{endpoint.host_port}",
            f"    server {endpoint.task_id[:12]} {endpoint.address}:{endpoint.container_port}",
        ]
    return "\n".join(lines) + "\n"
