"""The file systems of this host, whichever driver serves them: their sizes, and their end."""

from collections.abc import Sequence

from hutch.host.drivers.contract import Driver, SupportsFileSystems


class HostFileSystems:
    """What the drivers keep of file systems."""

    def __init__(self, drivers: Sequence[Driver]) -> None:
        self._drivers = [d for d in drivers if isinstance(d, SupportsFileSystems)]

    async def remove(self, file_system_id: str) -> None:
        """Remove one with all that is in it; no error if this host has none. Raises `OSError`."""
        for driver in self._drivers:
            await driver.remove_file_system(file_system_id)

    async def sizes(self, file_system_ids: Sequence[str]) -> dict[str, int]:
        """Bytes that each takes on the disk; what is not here has none."""
        found: dict[str, int] = {}
        for driver in self._drivers:
            for file_system_id in file_system_ids:
                found[file_system_id] = await driver.file_system_bytes(file_system_id)
        return found
