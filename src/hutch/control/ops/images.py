"""Use cases of local images: the host does the work, the record says what it holds."""

from pathlib import Path
from typing import Any, Protocol

from hutch.base.errors import NotFound
from hutch.control.ops.hosts import put_image
from hutch.model.image import LocalImage
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Store
from hutch.wire.facts import ImageFact


class HostRequests(Protocol):
    """The fleet, as far as these use cases need it."""

    @property
    def connected_host_ids(self) -> tuple[str, ...]: ...

    async def request(self, host_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]: ...


class ImageOps:
    """Import, list and remove local images."""

    def __init__(self, store: Store, fleet: HostRequests) -> None:
        self._store = store
        self._fleet = fleet

    async def import_archive(self, cause: Cause, archive: Path, name: str) -> LocalImage:
        """Take in an uploaded archive (which is removed) under a name ("": the archive's own)."""
        try:
            result = await self._fleet.request("", "image.import", {"path": str(archive), "name": name})
        finally:
            archive.unlink(missing_ok=True)
        host_id = self._fleet.connected_host_ids[0]
        fact = ImageFact(**{k: result[k] for k in ImageFact.__struct_fields__})
        return await self._store.write(cause, lambda tx: put_image(tx, host_id, fact))

    def list(self) -> list[LocalImage]:
        """All local images in order of name."""
        with self._store.read() as reader:
            return reader.scan(tables.LOCAL_IMAGES)

    async def remove(self, cause: Cause, name: str) -> None:
        """Drop a name. Raises `NotFound`."""
        with self._store.read() as reader:
            record = reader.get(tables.LOCAL_IMAGES, name)
        if record is None:
            raise NotFound(f"no local image is named {name}; `hutch image ls` lists them")
        await self._fleet.request(record.host_id, "image.remove", {"name": record.name})
        await self._store.write(cause, lambda tx: tx.delete(tables.LOCAL_IMAGES, record.name))
