"""From published endpoints to an HAProxy configuration. Pure: the same endpoints give the same text."""

from collections.abc import Sequence

import msgspec

MAX_CONNECTIONS = 10_000
MAX_API_CONNECTIONS = 1000
MAX_API_CONNECTIONS_OF_ONE = 64
"""Of one task: so that one that opens and holds as many as it can leaves the API to the others."""


class PublishedEndpoint(msgspec.Struct, frozen=True, kw_only=True, order=True):
    """A host port that leads to a task."""

    host_port: int
    task_id: str
    container_port: int
    address: str
    is_asleep: bool = False
    """The task is suspended: connections are closed at once."""


class TaskApi(msgspec.Struct, frozen=True, kw_only=True):
    """The platform's API for its tasks: an address of the bridge `link`, heard from there only, that leads to `server`
    (HOST:PORT)."""

    address: str
    port: int
    link: str
    server: str


def configuration(
    endpoints: Sequence[PublishedEndpoint],
    *,
    bind_address: str,
    stats_socket: str,
    max_connections: int = MAX_CONNECTIONS,
    user: str = "",
    task_api: TaskApi | None = None,
) -> str:
    """A whole configuration: one TCP listener for each endpoint, so that any protocol passes through untouched.

    `user` (and the group of that name): whom the process becomes once it has bound its ports; empty: stays as it is.

    Connections may idle for a day, as web sockets do; a peer that is gone without a word (a task that was destroyed) is
    found by keep-alives within a minute. After a reload the old process lives as long as its last connection.
    """
    host = f"[{bind_address}]" if ":" in bind_address else bind_address
    api = _api_section(task_api) if task_api else []
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
        *api,
    ]
    for endpoint in sorted(endpoints):
        lines += [
            f"listen p{endpoint.host_port}",
            f"    bind {host}:{endpoint.host_port}",
            f"    server {endpoint.task_id[:12]} {endpoint.address}:{endpoint.container_port}"
            + (" disabled" if endpoint.is_asleep else ""),
        ]
    return "\n".join(lines) + "\n"


def _api_section(api: TaskApi) -> list[str]:
    """Bytes pass through untouched here, too: who asks is told by the signature alone."""
    return [
        "listen api",
        f"    bind {api.address}:{api.port} interface {api.link}",
        f"    maxconn {MAX_API_CONNECTIONS}",
        "    timeout client 10m",
        "    timeout server 10m",
        "    stick-table type ip size 64k expire 10m store conn_cur",
        "    tcp-request connection track-sc0 src",
        f"    tcp-request connection reject if {{ sc0_conn_cur gt {MAX_API_CONNECTIONS_OF_ONE} }}",
        f"    server control {api.server}",
    ]
