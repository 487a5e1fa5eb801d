"""Looking again until something is so, for what nobody tells of.

What another process has done to a file, that a program inside a VM has begun to listen, that a guest's process has ended:
no event of these reaches a test. Everything else is awaited: tasks with `Platform.until`, events with `EventStream`,
processes by reading their pipes or `wait_for_end`.
"""

import asyncio
import os
import select
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
LIMIT_S = 120.0
"""How long is waited for what must come: nothing but an end to tests that would hang, so it is far from what is usual."""
_AGAIN_S = 0.01


def look_until(look: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """What `look` gives, once that is true. Fails with what it gave last, after `limit_s`."""
    deadline = time.monotonic() + limit_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"after {limit_s:.0f} s still {seen!r}"
        time.sleep(_AGAIN_S)
    return seen


async def look_until_async(look: Callable[[], T], limit_s: float = LIMIT_S) -> T:
    """The same, while the event loop goes on."""
    deadline = time.monotonic() + limit_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"after {limit_s:.0f} s still {seen!r}"
        await asyncio.sleep(_AGAIN_S)
    return seen


def fetch(url: str) -> tuple[int, str]:
    """Status and body of an answer, once somebody listens there: a server in a VM, or one whose proxy has just been told."""

    def look() -> tuple[int, str] | None:
        try:
            with urllib.request.urlopen(url, timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            # A proxy answers with 503 as long as nobody listens behind it.
            return None if error.code >= 500 else (error.code, error.read().decode())
        except OSError:
            return None

    seen = look_until(look)
    assert seen is not None
    return seen


def next_line(process: subprocess.Popen[bytes], limit_s: float = LIMIT_S) -> bytes:
    """The next line that a process writes at once, and nothing after it yet."""
    assert process.stdout is not None
    assert select.select([process.stdout], [], [], limit_s)[0], f"no line after {limit_s:.0f} s"
    return process.stdout.readline()


def wait_for_end(pid: int, limit_s: float = LIMIT_S) -> None:
    """Until a process, which need not be a child, has ended: the kernel tells."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([fd], [], [], limit_s)[0], f"process {pid} goes on after {limit_s:.0f} s"
    finally:
        os.close(fd)
