"""Being told when files of a directory change, instead of looking again and again.

One inotify instance serves any number of directories (the kernel allows a user only 128 instances).
"""

import asyncio
import ctypes
import os
import struct
from pathlib import Path

from hutch.base.errors import StorageFull

_IN_MODIFY, _IN_CREATE, _IN_MOVED, _IN_IGNORED, _IN_Q_OVERFLOW = 0x2, 0x100, 0xC0, 0x8000, 0x4000
_EVENT = struct.Struct("iIII")
_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """`changed` is set whenever something in the directory is written, made or renamed; clear it, then look.

    Closed by its owner.
    """

    def __init__(self, watcher: "FileWatcher", descriptor: int) -> None:
        self.changed = asyncio.Event()
        self._watcher = watcher
        self._descriptor = descriptor

    def close(self) -> None:
        """No more notices; also when called twice."""
        self._watcher.forget(self._descriptor, self)


class FileWatcher:
    """Watches directories, from one event loop. Closed by its owner."""

    def __init__(self) -> None:
        self._fd = -1
        self._watches: dict[int, set[DirectoryWatch]] = {}

    def watch(self, directory: Path) -> DirectoryWatch:
        """Begin to watch a directory that exists. Raises `StorageFull` naming the kernel's limit."""
        if self._fd < 0:
            self._open()
        descriptor = _libc.inotify_add_watch(
            self._fd, os.fsencode(directory), _IN_MODIFY | _IN_CREATE | _IN_MOVED
        )
        if descriptor < 0:
            error = os.strerror(ctypes.get_errno())
            raise StorageFull(f"inotify on {directory}: {error}; raise fs.inotify.max_user_watches")
        made = DirectoryWatch(self, descriptor)
        self._watches.setdefault(descriptor, set()).add(made)
        return made

    def forget(self, descriptor: int, watch: DirectoryWatch) -> None:
        """Drop one watch; the directory is let go with the last of its own."""
        others = self._watches.get(descriptor, set())
        if watch not in others:
            return
        others.remove(watch)
        if not others:
            del self._watches[descriptor]
            if self._fd >= 0:
                _libc.inotify_rm_watch(self._fd, descriptor)

    def close(self) -> None:
        """End all watches."""
        self._watches.clear()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            error = os.strerror(ctypes.get_errno())
            raise StorageFull(f"inotify: {error}; raise fs.inotify.max_user_instances")
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        at = 0
        while at < len(data):
            descriptor, mask, _, length = _EVENT.unpack_from(data, at)
            at += _EVENT.size + length
            if mask & _IN_Q_OVERFLOW:
                told = [w for ws in self._watches.values() for w in ws]
            elif mask & _IN_IGNORED:
                told = list(self._watches.pop(descriptor, ()))
            else:
                told = list(self._watches.get(descriptor, ()))
            for watch in told:
                watch.changed.set()
