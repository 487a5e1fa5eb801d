"""From an image's layers to a root file system: unpacked by umoci, as EROFS disk or as a tree.

Images are hostile: a small layer can hold terabytes. So unpacking happens inside a file system of the size that is
allowed (a sparse ext4 file, loop-mounted without devices and set-uid): what does not fit fails there, and harms nobody.
"""

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.units import MIB, format_bytes
from hutch.host.images.contract import ImageFault
from hutch.host.kernel.run import CommandFailed, run

UNPACK_TIMEOUT_S = 900
MAX_TEXT_BYTES = 1024 * 1024
MIN_SPACE_BYTES = 256 * MIB
_PREFIX = "CannotPullContainerError"


class MadeRoot(msgspec.Struct, frozen=True, kw_only=True):
    """What was learnt while an image was unpacked."""

    config: dict[str, Any]
    architecture: str
    size_bytes: int
    passwd: str
    group: str


async def make_root(
    layout: Path, tag: str, temporary: Path, target: Path, root_format: str, max_bytes: int
) -> MadeRoot:
    """Make `<target>/root.erofs` or `<target>/tree` of the image that the layout has under a tag. Atomic.

    Raises `ImageFault`: ImageTooLarge, ImageInvalid, HostDiskFull.
    """
    work = temporary / f"unpack-{tag[:16]}-{root_format}"
    await _discard(work)
    work.mkdir(mode=0o700)
    try:
        config, architecture = _image_config(layout, tag)
        space = work / "space"
        await _mount_space(work, space, max(max_bytes, MIN_SPACE_BYTES))
        await _unpack(layout, tag, space / "bundle", max_bytes)
        root = space / "bundle" / "rootfs"
        passwd, group = _text_inside(root, "etc/passwd"), _text_inside(root, "etc/group")
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        if root_format == "erofs":
            made = work / "root.erofs"
            await run(["mkfs.erofs", "-zlz4", "-Enosbcrc", str(made), str(root)], timeout_s=UNPACK_TIMEOUT_S)
            os.replace(made, target / "root.erofs")
            size = (target / "root.erofs").stat().st_size
        else:
            # Device nodes and the like are kept: the tree is only ever seen through a container's overlay.
            tree = work / "tree"
            await run(["cp", "-a", "--reflink=auto", str(root), str(tree)], timeout_s=UNPACK_TIMEOUT_S)
            if (target / "tree").exists():
                shutil.rmtree(target / "tree")
            os.replace(tree, target / "tree")
            size = 0
    except CommandFailed as failure:
        raise _fault(failure, max_bytes) from None
    finally:
        await _discard(work)
    return MadeRoot(config=config, architecture=architecture, size_bytes=size, passwd=passwd, group=group)


async def _mount_space(work: Path, space: Path, size_bytes: int) -> None:
    """A file system of the allowed size, as a sparse file: it takes room only as it fills."""
    disk = work / "space.img"
    with disk.open("wb") as f:
        f.truncate(size_bytes)
    await run(
        ["/sbin/mkfs.ext4", "-q", "-F", "-m0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-i", "8192",
         str(disk)],
        timeout_s=60,
    )  # fmt: skip
    space.mkdir()
    await run(["/bin/mount", "-o", "loop,nodev,nosuid,noatime", str(disk), str(space)], timeout_s=60)


async def _unpack(layout: Path, tag: str, bundle: Path, max_bytes: int) -> None:
    try:
        await run(["umoci", "unpack", "--image", f"{layout}:{tag}", str(bundle)], timeout_s=UNPACK_TIMEOUT_S)
    except CommandFailed as failure:
        raise _fault(failure, max_bytes) from None


def _fault(failure: CommandFailed, max_bytes: int) -> ImageFault:
    text = failure.message
    if failure.argv[0] == "umoci" and "no space left" in text:
        return ImageFault(
            "ImageTooLarge",
            f"the image does not fit on the task's disk of {format_bytes(max_bytes)} when unpacked",
            fix="raise ephemeralStorage, or use a smaller image",
            aws_prefix=_PREFIX,
        )
    if "no space left" in text.lower():
        return ImageFault(
            "HostDiskFull",
            "the host's disk is full",
            fix="free space in the data directory",
            aws_prefix=_PREFIX,
        )
    return ImageFault("ImageInvalid", f"the image can't be unpacked: {text[-300:]}", aws_prefix=_PREFIX)


async def _discard(work: Path) -> None:
    space = work / "space"
    if space.is_mount():
        with contextlib.suppress(CommandFailed):
            await run(["/bin/umount", "-l", str(space)], timeout_s=60)
    shutil.rmtree(work, ignore_errors=True)


def _image_config(layout: Path, tag: str) -> tuple[dict[str, Any], str]:
    """The `config` object of the image under a tag, and its architecture in the kernel's word."""
    try:
        index = json.loads((layout / "index.json").read_bytes())
        entry = next(
            m
            for m in index["manifests"]
            if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag
        )
        manifest = json.loads(_blob(layout, entry["digest"]))
        document = json.loads(_blob(layout, manifest["config"]["digest"]))
        config = document.get("config") or {}
        if not isinstance(config, dict):
            raise ValueError("config is not an object")
        go_name = str(document.get("architecture", ""))
        return config, {"amd64": "x86_64", "arm64": "aarch64"}.get(go_name, go_name)
    except (OSError, ValueError, KeyError, StopIteration, TypeError, AttributeError) as error:
        raise ImageFault(
            "ImageInvalid", f"the image's configuration can't be read: {error}", aws_prefix=_PREFIX
        ) from None


def _blob(layout: Path, digest: str) -> bytes:
    algorithm, _, name = digest.partition(":")
    if algorithm != "sha256" or not name.isalnum():
        raise ValueError(f"{digest!r} is not a digest")
    path = layout / "blobs" / algorithm / name
    if path.stat().st_size > 16 * MIB:
        raise ValueError(f"{digest} is too long for a configuration")
    return path.read_bytes()


def _text_inside(root: Path, relative: str) -> str:
    """A small text file of the image; "" if there is none. No symbolic link is followed out of the root."""
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, name = relative.split("/")
        for part in parents:
            inner = os.open(
                part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
            os.close(directory)
            directory = inner
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        with os.fdopen(fd, "rb") as f:
            return f.read(MAX_TEXT_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    finally:
        os.close(directory)
