"""Being told when files of a directory change, instead of looking again and again."""

import asyncio
import ctypes
import os
from pathlib import Path

from hutch.base.errors import StorageFull

_IN_MODIFY, _IN_CREATE, _IN_MOVED = 0x2, 0x100, 0xC0
_libc = ctypes.CDLL(None, use_errno=True)


class DirectoryWatch:
    """Sets an event whenever something in a directory is written, made or renamed. Closed by its owner."""

    def __init__(self, directory: Path) -> None:
        self.changed = asyncio.Event()
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise StorageFull(f"inotify: {os.strerror(ctypes.get_errno())}; raise fs.inotify.max_user_instances")
        if _libc.inotify_add_watch(self._fd, os.fsencode(directory), _IN_MODIFY | _IN_CREATE | _IN_MOVED) < 0:
            error = os.strerror(ctypes.get_errno())
            os.close(self._fd)
            raise StorageFull(f"inotify on {directory}: {error}; raise fs.inotify.max_user_watches")
        asyncio.get_running_loop().add_reader(self._fd, self._readable)

    def _readable(self) -> None:
        try:
            os.read(self._fd, 65536)
        except BlockingIOError:
            return
        self.changed.set()

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


