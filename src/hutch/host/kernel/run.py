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
from collections.abc import Mapping, Sequence

from hutch.base.errors import HutchError
from hutch.base.log import get_logger

log = get_logger(__name__)

CLEAN_ENVIRONMENT: Mapping[str, str] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
}
MAX_OUTPUT_BYTES = 1024 * 1024


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
) -> bytes:
    """Run a program to its end; its standard output, at most `MAX_OUTPUT_BYTES` kept.

    Raises `CommandFailed`. If the caller is cancelled or the time is up the whole process group is killed
    and reaped.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=subprocess.PIPE if input_bytes is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**CLEAN_ENVIRONMENT, **(environment or {})},
            cwd=cwd,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise CommandFailed(argv, 127, b"", f"{argv[0]} is not installed".encode()) from None
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await process.communicate(input_bytes)
    except TimeoutError:
        await _kill_group(process)
        raise CommandFailed(argv, -signal.SIGKILL, b"", b"", timed_out=True) from None
    except asyncio.CancelledError:
        await _kill_group(process)
        raise
    if process.returncode != 0:
        failure = CommandFailed(
            argv, process.returncode or 0, stdout[:MAX_OUTPUT_BYTES], stderr[-MAX_OUTPUT_BYTES:]
        )
        log.debug("command failed", command=failure.command_line, returncode=process.returncode)
        raise failure
    return stdout[:MAX_OUTPUT_BYTES]


async def _kill_group(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()


def spawn_daemon(
    argv: Sequence[str],
    *,
    output_path: str,
    environment: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    cwd: str | None = None,
    user_id: int | None = None,
) -> "subprocess.Popen[bytes]":
    """Start a program that outlives us: own session, output appended to a file (mode 0600), nothing else
    inherited.

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
