"""hutch's own routes about hosts: who is there, who is away since when, and giving one up."""

from collections.abc import Callable
from typing import Any

from hutch.api.gateway.native import NativeRequest, NativeRoute
from hutch.control.ops.host_loss import HostLossOps
from hutch.control.ops.hosts import HostOps
from hutch.model.host import Host
from hutch.model.record import Cause


class HostApi:
    """The handlers. `gives_up_at`: when the tasks of a host that is away are given up (epoch seconds), if they will be."""

    def __init__(self, hosts: HostOps, loss: HostLossOps, gives_up_at: Callable[[str], float | None]) -> None:
        self._hosts = hosts
        self._loss = loss
        self._gives_up_at = gives_up_at

    def routes(self) -> tuple[NativeRoute, ...]:
        return (
            NativeRoute(method="GET", template="/hutch/v1/hosts", handler=self.list_hosts),
            NativeRoute(method="POST", template="/hutch/v1/hosts/{host}/lost", handler=self.give_up_host),
        )

    async def list_hosts(self, request: NativeRequest) -> dict[str, Any]:
        """Every host that was ever here."""
        return {
            "hosts": [
                {
                    **self._shape(host),
                    "agent_version": host.agent_version,
                    "cpu_units": host.cpu_units,
                    "memory_mib": host.memory_mib,
                    "reserved_cpu_units": promised.cpu_units,
                    "reserved_memory_mib": promised.memory_mib,
                    "tasks": promised.task_count,
                    "drivers": [d.name for d in host.drivers if d.healthy],
                }
                for host, promised in self._hosts.all()
            ]
        }

    async def give_up_host(self, request: NativeRequest) -> dict[str, Any]:
        """Stop waiting for a host that is not connected: its tasks become STOPPED."""
        actor = request.principal.arn
        cause = Cause(id=request.request_id, actor=actor, action="host lost")
        count = await self._loss.give_up(cause, request.params["host"], f"was given up by {actor}")
        return {"tasks_given_up": count}

    def of_task(self, host_id: str) -> dict[str, Any] | None:
        """What is to be told of the host of a task; None: it has none, or one that nobody knows any more."""
        host = self._hosts.get(host_id) if host_id else None
        return None if host is None else self._shape(host)

    def _shape(self, host: Host) -> dict[str, Any]:
        return {
            "host_id": host.host_id,
            "name": host.name,
            "connected": host.connected,
            "last_seen_at": None if host.connected else host.last_seen_at or None,
            "gives_up_at": None if host.connected else self._gives_up_at(host.host_id),
        }
