"""A child in namespaces and a root of its own, by bubblewrap: made, held before its program begins, let go.

Bubblewrap reads the system call filter last of all, to its end, and executes the program under it: without a filter it
gives up. So a child is held by a filter that is not written yet, and ends if we do. That all else is made by then is seen
on a pipe with one byte in it, which it reads (`--block-fd`) and closes. The process that bubblewrap leaves with each
child, to wait for it, is ended, and the child becomes our own.
"""

import array
import contextlib
import fcntl
import os
import select
import shutil
import subprocess
import termios
from collections.abc import Iterator, Sequence

import msgspec

from hutch.base.errors import HutchError
from hutch.host.kernel.process import ProcessRef, adopting_orphans, kill_child, process_ref
from hutch.host.kernel.run import CLEAN_ENVIRONMENT, spawn_daemon

PROGRAM = "bwrap"
TIMEOUT_S = 20.0
_MAX_INFO_BYTES = 4096
_MAX_WORDS_BYTES = 1000
_PRIVATE_UMASK = 0o077


class NotMade(HutchError):
    """The child could not be made; the message is bubblewrap's own."""


class _Info(msgspec.Struct):
    child_pid: int = msgspec.field(name="child-pid")


class _Pipes(msgspec.Struct, frozen=True, kw_only=True):
    """Our ends of what connects us with a child that is being made."""

    info: int
    filter: int
    block: int


@contextlib.contextmanager
def held_child(
    options: Sequence[str], command: Sequence[str], *, output_path: str, pass_fds: Sequence[int]
) -> "Iterator[HeldChild]":
    """A child that is being made, of bubblewrap's options. If the context fails nothing of it is left; the context has to
    end with `release`. Blocking; raises `NotMade`, `OSError`."""
    if shutil.which(PROGRAM, path=CLEAN_ENVIRONMENT["PATH"]) is None:
        raise NotMade(f"{PROGRAM} is not installed: install bubblewrap")
    told_before = os.stat(output_path).st_size if os.path.exists(output_path) else 0
    with contextlib.ExitStack() as ours:
        with contextlib.ExitStack() as theirs:
            info, info_theirs = _pipe(ours, theirs)
            filter_theirs, filter_end = _pipe(theirs, ours)
            block_theirs, block = _pipe(theirs, ours)
            os.write(block, b"g")
            fds = {"--info-fd": info_theirs, "--seccomp": filter_theirs, "--block-fd": block_theirs}
            monitor = spawn_daemon(
                [PROGRAM, *options, *(w for o, fd in fds.items() for w in (o, str(fd))), "--", *command],
                output_path=output_path,
                pass_fds=(*pass_fds, *fds.values()),
                cwd="/",
                umask=_PRIVATE_UMASK,
            )
        child = HeldChild(monitor, _Pipes(info=info, filter=filter_end, block=block))
        try:
            child.begin()
            yield child
        except _Ended:
            child.end()
            raise NotMade(_words(output_path, told_before)) from None
        except BaseException:
            child.end()
            raise


class _Ended(Exception):
    """It has ended by itself, and has said why."""


class HeldChild:
    """See `held_child`."""

    def __init__(self, monitor: "subprocess.Popen[bytes]", pipes: _Pipes) -> None:
        self.pid = 0
        self._monitor = monitor
        self._pipes = pipes

    def begin(self) -> None:
        """Learn its pid."""
        told = b""
        while data := _read(self._pipes.info, _MAX_INFO_BYTES - len(told)):
            told += data
        if not told:
            raise _Ended
        self.pid = msgspec.json.decode(told, type=_Info).child_pid

    def adopt(self) -> ProcessRef:
        """Wait until namespaces and root are made; from then on it is our own child."""
        _wait(self._pipes.block, select.POLLERR)
        if _unread_bytes(self._pipes.block):
            raise _Ended
        self._end_monitor()
        ref = process_ref(self.pid)
        if ref is None:
            raise _Ended
        return ref

    def release(self, system_call_filter: bytes) -> None:
        """Let it execute its program, under a filter (a seccomp program of a few kilobytes)."""
        try:
            os.write(self._pipes.filter, system_call_filter)
        except BrokenPipeError:
            raise _Ended from None

    def end(self) -> None:
        """End it, in whatever state it is."""
        self._end_monitor()
        if self.pid:
            kill_child(self.pid)

    def _end_monitor(self) -> None:
        if self._monitor.returncode is None:
            with adopting_orphans():
                self._monitor.kill()
                self._monitor.wait()


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe's reading and writing end, closed on exec, and with whom they are said to belong to."""
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    reader.callback(os.close, read_end)
    writer.callback(os.close, write_end)
    return read_end, write_end


def _wait(fd: int, event: int) -> None:
    ready = select.poll()
    ready.register(fd, event)
    if not ready.poll(TIMEOUT_S * 1000):
        raise NotMade(f"{PROGRAM}: nothing happened for {TIMEOUT_S:g} s")


def _read(fd: int, limit: int) -> bytes:
    _wait(fd, select.POLLIN)
    return os.read(fd, limit)


def _unread_bytes(pipe_end: int) -> int:
    count = array.array("i", [0])
    fcntl.ioctl(pipe_end, termios.FIONREAD, count)
    return count[0]


def _words(path: str, offset: int) -> str:
    """What it wrote to its output."""
    with open(path, "rb") as f:
        f.seek(offset)
        return (
            f.read(_MAX_WORDS_BYTES).decode("utf-8", "replace").strip() or f"{PROGRAM} ended without a word"
        )
