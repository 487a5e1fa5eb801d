"""A VM on the disk: what its memory holds beyond its template's, and the state of its devices. See docs/design/suspend.md.

A directory, complete by virtue of its name, since it is written elsewhere and renamed:
`manifest.json`, `state` (QEMU's), `pages` (the memory's pages that are the VM's own, one after the other), `base` (the
template's memory, another name of the same file; not there if `pages` has all of the memory).
"""

import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec

from hutch.base.errors import HutchError
from hutch.base.threads import in_thread
from hutch.base.units import MIB
from hutch.host.drivers.microvm.templates import MEMORY_NAME, TemplateRef, load_memory
from hutch.host.kernel.process import ProcessRef
from hutch.host.kernel.process_memory import (
    PAGE_BYTES,
    Mapping,
    MemoryMismatch,
    Run,
    all_pages,
    copy_in,
    copy_out,
    find_mapping,
    own_pages,
    pages_in,
)

IMAGE_FORMAT = 1
"""Of what is on the disk: raise it when its meaning changes. An image of another format is refused, not guessed at."""
MAX_MANIFEST_BYTES = 64 * MIB
MAX_STATE_BYTES = 16 * MIB
DISK_MARGIN_BYTES = 256 * MIB
"""Stays free on the disk, whatever is written."""


class ImageUnusable(HutchError):
    """The image is damaged, incomplete, or of a machine that this host does not have."""


class NoRoomForImage(HutchError):
    """The disk would be too full."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What must be the same for the state of a VM to be of use."""

    traits: str
    """`machine_traits` of it."""
    qemu_version: str
    accelerator: str
    cpu: str
    """A word for the host's CPU."""

    def difference(self, other: "Machine") -> str:
        """What is not the same, in words; "" if nothing."""
        for name in ("qemu_version", "accelerator", "cpu"):
            if getattr(self, name) != getattr(other, name):
                return f"{name.replace('_', ' ')} was {getattr(self, name)!r} and is {getattr(other, name)!r}"
        return "" if self.traits == other.traits else "its virtual machine was made of other devices"


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What the image is, and how to tell that it is whole."""

    format: int = IMAGE_FORMAT
    machine: Machine
    memory_mib: int
    template: TemplateRef | None
    """Whose memory is below."""
    base_bytes: int
    """Size of the template's memory file, 0 without one."""
    runs: tuple[Run, ...]
    page_sums: tuple[int, ...]
    """CRC-32 of each MiB of `pages`."""
    state_sum: int
    saved_at: float
    told: tuple[str, ...] = ()
    """Runtime ids of containers whose end was told before."""
    has_link: bool = False
    """Its network device has a link behind it, perhaps one that leads nowhere: what is saved of the device says so."""


class Saved(msgspec.Struct, frozen=True, kw_only=True):
    """An image that was read: all but the memory."""

    directory: Path
    manifest: Manifest
    state: bytes

    async def fill(self, ref: ProcessRef) -> None:
        """Give a VM that stands still the memory's own pages; what they are on top of it has. Raises `ImageUnusable`."""
        await in_thread(self._fill, ref.pid)

    def _fill(self, pid: int) -> None:
        manifest = self.manifest
        try:
            mapping = find_mapping(pid, manifest.memory_mib * MIB, MEMORY_NAME)
            with (self.directory / "pages").open("rb") as f:
                copy_in(mapping, manifest.runs, f.fileno(), manifest.page_sums)
        except (OSError, MemoryMismatch) as error:
            raise ImageUnusable(f"its memory can't be restored: {error}") from None

    def load_base(self) -> int:
        """The template's memory, as it was kept with the image, as a file in memory. Blocks. Raises `OSError`."""
        with (self.directory / "base").open("rb") as f:
            return load_memory(f.fileno(), self.manifest.memory_mib)


def write_image(
    directory: Path,
    mapping: Mapping,
    state: bytes,
    *,
    machine: Machine,
    template: TemplateRef | None,
    pin: Callable[[TemplateRef, Path], bool],
    saved_at: float,
    told: tuple[str, ...] = (),
    has_link: bool = False,
) -> Manifest:
    """Write a VM that stands still into a new directory; what is there already is removed first. Blocks, about 0.1 s for
    100 MiB that the VM has written to.

    `pin` makes another name of the template's memory, so that it stays for as long as the image does; False if it can't,
    then all of the memory is written. Raises `NoRoomForImage`, `OSError`, `MemoryMismatch`; what was written by then is
    the caller's to remove.
    """
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700, parents=True)
    is_pinned = template is not None and pin(template, directory / "base")
    runs = own_pages(mapping) if is_pinned else all_pages(mapping)
    check_room(directory, pages_in(runs) * PAGE_BYTES + len(state))
    fd = os.open(directory / "pages", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        sums = copy_out(mapping, runs, fd)
    finally:
        os.close(fd)
    _write(directory / "state", state)
    manifest = Manifest(
        machine=machine,
        memory_mib=mapping.size_bytes // MIB,
        template=template if is_pinned else None,
        base_bytes=(directory / "base").stat().st_size if is_pinned else 0,
        runs=tuple(runs),
        page_sums=tuple(sums),
        state_sum=zlib.crc32(state),
        saved_at=saved_at,
        told=told,
        has_link=has_link,
    )
    _write(directory / "manifest.json", msgspec.json.encode(manifest))
    return manifest


def read_image(directory: Path) -> Saved:
    """An image as it was written, its pages unread. Raises `ImageUnusable`."""
    try:
        manifest = msgspec.json.decode(_read(directory / "manifest.json", MAX_MANIFEST_BYTES), type=Manifest)
        if manifest.format != IMAGE_FORMAT:
            raise ImageUnusable(
                f"it has format {manifest.format}, this version of hutch knows {IMAGE_FORMAT}"
            )
        state = _read(directory / "state", MAX_STATE_BYTES)
        pages_bytes = (directory / "pages").stat().st_size
        base_bytes = (directory / "base").stat().st_size if manifest.template else 0
    except OSError as error:
        raise ImageUnusable(f"{error.filename}: {error.strerror}") from None
    except msgspec.MsgspecError as error:
        raise ImageUnusable(f"its manifest can't be read: {error}") from None
    if zlib.crc32(state) != manifest.state_sum:
        raise ImageUnusable("the saved state of its devices is damaged")
    if pages_bytes != pages_in(manifest.runs) * PAGE_BYTES or base_bytes != manifest.base_bytes:
        raise ImageUnusable("a part of the saved memory is missing")
    return Saved(directory=directory, manifest=manifest, state=state)


def image_bytes(directory: Path) -> int:
    """What an image takes on the disk, the template's memory left out: that is there once for all."""
    parts = (p.stat() for p in directory.iterdir() if p.name != "base")
    return sum(s.st_blocks * 512 for s in parts)


def check_room(directory: Path, count_bytes: int) -> None:
    """Raises `NoRoomForImage` unless so much can be written and some room stays."""
    disk = os.statvfs(directory)
    free = disk.f_bavail * disk.f_frsize
    if free < count_bytes + DISK_MARGIN_BYTES:
        raise NoRoomForImage(
            f"{-(-count_bytes // MIB)} MiB are to be written and {DISK_MARGIN_BYTES // MIB} MiB are to stay free, "
            f"but the disk of {directory} has {free // MIB} MiB"
        )


def _write(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as f:
        f.write(data)


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as f:
        data = f.read(limit + 1)
    if len(data) > limit:
        raise ImageUnusable(f"{path.name} is longer than anything that hutch writes")
    return data
