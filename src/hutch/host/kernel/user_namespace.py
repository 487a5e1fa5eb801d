"""User namespaces: a range of the host's user and group ids that are 0, 1, 2... for whoever enters."""

import contextlib
import os
import subprocess
from collections.abc import Iterator

from hutch.host.kernel.run import CLEAN_ENVIRONMENT

_WAITING = ("unshare", "--user", "--", "sh", "-c", "echo; read end")


@contextlib.contextmanager
def user_namespace(first_id: int, count: int) -> Iterator[int]:
    """A new one as a descriptor, which keeps it until the context ends; after that whoever is in it does. Blocks for some
    milliseconds. Raises `OSError`."""
    with subprocess.Popen(
        _WAITING, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=CLEAN_ENVIRONMENT, close_fds=True
    ) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        try:
            # Its line says that it has unshared.
            if not holder.stdout.readline():
                raise OSError("no user namespace can be made: unshare --user fails on this host")
            for kind in ("uid", "gid"):
                with open(f"/proc/{holder.pid}/{kind}_map", "w") as f:
                    f.write(f"0 {first_id} {count}")
            fd = os.open(f"/proc/{holder.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            holder.stdin.close()
    try:
        yield fd
    finally:
        os.close(fd)
