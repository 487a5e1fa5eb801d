"""Processes that are not our children any more: who they are, when they end, and how to end them.

A pid alone names a process only until it is reused, so a process is known by its pid *and* its start time.
"""

import asyncio
import contextlib
import os
import signal

import msgspec


class ProcessRef(msgspec.Struct, frozen=True, kw_only=True):
    """A process, for ever: `start_ticks` is field 22 of /proc/<pid>/stat (clock ticks since boot)."""

    pid: int
    start_ticks: int


def process_ref(pid: int) -> ProcessRef | None:
    """The process that has this pid now, or None. A zombie counts as gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if fields[0] in (b"Z", b"X"):
        return None
    return ProcessRef(pid=pid, start_ticks=int(fields[19]))


def is_alive(ref: ProcessRef) -> bool:
    """Whether it is still this very process."""
    return process_ref(ref.pid) == ref


async def wait_gone(ref: ProcessRef) -> None:
    """Return when the process has ended (pidfd, no polling). A child of ours is reaped."""
    try:
        fd = os.pidfd_open(ref.pid)
    except ProcessLookupError:
        return
    try:
        if process_ref(ref.pid) != ref:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def on_readable() -> None:
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(fd, on_readable)
        try:
            await ended
        finally:
            loop.remove_reader(fd)
    finally:
        os.close(fd)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(ref.pid, os.WNOHANG)


async def kill_and_wait(ref: ProcessRef, *, term_timeout_s: float = 0.0) -> None:
    """End a process: SIGTERM and a grace time if one is given, then SIGKILL; returns when it is gone."""
    if not is_alive(ref):
        with contextlib.suppress(ChildProcessError):
            os.waitpid(ref.pid, os.WNOHANG)
        return
    with contextlib.suppress(ProcessLookupError):
        if term_timeout_s > 0:
            os.kill(ref.pid, signal.SIGTERM)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(term_timeout_s):
                    await wait_gone(ref)
                    return
        if is_alive(ref):
            os.kill(ref.pid, signal.SIGKILL)
    await wait_gone(ref)
