"""Images that are made ready before a task asks for them, one after another, so that no launch waits for them."""

import asyncio
import platform
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.base.log import get_logger
from hutch.host.drivers.contract import Driver, HostFault
from hutch.host.images.contract import ImageStore
from hutch.wire.facts import DriverFactMsg
from hutch.wire.image_requests import ImageWanted, PrefetchedImage, PrefetchWanted

log = get_logger(__name__)


class ImagePrefetch:
    """One per host agent."""

    def __init__(
        self,
        images: ImageStore,
        drivers: tuple[Driver, ...],
        facts: Callable[[], Mapping[str, DriverFactMsg]],
        clock: Clock,
    ) -> None:
        """`facts`: what the drivers last said of themselves, by name."""
        self._images = images
        self._drivers = drivers
        self._facts = facts
        self._clock = clock
        self._one = asyncio.Lock()

    async def run(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Make images ready in the formats of the drivers that would run them; what came of each. Nothing is done for
        launch types and architectures that this host does not run. Raises `Invalid`."""
        try:
            wanted = msgspec.convert(arguments, PrefetchWanted)
        except msgspec.ValidationError as error:
            raise Invalid(f"image.prefetch: {error}") from None
        formats = self._formats(wanted.launch_types)
        if wanted.architecture != platform.machine() or not formats:
            return {"images": []}
        done = []
        async with self._one:
            for image in wanted.images:
                done.append(await self._prepare(image, wanted, formats))
        return {"images": msgspec.to_builtins(done)}

    def _formats(self, launch_types: tuple[str, ...]) -> tuple[str, ...]:
        """The root formats of the drivers that get tasks of these launch types, each once."""
        facts = self._facts()
        found: dict[str, None] = {}
        for launch_type in launch_types:
            for driver in self._drivers:
                if launch_type in driver.capabilities.launch_types and facts[driver.name].healthy:
                    found[driver.capabilities.root_format] = None
                    break
        return tuple(found)

    async def _prepare(
        self, image: ImageWanted, wanted: PrefetchWanted, formats: tuple[str, ...]
    ) -> PrefetchedImage:
        begun = self._clock.monotonic()
        digest = ""
        try:
            for root_format in formats:
                root = await self._images.prepare(
                    image.reference,
                    architecture=wanted.architecture,
                    root_format=root_format,
                    credentials=image.credentials,
                    max_bytes=wanted.max_bytes,
                )
                digest = root.digest
        except HostFault as fault:
            log.warning("image not prefetched", image=image.reference, kind=fault.kind, reason=fault.message)
            return PrefetchedImage(
                reference=image.reference, error_kind=fault.kind, error=fault.message, fix=fault.fix
            )
        took_s = round(self._clock.monotonic() - begun, 3)
        log.info("image prefetched", image=image.reference, digest=digest, took_s=took_s)
        return PrefetchedImage(reference=image.reference, digest=digest, took_s=took_s)
