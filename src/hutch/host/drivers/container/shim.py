"""conmon, the process that stands by each container: it holds the container's output and tells how it ended.

It outlives the host agent. What it leaves in a start's directory: `exit/<container id>` with the exit code, written when
the container has ended and its output is in the log file; then it ends itself, which is what the driver waits for.
"""

import asyncio
import json
import os
from pathlib import Path

import msgspec

from hutch.base.errors import HutchError
from hutch.base.threads import in_thread
from hutch.host.kernel.process import ProcessRef, kill_and_wait, process_ref
from hutch.host.kernel.run import spawn_daemon
from hutch.rules.logdrivers.files import HOST_BOUNDS

MAX_ANSWER_BYTES = 64 * 1024
_TAIL_BYTES = 4000


class ShimFailed(HutchError):
    """conmon or the runtime that it called could not make the container; the message is the runtime's."""


class ShimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A container to be made by `<runtime> create`. `bundle` holds its config.json and takes conmon's files."""

    conmon: str
    runtime: str
    runtime_arguments: tuple[str, ...]
    container_id: str
    name: str
    bundle: Path
    log: Path
    tty: bool = False
    """It gets a terminal, whose output conmon logs."""
    interactive: bool = False
    """Its standard input stays open."""
    max_log_bytes: int = HOST_BOUNDS.max_bytes
    """conmon begins its file anew when it is full: what was in it is gone, but for readers that have it open."""


class MadeContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container that waits to be started, and the conmon that watches it."""

    shim: ProcessRef
    init_pid: int


def shim_command(request: ShimRequest) -> list[str]:
    """The command line of conmon."""
    arguments = [word for argument in request.runtime_arguments for word in ("--runtime-arg", argument)]
    return [
        request.conmon,
        "--api-version", "1",
        "--sync",
        "--cid", request.container_id,
        "--cuuid", request.container_id,
        "--name", request.name,
        "--runtime", request.runtime,
        *arguments,
        "--bundle", str(request.bundle),
        "--container-pidfile", str(request.bundle / "pid"),
        "--exit-dir", str(request.bundle / "exit"),
        "--log-path", f"k8s-file:{request.log}",
        "--log-size-max", str(request.max_log_bytes),
        "--log-level", "error",
        "--no-sync-log",
        "--full-attach",
        *(["--terminal"] if request.tty else []),
        *(["--stdin"] if request.interactive else []),
    ]  # fmt: skip


async def launch(request: ShimRequest) -> MadeContainer:
    """Start conmon and wait until the runtime has made the container. Raises `ShimFailed`; then, and when it is
    cancelled, conmon is ended, and what the runtime made is left to the caller to remove."""
    answer, told = os.pipe2(os.O_CLOEXEC)
    try:
        try:
            shim = await _spawned(request, told)
        finally:
            os.close(told)
        try:
            line = await _read_line(answer)
            init_pid = _init_pid(line, request)
        except BaseException:
            await kill_and_wait(shim)
            raise
    finally:
        os.close(answer)
    return MadeContainer(shim=shim, init_pid=init_pid)


async def _spawned(request: ShimRequest, told: int) -> ProcessRef:
    """Start conmon from a thread, which is waited for in any case: it uses the caller's file descriptor."""
    spawned: list[ProcessRef] = []
    try:
        await in_thread(lambda: spawned.append(_spawn(request, told)))
    except asyncio.CancelledError:
        for shim in spawned:
            await kill_and_wait(shim)
        raise
    return spawned[0]


def _spawn(request: ShimRequest, told: int) -> ProcessRef:
    process = spawn_daemon(
        shim_command(request),
        output_path=str(request.bundle / "conmon.log"),
        cwd=str(request.bundle),  # where it leaves a file named "oom" when the OOM killer has been there
        environment={"_OCI_SYNCPIPE": str(told)},
        pass_fds=(told,),
    )
    # Reaped through its pid (`wait_gone`), also by an agent that did not start it.
    process.returncode = 0
    ref = process_ref(process.pid)
    if ref is None:
        raise ShimFailed(f"conmon ended at once: {_tail(request.bundle / 'conmon.log')}")
    return ref


async def _read_line(fd: int) -> bytes:
    """What conmon tells of the creation, one line; "" if it ended without a word."""
    os.set_blocking(fd, False)
    loop, readable = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(fd, readable.set)
    data = b""
    try:
        while b"\n" not in data and len(data) < MAX_ANSWER_BYTES:
            await readable.wait()
            readable.clear()
            try:
                part = os.read(fd, MAX_ANSWER_BYTES)
            except BlockingIOError:
                continue
            if not part:
                break
            data += part
    finally:
        loop.remove_reader(fd)
    return data


def _init_pid(line: bytes, request: ShimRequest) -> int:
    try:
        answer = json.loads(line)
        pid = int(answer["data"])
    except (ValueError, KeyError, TypeError):
        raise ShimFailed(_tail(request.bundle / "conmon.log") or "conmon ended without a word") from None
    if pid <= 0:
        raise ShimFailed(
            str(answer.get("message", "")).strip()[:_TAIL_BYTES] or f"the runtime failed ({pid})"
        )
    return pid


def exit_code(bundle: Path, container_id: str) -> tuple[int, float] | None:
    """How the container ended, and when; None if conmon has not told (yet)."""
    path = bundle / "exit" / container_id
    try:
        return int(path.read_text().strip()), path.stat().st_mtime
    except (FileNotFoundError, ValueError):
        return None


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-_TAIL_BYTES:].decode("utf-8", "replace").strip()
    except FileNotFoundError:
        return ""
