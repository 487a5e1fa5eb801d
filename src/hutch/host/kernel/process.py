"""Processes that are not our children any more: who they are, when they end, and how to end them.

A pid alone names a process only until it is reused, so a process is known by its pid *and* its start time.
"""

import asyncio
import contextlib
import ctypes
import os
import resource
import signal
import threading
from collections.abc import Iterator, Mapping

import msgspec

_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessRef(msgspec.Struct, frozen=True, kw_only=True):
    """A process, for ever: `start_ticks` is field 22 of /proc/<pid>/stat (clock ticks since boot)."""

    pid: int
    start_ticks: int


def process_ref(pid: int) -> ProcessRef | None:
    """The process that has this pid now, or None. A zombie counts as gone, unless threads of it are still ending: those
    hold its files."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, threads = fields[0], int(fields[17])
    if state in (b"Z", b"X") and threads <= 1:
        return None
    return ProcessRef(pid=pid, start_ticks=int(fields[19]))


def is_alive(ref: ProcessRef) -> bool:
    """Whether it is still this very process."""
    return process_ref(ref.pid) == ref


async def wait_gone(ref: ProcessRef) -> int | None:
    """Return when the process has ended (pidfd, no polling). A child of ours is reaped.

    The result is its exit code, negative for a signal, as in `subprocess`; None if it was not our child, or
    somebody else reaped it first.
    """
    try:
        fd = os.pidfd_open(ref.pid)
    except ProcessLookupError:
        return None
    try:
        if process_ref(ref.pid) != ref:
            return _reap(ref.pid)
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
        return _reap(ref.pid)
    finally:
        os.close(fd)


def reap_child(ref: ProcessRef) -> None:
    """Let go of a child of ours that has ended, if nobody has yet. Its pid may be another process's by now: then
    nothing is done."""
    try:
        with open(f"/proc/{ref.pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return
    if int(fields[19]) == ref.start_ticks:
        _reap(ref.pid)


def _reap(pid: int) -> int | None:
    try:
        reaped, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if reaped == pid else None


class ProcessUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a process costs the host."""

    cpu_ns: int
    memory_bytes: int


def process_use(ref: ProcessRef) -> ProcessUse | None:
    """CPU time (user and system) and resident memory of a process; None if it is gone."""
    try:
        with open(f"/proc/{ref.pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    if int(fields[19]) != ref.start_ticks:
        return None
    ticks = int(fields[11]) + int(fields[12])
    return ProcessUse(
        cpu_ns=ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK"),
        memory_bytes=int(fields[21]) * os.sysconf("SC_PAGESIZE"),
    )


def session_of(pid: int) -> int | None:
    """The session that a process is in; None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            return int(f.read().rpartition(b")")[2].split()[3])
    except (FileNotFoundError, ProcessLookupError):
        return None


def find_processes(argument: str) -> tuple[ProcessRef, ...]:
    """All processes that have this very argument on their command line: what a crash left behind, by its
    name."""
    wanted = argument.encode()
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as f:
                arguments = f.read().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if wanted in arguments and (ref := process_ref(int(entry))) is not None:
            found.append(ref)
    return tuple(found)


def send_signal(ref: ProcessRef, number: int) -> None:
    """Signal a process; no error if it is gone."""
    if is_alive(ref):
        with contextlib.suppress(ProcessLookupError):
            os.kill(ref.pid, number)


def kill_child(pid: int) -> None:
    """End a child of ours and reap it; nothing is done if it is none, or is reaped. Blocks for as long as the kernel
    needs."""
    with contextlib.suppress(ChildProcessError):
        if os.waitpid(pid, os.WNOHANG)[0] == 0:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def limit_process(pid: int, limits: Mapping[str, int]) -> None:
    """Set resource limits of another process of our user, soft and hard: {"nofile": 256}. One that the host keeps lower
    stays as it is. Raises `OSError`."""
    for name, wanted in limits.items():
        number = getattr(resource, f"RLIMIT_{name.upper()}")
        hard = resource.prlimit(pid, number)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.prlimit(pid, number, (value, value))


class _Adopting:
    """How many threads want orphans; the process has one flag for all of them."""

    lock = threading.Lock()
    count = 0


@contextlib.contextmanager
def adopting_orphans() -> Iterator[None]:
    """Meanwhile, whose parent ends becomes a child of ours, if we started its parent. Raises `OSError`.

    Not for good: daemons that detach themselves would be ours to reap.
    """
    _adopt(1)
    try:
        yield
    finally:
        _adopt(-1)


def _adopt(change: int) -> None:
    with _Adopting.lock:
        _Adopting.count += change
        if _libc.prctl(_PR_SET_CHILD_SUBREAPER, int(_Adopting.count > 0), 0, 0, 0) != 0:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error), "prctl")


async def kill_and_wait(ref: ProcessRef, *, term_timeout_s: float = 0.0) -> None:
    """End a process: SIGTERM and a grace time if one is given, then SIGKILL; returns when it is gone."""
    if not is_alive(ref):
        _reap(ref.pid)
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
