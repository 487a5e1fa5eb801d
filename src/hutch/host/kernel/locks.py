"""Locks on open files, which last as long as anybody has the file open."""

import fcntl


def lock_open_file(fd: int) -> bool:
    """Lock an open file against every other opening of it; False if another one has the lock. Processes that inherit the
    descriptor keep the lock: it ends when the last of them does, however that comes."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
