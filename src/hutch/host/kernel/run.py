"""The only file that starts processes. Argument lists only, a clean environment, no standard input unless
given.

A failure carries the command line as an operator can paste it, the exit code and the end of what it printed.
"""

import asyncio
import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Self

from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.threads import in_thread

log = get_logger(__name__)

CLEAN_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}
MAX_OUTPUT_BYTES = 1024 * 1024
_READ_BYTES = 65536


class CommandFailed(HutchError):
    """A program ended with a non-zero exit code, was killed, ran out of time or is not installed.

    `returncode` is negative for a signal, 127 if the program does not exist.
    """

    def __init__(
        self, argv: Sequence[str], returncode: int, stdout: bytes, stderr: bytes, timed_out: bool = False
    ) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self.timed_out = timed_out
        tail = (stderr or stdout)[-2000:].decode("utf-8", "replace").strip()
        how = "ran out of time" if timed_out else f"exit code {returncode}"
        super().__init__(f"{argv[0]}: {how}: {tail or 'no output'}")

    @property
    def command_line(self) -> str:
        """The command as an operator can paste it into a shell."""
        return shlex.join(self.argv)


async def run(
    argv: Sequence[str],
    *,
    input_bytes: bytes | None = None,
    timeout_s: float | None = None,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
    dies_with_us: bool = False,
    max_file_bytes: int | None = None,
) -> bytes:
    """Run a program to its end; its standard output, at most `MAX_OUTPUT_BYTES` kept.

    `dies_with_us`: the kernel kills it when this process ends, however that comes. `max_file_bytes`: it can write no
    file beyond that length.

    Raises `CommandFailed`. If the caller is cancelled or the time is up the whole process group is killed
    and reaped.
    """
    limits = ("setpriv", "--pdeathsig", "KILL") if dies_with_us else ()
    if max_file_bytes is not None:
        limits = (*limits, "prlimit", f"--fsize={max_file_bytes}")
    with contextlib.ExitStack() as ours:
        stdout, stderr = ours.enter_context(_Output()), ours.enter_context(_Output())
        given = subprocess.DEVNULL if input_bytes is None else ours.enter_context(_file_with(input_bytes))
        child = await start_child(
            (*limits, *argv),
            stdin=given,
            stdout=stdout.write_end,
            stderr=stderr.write_end,
            environment=environment,
            cwd=cwd,
            pass_fds=pass_fds,
        )
        stdout.read()
        stderr.read()
        try:
            async with asyncio.timeout(timeout_s):
                returncode = await child.wait()
                await stdout.complete.wait()
                await stderr.complete.wait()
        except TimeoutError:
            await child.kill()
            raise CommandFailed(argv, -signal.SIGKILL, b"", stderr.end(), timed_out=True) from None
        except asyncio.CancelledError:
            await child.kill()
            raise
        if returncode != 0:
            failure = CommandFailed(argv, returncode, stdout.beginning(), stderr.end())
            log.debug("command failed", command=failure.command_line, returncode=returncode)
            raise failure
        return stdout.beginning()


class _Output:
    """A pipe for a program's output. Of more than `MAX_OUTPUT_BYTES` the beginning and the end are kept."""

    def __init__(self) -> None:
        self._read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        self.complete = asyncio.Event()
        self._first, self._last = bytearray(), bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._read_end)
        os.close(self._read_end)
        if self.write_end >= 0:
            os.close(self.write_end)

    def read(self) -> None:
        """From now on: the program has the other end, we give ours up."""
        os.close(self.write_end)
        self.write_end = -1
        os.set_blocking(self._read_end, False)
        asyncio.get_running_loop().add_reader(self._read_end, self._readable)

    def beginning(self) -> bytes:
        return bytes(self._first)

    def end(self) -> bytes:
        return bytes(self._first + self._last)[-MAX_OUTPUT_BYTES:]

    def _readable(self) -> None:
        try:
            part = os.read(self._read_end, _READ_BYTES)
        except BlockingIOError:
            return
        if not part:
            asyncio.get_running_loop().remove_reader(self._read_end)
            self.complete.set()
            return
        room = MAX_OUTPUT_BYTES - len(self._first)
        self._first += part[:room]
        self._last = (self._last + part[room:])[-MAX_OUTPUT_BYTES:] if part[room:] else self._last


@contextlib.contextmanager
def _file_with(data: bytes) -> Iterator[int]:
    """A file descriptor that reads as `data`, however long it is."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC)
    try:
        with open(fd, "wb", closefd=False) as f:
            f.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        yield fd
    finally:
        os.close(fd)


class Child:
    """A child process of ours that leads its own process group."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._fd = os.pidfd_open(pid)

    async def wait(self) -> int:
        """Its exit code once it has ended, negative for a signal. One caller at a time."""
        if self.returncode is not None:
            return self.returncode
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._fd, ended.set)
        try:
            await ended.wait()
        finally:
            loop.remove_reader(self._fd)
        try:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:
            # Somebody of ours found it by its name, killed it and waited for it.
            self.returncode = -signal.SIGKILL
        os.close(self._fd)
        return self.returncode

    async def kill(self) -> None:
        """End it and its process group, and reap it, even if the caller is cancelled meanwhile."""
        if self.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        cancelled: asyncio.CancelledError | None = None
        while self.returncode is None:
            try:
                await self.wait()
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled


async def start_child(
    argv: Sequence[str],
    *,
    stdin: int = subprocess.DEVNULL,
    stdout: int,
    stderr: int,
    environment: Mapping[str, str] | None = None,
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
) -> Child:
    """Start a child on these file descriptors; the caller waits for it or kills it. Raises `CommandFailed` if it is not
    installed.

    Not by the event loop: a child of uvloop's gets copies of its pipes under further numbers, and a daemon that does not
    close them keeps everybody waiting who waits for the end of its output.
    """

    started: list[int] = []

    def start() -> None:
        process = subprocess.Popen(
            list(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**CLEAN_ENVIRONMENT, **(environment or {})},
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        process.returncode = 0  # `Child` reaps it
        started.append(process.pid)

    try:
        # The thread uses the caller's file descriptors, so it comes to its end first.
        await in_thread(start)
    except FileNotFoundError:
        raise CommandFailed(argv, 127, b"", f"{argv[0]} is not installed".encode()) from None
    except asyncio.CancelledError:
        for pid in started:
            await Child(pid).kill()
        raise
    return Child(started[0])


def spawn_daemon(
    argv: Sequence[str],
    *,
    output_path: str,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: str | None = None,
    user_id: int | None = None,
    umask: int = -1,
) -> "subprocess.Popen[bytes]":
    """Start a program that outlives us: own session, output appended to a file (mode 0600), nothing else
    inherited but, without `umask`, ours.

    The caller reaps it while it lives (see `hutch.host.kernel.process`) and makes its pid durable. With
    `user_id` it runs as that user and the group of the same number, without supplementary groups (only root
    may ask for this).
    """
    fd = os.open(output_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=fd,
            stderr=fd,
            env={**CLEAN_ENVIRONMENT, **(environment or {})},
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
            close_fds=True,
            user=user_id,
            group=user_id,
            extra_groups=None if user_id is None else [],
            umask=umask,
        )
    except FileNotFoundError:
        raise CommandFailed(argv, 127, b"", f"{argv[0]} is not installed".encode()) from None
    finally:
        os.close(fd)


async def spawn_child(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    output_fd: int | None = None,
) -> asyncio.subprocess.Process:
    """Start a child that lives as long as we want it to; the caller waits for it. Output goes to ours, or to
    a fd."""
    return await asyncio.create_subprocess_exec(
        *argv,
        stdin=subprocess.DEVNULL,
        stdout=output_fd,
        stderr=output_fd,
        env={**CLEAN_ENVIRONMENT, **(environment or {})},
        pass_fds=pass_fds,
        start_new_session=True,
    )
