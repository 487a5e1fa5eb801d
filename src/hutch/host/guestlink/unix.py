"""Unix sockets below directories of any depth: a socket's path may have 107 bytes only, a sandbox's may be
longer."""

import asyncio
import errno
import os
import socket
import stat
from pathlib import Path


def _reach(path: Path) -> tuple[int, str]:
    """The directory's descriptor, and a short way to the socket through it."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    return directory, f"/proc/self/fd/{directory}/{path.name}"


def listen_unix(path: Path) -> socket.socket:
    """A listening socket (close-on-exec) at `path`. Bound by us and handed on, so that nobody waits for it
    to appear."""
    directory, short = _reach(path)
    try:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(short)
            os.chmod(short, 0o600)
            listener.listen(1)
        except OSError:
            listener.close()
            raise
        return listener
    finally:
        os.close(directory)


async def connect_unix(path: Path, *, limit: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the socket at `path`; `limit` bounds the reader's buffer, in bytes. Raises `OSError`.

    Only to a socket that is there itself: a program that may write to the directory could have put a link there, to a
    socket that it may not talk to.
    """
    entry = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if not stat.S_ISSOCK(os.fstat(entry).st_mode):
            raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK), str(path))
        return await asyncio.open_unix_connection(f"/proc/self/fd/{entry}", limit=limit)
    finally:
        os.close(entry)
