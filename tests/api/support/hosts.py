"""A host that answers pre-flight checks: every image is there, but for those whose name says otherwise."""

from typing import Any

import msgspec

from hutch.host.agent.preflight import HostPreflight
from hutch.host.drivers.fake_host import FakeImages, FakeIngress


class StandInHost:
    """Implements `hutch.control.ops.images.HostRequests` with the host's own code, on images that are made up."""

    def __init__(self, host_id: str) -> None:
        self.asked: list[dict[str, Any]] = []
        self.is_connected = True
        self._host_id = host_id
        self._preflight = HostPreflight(FakeImages(), FakeIngress())

    @property
    def connected_host_ids(self) -> tuple[str, ...]:
        return (self._host_id,) if self.is_connected else ()

    async def request(self, host_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Only what a check asks for."""
        assert (host_id, verb) == (self._host_id, "task.preflight")
        self.asked.append(arguments)
        # As over the wire.
        return await self._preflight.run(msgspec.msgpack.decode(msgspec.msgpack.encode(arguments)))
