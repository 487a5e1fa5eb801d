"""Mounts of this mount namespace, and one in another. All calls are quick and are made from a worker thread."""

import ctypes
import errno
import os
import re
import threading
from pathlib import Path

_MNT_DETACH = 2
_MS_RDONLY = 1
_MS_NOSUID_NODEV = 2 | 4
_MS_NOSUID_NODEV_NOEXEC = 2 | 4 | 8
_CLONE_FS = 0x200
MAX_OPTIONS_BYTES = 4095
"""The kernel takes one page of options, the closing zero included."""
_libc = ctypes.CDLL(None, use_errno=True)
_ESCAPED = re.compile(r"\\([0-7]{3})")


def mount_overlay(lower: str, upper: str, work: str, target: str, *, above: str = "") -> None:
    """An overlay over a read-only directory and, if it is given, another one `above` it. Raises `OSError`.

    Volatile: nothing of a sandbox outlives the host's next boot, so nobody waits for a disk when it is unmounted.
    """
    lowers = ":".join(_escape(path) for path in (above, lower) if path)
    places = (("upperdir", upper), ("workdir", work))
    options = ",".join(
        ["volatile", f"lowerdir={lowers}", *(f"{name}={_escape(path)}" for name, path in places)]
    )
    if len(os.fsencode(options)) > MAX_OPTIONS_BYTES:
        raise OSError(errno.ENAMETOOLONG, "the paths of an overlay are too long together", target)
    _mount("overlay", target, "overlay", 0, options)


def mount_tmpfs(target: str, options: str) -> None:
    """A tmpfs without programs, devices and set-uid files. Raises `OSError`."""
    _mount("tmpfs", target, "tmpfs", _MS_NOSUID_NODEV_NOEXEC, options)


def mount_ramfs(target: str) -> None:
    """A file system in memory that is never swapped out; as large as what is written to it. Raises `OSError`."""
    _mount("ramfs", target, "ramfs", _MS_NOSUID_NODEV, "mode=755")


def mount_own_proc(pid: int) -> None:
    """A read-only /proc in the mount namespace of a process, which tells of its PID namespace's processes and, where the
    kernel can do that (Linux 5.8), of nothing else. Raises `OSError`.

    In a thread of its own, which lives there for a moment and ends.
    """
    failures: list[OSError] = []

    def visit() -> None:
        try:
            _mount_proc_there(pid)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=visit, name="mount-proc")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _mount_proc_there(pid: int) -> None:
    fds = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("pid", "mnt")]
    # The process's root is not the namespace's if we live in a chroot ourselves.
    root_fd = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # A thread enters another mount namespace only if it has a root and a working directory of its own.
        _check(_libc.unshare(_CLONE_FS), "unshare")
        for fd in fds:
            _check(_libc.setns(fd, 0), "setns")
        os.fchdir(root_fd)
    finally:
        for fd in (*fds, root_fd):
            os.close(fd)
    flags = _MS_RDONLY | _MS_NOSUID_NODEV_NOEXEC
    try:
        _mount("proc", "proc", "proc", flags, "subset=pid,hidepid=2")
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        _mount("proc", "proc", "proc", flags, "")


def mounts_below(directory: Path) -> list[str]:
    """The mount points in a directory (itself included), those that were made last first."""
    prefix = str(directory)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as f:
        points = [_ESCAPED.sub(lambda m: chr(int(m[1], 8)), line.split(" ", 5)[4]) for line in f]
    return [p for p in reversed(points) if p == prefix or p.startswith(prefix + "/")]


def unmount_below(directory: Path) -> None:
    """Unmount everything in a directory; also what somebody still has open. Raises `OSError`."""
    for point in mounts_below(directory):
        unmount(point)


def unmount(target: str) -> None:
    """Detach a mount; no error if there is none."""
    if _libc.umount2(os.fsencode(target), _MNT_DETACH) != 0:
        error = ctypes.get_errno()
        if error not in (errno.EINVAL, errno.ENOENT):
            raise OSError(error, os.strerror(error), target)


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    words = [os.fsencode(word) for word in (source, target, kind)]
    _check(_libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), target)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)


def _escape(path: str) -> str:
    """Overlay's own separators in a path."""
    return re.sub(r"([\\:,])", r"\\\1", path)
