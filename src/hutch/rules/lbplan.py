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
    user: str = "",
) -> str:
    """A whole configuration: one TCP listener for each endpoint, so that any protocol passes through untouched.

    `user` (and the group of that name): whom the process becomes once it has bound its ports; empty: stays as it is.

    Connections may idle for a day, as web sockets do; a peer that is gone without a word (a task that was destroyed) is
    found by keep-alives within a minute. After a reload the old process lives as long as its last connection.
    """
    host = f"[{bind_address}]" if ":" in bind_address else bind_address
    lines = [
        "global",
        f"    maxconn {max_connections}",
        f"    stats socket {stats_socket} mode 600 level admin expose-fd listeners",
        "    hard-stop-after 24h",
        "    log stderr format raw daemon warning",
        *([f"    user {user}", f"    group {user}"] if user else []),
        "defaults",
        "    mode tcp",
        "    log global",
        "    option dontlognull",
        "    option splice-auto",
        "    option clitcpka",
        "    option srvtcpka",
        *(
            f"    {side}tcpka-{what}"
            for side in ("cli", "srv")
            for what in ("idle 30s", "intvl 10s", "cnt 3")
        ),
        "    timeout connect 5s",
        "    timeout client 24h",
        "    timeout server 24h",
        "    timeout tunnel 24h",
        "    timeout client-fin 1h",
        "    timeout server-fin 1h",
        "    retries 3",
    ]
    for endpoint in sorted(endpoints):
        lines += [
            f"listen p{endpoint.host_port}",
            f"    bind {host}:{endpoint.host_port}",
            f"    server {endpoint.task_id[:12]} {endpoint.address}:{endpoint.container_port}",
        ]
    return "\n".join(lines) + "\n"
