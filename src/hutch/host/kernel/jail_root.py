"""The only files that a jailed program sees: itself, its libraries, and what else it was said to need.

A root is made once for each state of those files, from hard links where that is possible (nothing is copied then, and
the page cache is shared with the host's own), else from copies. It is mounted nowhere on the host.
"""

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from hutch.base.errors import HutchError
from hutch.host.kernel.run import CommandFailed, run

SETPRIV = "/usr/bin/setpriv"
"""Of util-linux: in each root, to become the program's user in there."""
NSENTER = "/usr/bin/nsenter"
"""Of util-linux too: to enter a user namespace."""
_LINKED_DIRECTORIES = ("bin", "sbin", "lib", "lib64")


class JailRoot(msgspec.Struct, frozen=True, kw_only=True):
    """A directory that can be a root, and where in it the program is."""

    directory: Path
    program: str


class RootUnavailable(HutchError):
    """The program is not installed, or its root can't be made."""


async def prepare_root(
    place: Path,
    program: str,
    *,
    extra: Sequence[Path],
    devices: Sequence[str],
    files: Sequence[str] = (),
    directories: Sequence[str] = (),
) -> JailRoot:
    """The root of `program` (a name on the path) below `place`, made if it is missing.

    `extra`: further files, with their libraries if they have any. `devices`, `files` and `directories` get placeholders,
    which are covered, in each jail, with the node itself or with what is bound there. Raises `RootUnavailable`, `CommandFailed`.
    """
    path = shutil.which(program, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
    if path is None:
        raise RootUnavailable(f"{program} is not installed")
    if not os.path.exists(SETPRIV):
        raise RootUnavailable(f"there is no {SETPRIV}: install util-linux")
    content = [Path(path), Path(SETPRIV), *extra]
    for file in (Path(path), Path(SETPRIV), *(e for e in extra if ".so" in e.name or os.access(e, os.X_OK))):
        content += await _libraries(file)
    unique = sorted(set(content))
    empty = (*devices, *files)
    directory = place / f"root-{_key(unique, (*empty, *(f'{d}/' for d in directories)))}"
    if not directory.exists():
        try:
            _fill(directory, unique, empty, directories)
        except OSError as error:
            raise RootUnavailable(f"the jail's root {directory} can't be made: {error}") from None
    return JailRoot(directory=directory, program=path)


def remove_other_roots(place: Path, kept: JailRoot) -> None:
    """Remove the roots below `place` of programs as they were before an upgrade; nothing may be running in them."""
    for other in place.glob("root-*"):
        if other != kept.directory:
            shutil.rmtree(other, ignore_errors=True)


async def _libraries(program: Path) -> list[Path]:
    """Shared libraries and the loader, by the loader's own account."""
    try:
        listed = (await run(["ldd", str(program)], timeout_s=20)).decode()
    except CommandFailed as failure:
        if b"not a dynamic executable" in failure.stderr:
            return []
        raise
    words = (w for line in listed.splitlines() for w in line.split() if w.startswith("/"))
    return [Path(w) for w in words]


def _key(files: Iterable[Path], placeholders: Sequence[str]) -> str:
    digest = hashlib.sha256(" ".join(placeholders).encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file}\0{status.st_ino}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def _fill(directory: Path, files: Iterable[Path], empty: Sequence[str], directories: Sequence[str]) -> None:
    draft = directory.with_name(f"{directory.name}.{os.getpid()}.new")
    shutil.rmtree(draft, ignore_errors=True)
    _make_directory(draft)
    for name in _LINKED_DIRECTORIES:
        if Path("/", name).is_symlink():
            (draft / name).symlink_to(os.readlink(Path("/", name)))
    _make_directory(draft / "proc")
    for file in files:
        _place(file.resolve(), draft / str(file.parent.resolve()).lstrip("/") / file.name)
    for each in directories:
        _make_directory(draft / each.lstrip("/"))
    for each in empty:
        placeholder = draft / each.lstrip("/")
        _make_directory(placeholder.parent)
        placeholder.touch(mode=0o444)
    try:
        draft.rename(directory)
    except OSError as error:
        shutil.rmtree(draft)
        if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
            raise


def _make_directory(path: Path) -> None:
    for each in (*reversed(path.parents), path):
        if not each.exists():
            each.mkdir()
            each.chmod(0o755)


def _place(source: Path, target: Path) -> None:
    _make_directory(target.parent)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
