"""What a task would find on this host, looked at before it is started: nothing is pulled, bound or kept."""

import asyncio
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.host.agent.context import Ingress
from hutch.host.drivers.contract import HostFault
from hutch.host.images.contract import ImageStore
from hutch.wire.image_requests import ImageWanted, PreflightSeen, PreflightWanted, SeenImage

MAX_IMAGES = 10
MAX_PORTS = 1000
MAX_AT_ONCE = 4
"""Registries that are asked at the same time, by all checks together."""


class HostPreflight:
    """One per host agent."""

    def __init__(self, images: ImageStore, ingress: Ingress) -> None:
        self._images = images
        self._ingress = ingress
        self._asking = asyncio.Semaphore(MAX_AT_ONCE)

    async def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Answer `task.preflight`. Raises `Invalid`."""
        try:
            wanted = msgspec.convert(arguments, PreflightWanted)
        except msgspec.ValidationError as error:
            raise Invalid(f"task.preflight: {error}") from None
        if len(wanted.images) > MAX_IMAGES or len(wanted.host_ports) > MAX_PORTS:
            raise Invalid(f"task.preflight looks at {MAX_IMAGES} images and {MAX_PORTS} ports at most")
        images = await asyncio.gather(*(self._look(i, wanted.architecture) for i in wanted.images))
        busy = await self._ingress.listeners(wanted.host_ports) if wanted.host_ports else {}
        seen = PreflightSeen(
            images=tuple(images),
            free_bytes=self._images.free_bytes(),
            busy_ports={str(port): program for port, program in busy.items()},
        )
        built: dict[str, Any] = msgspec.to_builtins(seen)
        return built

    async def _look(self, image: ImageWanted, architecture: str) -> SeenImage:
        try:
            async with self._asking:
                found = await self._images.look(
                    image.reference, architecture=architecture, credentials=image.credentials
                )
        except HostFault as fault:
            return SeenImage(
                reference=image.reference, error_kind=fault.kind, error=fault.message, fix=fault.fix
            )
        return SeenImage(
            reference=image.reference,
            digest=found.digest,
            size_bytes=found.size_bytes,
            unpacked_bytes=found.unpacked_bytes,
            is_here=found.is_here,
            is_stale=found.is_stale,
        )
