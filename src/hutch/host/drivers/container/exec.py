"""Further processes in a shared-kernel container, by the runtime's own `exec`.

The runtime stays beside the process for as long as it runs: it hands on the exit code and, with a terminal, copies between
the container's terminal and one of ours (so that what the process sees is a terminal of its container). It dies with us.
"""

import asyncio
import contextlib
import os
import signal as signals
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from hutch.host.drivers.container.box import Box, Start
from hutch.host.drivers.container.further import FurtherProcess
from hutch.host.drivers.container.runtime import Runtime
from hutch.host.drivers.exec_process import exec_fault
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.kernel.run import Child, start_child
from hutch.host.kernel.terminal import open_terminal, set_terminal_size
from hutch.model.exec import STDERR, STDOUT, ExecSpec

READ_BYTES = 16 * 1024
GRACE_S = 2.0
_TAKE_TERMINAL = ("sh", "-c", 'exec <>/proc/self/fd/0 "$@"', "sh")
"""runsc gives the process our terminal itself, whose signals (Ctrl-C, a new size) go to runsc, which hands them on: it must
be the terminal that controls runsc's session. A session's leader gets it by opening it."""


async def open_exec(
    runtime: Runtime,
    box: Box,
    start: Start,
    process: dict[str, Any],
    spec: ExecSpec,
    further: FurtherProcess,
) -> "ContainerExec":
    """`process` is an OCI process object, `further` the same once it runs; beside its pid's file lie the others."""
    directory = further.pid_file.parent
    document = directory / "process.json"
    document.write_bytes(msgspec.json.encode(process))
    tty: tuple[str, ...] = ("--tty",) if spec.tty and not runtime.is_gvisor else ()
    before = _TAKE_TERMINAL if spec.tty and runtime.is_gvisor else ()
    command = (
        *(*before, "setpriv", "--pdeathsig", "KILL", runtime.path, *runtime.arguments(box.places.runtime)),
        *("--log", str(directory / "log"), "exec", "--process", str(document)),
        *(*further.arguments, *tty, start.runtime_id),
    )
    pipes = _Terminal(spec) if spec.tty else _Pipes(spec)
    try:
        child = await start_child(
            command, stdin=pipes.theirs[0], stdout=pipes.theirs[1], stderr=pipes.theirs[2]
        )
    except BaseException:
        pipes.close()
        raise
    finally:
        pipes.close_theirs()
    return ContainerExec(box, child, pipes, further)


class _Pipes:
    """Standard streams without a terminal."""

    def __init__(self, spec: ExecSpec) -> None:
        self.stdin = -1
        self.master = -1
        reading = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        if spec.stdin:
            os.close(reading)
            reading, self.stdin = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(self.stdin, False)
        out, out_end = os.pipe2(os.O_CLOEXEC)
        err, err_end = os.pipe2(os.O_CLOEXEC)
        for fd in (out, err):
            os.set_blocking(fd, False)
        self.outputs = {out: STDOUT, err: STDERR}
        self.theirs: tuple[int, int, int] = (reading, out_end, err_end)

    def close_theirs(self) -> None:
        for fd in set(self.theirs):
            os.close(fd)

    def close(self) -> None:
        for fd in {*self.outputs, self.stdin} - {-1}:
            os.close(fd)
        self.outputs, self.stdin, self.master = {}, -1, -1


class _Terminal(_Pipes):
    """The three on one terminal."""

    def __init__(self, spec: ExecSpec) -> None:
        self.master, slave = open_terminal(spec.rows, spec.cols)
        self.stdin = self.master
        self.outputs = {self.master: STDOUT}
        self.theirs = (slave, slave, slave)


class ContainerExec:
    """Implements `ExecStream`. Made by `open_exec`."""

    def __init__(
        self,
        box: Box,
        child: Child,
        pipes: _Pipes,
        further: FurtherProcess,
    ) -> None:
        self._box = box
        self._child = child
        self._pipes = pipes
        self._further = further
        self._directory = further.pid_file.parent
        self._writing = asyncio.Lock()
        self._ended = asyncio.create_task(child.wait())
        self._news = asyncio.Event()
        self._ended.add_done_callback(lambda _: self._news.set())

    async def write(self, data: bytes) -> None:
        """Input; returns when the kernel has taken all of it, or the process has ended."""
        async with self._writing:
            while data and self._pipes.stdin >= 0 and not self._ended.done():
                try:
                    data = data[os.write(self._pipes.stdin, data) :]
                except BlockingIOError:
                    await self._writable(self._pipes.stdin)
                except OSError:
                    self._close_stdin()

    async def _writable(self, fd: int) -> None:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        loop.add_writer(fd, ready.set)
        try:
            waiting = asyncio.ensure_future(ready.wait())
            await asyncio.wait({waiting, self._ended}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        finally:
            loop.remove_writer(fd)

    async def close_input(self) -> None:
        """The end of input."""
        async with self._writing:
            if self._pipes.master < 0:
                self._close_stdin()

    def _close_stdin(self) -> None:
        fd, self._pipes.stdin = self._pipes.stdin, -1
        if fd >= 0 and fd != self._pipes.master:
            os.close(fd)

    async def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size; the runtime is told to hand it on."""
        if self._pipes.master >= 0 and not self._ended.done():
            set_terminal_size(self._pipes.master, rows, cols)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._child.pid, signals.SIGWINCH)

    async def signal(self, number: int) -> None:
        """Send the process a signal."""
        await self._wait_for_pid()
        if not self._ended.done():
            await self._further.signal(number)

    async def _wait_for_pid(self) -> None:
        """The runtime tells the pid a moment after the process began to run."""
        if self._further.pid or self._ended.done():
            return
        watcher = FileWatcher()
        watch = watcher.watch(self._directory)
        try:
            while not self._further.pid and not self._ended.done():
                changed = asyncio.ensure_future(watch.changed.wait())
                futures: set[asyncio.Future[Any]] = {changed, self._ended}
                await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                watch.changed.clear()
        finally:
            watch.close()
            watcher.close()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What it writes; nothing is read before the caller comes for it."""
        loop = asyncio.get_running_loop()
        while self._pipes.outputs:
            self._news.clear()
            # In this order: what was written before the end is there to be read after it.
            ended = self._ended.done()
            for fd, stream in list(self._pipes.outputs.items()):
                while data := self._read(fd, ended):
                    yield stream, data
            if not self._pipes.outputs or ended:
                return
            for fd in self._pipes.outputs:
                loop.add_reader(fd, self._news.set)
            try:
                await self._news.wait()
            finally:
                for fd in self._pipes.outputs:
                    loop.remove_reader(fd)
        await asyncio.wait({self._ended})

    def _read(self, fd: int, ended: bool) -> bytes:
        """What there is; nothing if there is nothing now. A stream that has come to its end is closed."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            if not ended:
                return b""
            data = b""
        except OSError:
            data = b""  # a terminal whose other end is closed
        if not data:
            del self._pipes.outputs[fd]
            if fd == self._pipes.master:
                self._pipes.master = self._pipes.stdin = -1
            os.close(fd)
        return data

    async def wait(self) -> int:
        """The exit code; `SandboxGone` if the sandbox ends first."""
        code = await self._box.while_alive(self._exit_code())
        # Killed with the sandbox, perhaps while the runtime still set it up.
        if code and self._box.is_over:
            raise self._box.gone()
        failure = self._failure() if code else ""
        if failure:
            raise exec_fault(failure)
        return code if code >= 0 else 128 - code

    async def _exit_code(self) -> int:
        return await asyncio.shield(self._ended)

    def _failure(self) -> str:
        """What the runtime could not do, in its words."""
        try:
            lines = (self._directory / "log").read_bytes()[-4096:].decode("utf-8", "replace").splitlines()
        except FileNotFoundError:
            return ""
        line = next((line for line in reversed(lines) if line.strip()), "")
        try:
            return str(msgspec.json.decode(line)["msg"])  # runsc's way
        except (msgspec.DecodeError, KeyError, TypeError):
            return line

    async def close(self) -> None:
        """Hang up on the process, and kill it and its session if it goes on."""
        try:
            if not self._ended.done():
                await self._further.hang_up()
                await asyncio.wait({self._ended}, timeout=GRACE_S)
        finally:
            try:
                if not self._ended.done():
                    await self._further.end()
            finally:
                if not self._ended.done():
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(self._child.pid, signals.SIGKILL)
                self._pipes.close()
                self._box.remove_exec_directory(self._directory)
        await asyncio.wait({self._ended})
