"""From an image's layers to a root file system: unpacked by umoci, as EROFS disk or as a tree.

Images are hostile: a small layer can hold terabytes. So unpacking happens inside a file system of the size that is
allowed (a sparse ext4 file, loop-mounted without devices and set-uid): what does not fit fails there, and harms nobody.
"""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.units import MIB, format_bytes
from hutch.host.images.content import LAYOUT_TAG, Content, ContentStore
from hutch.host.images.contract import ImageFault
from hutch.host.images.manifest import parse_manifest
from hutch.host.kernel.run import CommandFailed, run

UNPACK_TIMEOUT_S = 600
MAX_TEXT_BYTES = 1024 * 1024
MIN_SPACE_BYTES = 16 * MIB
_PREFIX = "CannotPullContainerError"


class MadeRoot(msgspec.Struct, frozen=True, kw_only=True):
    """What was learnt while an image was unpacked."""

    config: dict[str, Any]
    architecture: str
    size_bytes: int
    unpacked_bytes: int
    passwd: str
    group: str


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """How much an image may unpack to: what its task's disk takes, or less if the host has less."""

    bytes: int
    limited_by_host: bool


async def make_root(
    content: ContentStore, image: Content, temporary: Path, target: Path, root_format: str, space: Space
) -> MadeRoot:
    """Make `<target>/root.erofs` or `<target>/tree` of an image. Atomic, and durable when this returns.

    Raises `ImageFault`: ImageTooLarge, ImageInvalid, HostDiskFull.
    """
    work = temporary / f"unpack-{image.digest[7:23]}-{root_format}-{space.bytes}"
    await _discard(work)
    work.mkdir(mode=0o700)
    try:
        config, architecture = _image_config(content, image)
        content.write_layout(image, work / "layout")
        mount = work / "space"
        await _mount_space(work, mount, max(space.bytes, MIN_SPACE_BYTES))
        root = mount / "root"
        await _unpack(work / "layout", root)
        usage = os.statvfs(mount)
        passwd, group = _text_inside(root, "etc/passwd"), _text_inside(root, "etc/group")
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        size = await (_make_erofs if root_format == "erofs" else _make_tree)(work, root, target)
    except CommandFailed as failure:
        raise _fault(failure, space) from None
    except OSError as error:
        raise _host_disk(error.strerror or "can't write") from None
    finally:
        await _discard(work)
    return MadeRoot(
        config=config,
        architecture=architecture,
        size_bytes=size,
        unpacked_bytes=(usage.f_blocks - usage.f_bfree) * usage.f_frsize,
        passwd=passwd,
        group=group,
    )


async def _make_erofs(work: Path, root: Path, target: Path) -> int:
    made = work / "root.erofs"
    argv = ["mkfs.erofs", "-zlz4", "-Enosbcrc", str(made), str(root)]
    await run(argv, timeout_s=UNPACK_TIMEOUT_S, dies_with_us=True)
    await run(["sync", str(made)], timeout_s=UNPACK_TIMEOUT_S, dies_with_us=True)
    os.replace(made, target / "root.erofs")
    return (target / "root.erofs").stat().st_size


async def _make_tree(work: Path, root: Path, target: Path) -> int:
    """Device nodes and the like are kept: the tree is only ever seen through a container's overlay."""
    tree = work / "tree"
    argv = ["cp", "-a", "--reflink=auto", str(root), str(tree)]
    await run(argv, timeout_s=UNPACK_TIMEOUT_S, dies_with_us=True)
    await run(["sync", "--file-system", str(tree)], timeout_s=UNPACK_TIMEOUT_S, dies_with_us=True)
    if (target / "tree").exists():
        shutil.rmtree(target / "tree")
    os.replace(tree, target / "tree")
    return 0


async def _mount_space(work: Path, mount: Path, size_bytes: int) -> None:
    """A file system of the allowed size, as a sparse file: it takes room only as it fills."""
    disk = work / "space.img"
    with disk.open("wb") as f:
        f.truncate(size_bytes)
    await run(
        ["/sbin/mkfs.ext4", "-q", "-F", "-m0", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-i", "8192",
         str(disk)],
        timeout_s=60,
        dies_with_us=True,
    )  # fmt: skip
    mount.mkdir()
    await run(["/bin/mount", "-o", "loop,nodev,nosuid,noatime", str(disk), str(mount)], timeout_s=60)


async def _unpack(layout: Path, root: Path) -> None:
    # Raw: else umoci reads the image's user and group files, and waits for ever if one is a named pipe.
    argv = ["umoci", "raw", "unpack", "--image", f"{layout}:{LAYOUT_TAG}", str(root)]
    await run(argv, timeout_s=UNPACK_TIMEOUT_S, dies_with_us=True)


def _fault(failure: CommandFailed, space: Space) -> ImageFault:
    text = failure.message
    if failure.timed_out:
        return ImageFault(
            "ImageTooLarge",
            f"the image did not unpack within {UNPACK_TIMEOUT_S} s",
            fix="use a smaller image",
            aws_prefix=_PREFIX,
        )
    if "no space left" in text.lower():
        if failure.argv[0] != "umoci" or space.limited_by_host:
            return _host_disk(f"the image needs more than {format_bytes(space.bytes)} when unpacked")
        return too_large(space.bytes)
    return ImageFault(
        "ImageInvalid",
        f"the image can't be unpacked: {text[-300:]}",
        fix="push the image again; if this stays, build it with a current tool",
        aws_prefix=_PREFIX,
    )


def too_large(max_bytes: int) -> ImageFault:
    """The fault of an image that unpacks to more than its task's disk takes."""
    return ImageFault(
        "ImageTooLarge",
        f"the image does not fit on the task's disk of {format_bytes(max_bytes)} when unpacked: no space left on device",
        fix="raise ephemeralStorage, or use a smaller image",
        aws_prefix=_PREFIX,
    )


def _host_disk(why: str) -> ImageFault:
    return ImageFault(
        "HostDiskFull",
        f"the host's disk is full: {why}: no space left on device",
        fix="free space in the data directory, or lower --image-cache-gib",
        aws_prefix=_PREFIX,
    )


async def _discard(work: Path) -> None:
    space = work / "space"
    if space.is_mount():
        with contextlib.suppress(CommandFailed):
            await run(["/bin/umount", "-l", str(space)], timeout_s=60)
    shutil.rmtree(work, ignore_errors=True)


async def discard_leftovers(temporary: Path) -> None:
    """Unmount and remove all that an earlier process, killed at any moment, was at."""
    if temporary.is_dir():
        for work in temporary.iterdir():
            if work.is_dir() and not work.is_symlink():
                await _discard(work)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(mode=0o700, parents=True, exist_ok=True)


def _image_config(content: ContentStore, image: Content) -> tuple[dict[str, Any], str]:
    """The `config` object of an image, and its architecture in the kernel's word."""
    manifest = parse_manifest(content.path(image.manifest).read_bytes())
    document = content.read_json(manifest.config.digest)
    config = document.get("config") or {}
    if not isinstance(config, dict):
        raise ImageFault("ImageInvalid", "the image's config is not an object", aws_prefix=_PREFIX)
    go_name = str(document.get("architecture", ""))
    return config, {"amd64": "x86_64", "arm64": "aarch64"}.get(go_name, go_name)


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
