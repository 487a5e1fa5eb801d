"""A child of the supervisor ends, in its orderly way, when the supervisor is gone, however that went.

The supervisor holds the writing end of a pipe, its children the reading end: it ends when the supervisor does. They
also hold the platform's lock, so that the next supervisor starts only when the last of them has ended.
"""

import asyncio
import os
import signal


def watch_supervisor(fds: str) -> None:
    """Send ourselves SIGTERM when the supervisor is gone. `fds`: "pipe,lock" as inherited, or empty: on our own."""
    if not fds:
        return
    pipe_fd, lock_fd = map(int, fds.split(","))
    for fd in (pipe_fd, lock_fd):
        # What we start must not hold the platform's lock.
        os.set_inheritable(fd, False)
    loop = asyncio.get_running_loop()

    def on_end() -> None:
        loop.remove_reader(pipe_fd)
        os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(pipe_fd, on_end)
