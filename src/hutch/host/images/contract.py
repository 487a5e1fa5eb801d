"""What the image store of a host does: from a reference to a root file system that a driver can use."""

from typing import Protocol

import msgspec

from hutch.host.drivers.contract import HostFault, RootImage
from hutch.wire.facts import ImageFact


class ImageFault(HostFault):
    """An image can't be had. Kinds, each final unless `retryable`:

    `ImageNotFound`, `ImageAccessDenied`, `ImageWrongArchitecture`, `ImageTooLarge` (bigger than the task's disk),
    `ImageInvalid` (not an image, damaged, or dangerous), `RegistryUnreachable` (retryable), `HostDiskFull`.
    """


class ImageLook(msgspec.Struct, frozen=True, kw_only=True):
    """What can be said of an image without pulling it."""

    digest: str
    size_bytes: int
    """Compressed."""
    unpacked_bytes: int | None
    """None if it was not unpacked here yet."""
    is_here: bool
    is_stale: bool = False
    """Its registry can't be reached; this is what was pulled before."""


class ImageStore(Protocol):
    """Pulls, verifies, keeps and prepares images; content is shared between tasks and kept under a size limit."""

    async def prepare(
        self,
        reference: str,
        *,
        architecture: str,
        root_format: str,
        credentials: tuple[str, str] | None = None,
        max_bytes: int,
    ) -> RootImage:
        """Make an image ready: local images first, then the registry. Raises `ImageFault`.

        A tag is resolved anew each time (a cached image is used if the registry can't be reached); a digest never.
        `root_format` is "erofs" or "directory". `max_bytes` bounds compressed plus unpacked size.
        Side-by-side calls for the same image share the work.
        """
        ...

    async def look(
        self, reference: str, *, architecture: str, credentials: tuple[str, str] | None = None
    ) -> ImageLook:
        """What `prepare` would use, without pulling it. Raises the `ImageFault`s that can be known before."""
        ...

    def free_bytes(self) -> int:
        """What images may still take of the host's disk."""
        ...

    def acquire(self, digest: str, task_id: str) -> None:
        """A task uses the image from now on: garbage collection leaves it alone. Durable."""
        ...

    def release(self, task_id: str) -> None:
        """The task uses no image any more. Durable."""
        ...

    async def import_archive(self, path: str, name: str | None) -> ImageFact:
        """Take in an OCI archive, OCI layout (directory or tar) or docker archive under a name. Raises `ImageFault`."""
        ...

    def local_images(self) -> tuple[ImageFact, ...]: ...

    async def remove(self, name: str) -> bool:
        """Drop a local image's name; content that nothing uses goes with the next collection."""
        ...

    async def collect_garbage(self) -> int:
        """Remove the least recently used content beyond the size limit; bytes freed."""
        ...
