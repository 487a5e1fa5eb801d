"""What the fake driver's containers run on exec: a few made-up programs, enough to try everything that carries streams.

true, false, echo WORDS    as their namesakes
fail CODE                  ends with that code
warn WORDS                 as echo, on stderr
cat                        gives back its input; a terminal shows it too, and Ctrl-C (3) ends it with 130
size                       the terminal's rows and columns, and again each time that they change, until its input ends
flood BYTES                writes so many bytes
sleep                      runs until it is signalled
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from hutch.host.drivers.contract import DriverError, SandboxGone
from hutch.model.exec import STDERR, STDOUT, ExecSpec

WINDOW_CHUNKS = 8
CHUNK_BYTES = 16 * 1024
PROGRAMS = frozenset(("true", "false", "echo", "fail", "warn", "cat", "size", "flood", "sleep"))
_INTERRUPT = b"\x03"


class FakeExec:
    """Implements `ExecStream`. `sandbox_ended` is the sandbox's end."""

    def __init__(self, spec: ExecSpec, sandbox_ended: asyncio.Event) -> None:
        self._spec = spec
        self._sandbox_ended = sandbox_ended
        self._input: asyncio.Queue[bytes] = asyncio.Queue(WINDOW_CHUNKS)
        self._output: asyncio.Queue[tuple[int, bytes] | None] = asyncio.Queue(WINDOW_CHUNKS)
        self._sizes: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        self._exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._code = 0
        self._watch = asyncio.create_task(self._watch_sandbox())
        self._program = asyncio.create_task(self._run())
        if not spec.stdin and not spec.tty:
            self._input.put_nowait(b"")

    async def write(self, data: bytes) -> None:
        """Input."""
        if data and not self._exit_code.done():
            await self._unless_over(self._input.put(data))

    async def close_input(self) -> None:
        """The end of input."""
        if not self._spec.tty and not self._exit_code.done():
            await self._unless_over(self._input.put(b""))

    async def _unless_over(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        futures: set[asyncio.Future[Any]] = {task, self._exit_code}
        await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
        task.cancel()

    async def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size."""
        if self._spec.tty:
            self._sizes.put_nowait((rows, cols))

    async def signal(self, number: int) -> None:
        """Ends the process, whichever it is."""
        self._end(128 + number)

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What it writes."""
        while True:
            getting = asyncio.ensure_future(self._output.get())
            futures: set[asyncio.Future[Any]] = {getting, self._exit_code}
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED)
            if not getting.done():
                getting.cancel()
                return
            if (item := getting.result()) is None:
                if not self._exit_code.done():
                    self._exit_code.set_result(self._code)
                return
            yield item

    async def wait(self) -> int:
        """Its exit code."""
        return await asyncio.shield(self._exit_code)

    async def close(self) -> None:
        """End it."""
        self._end(129)
        self._watch.cancel()
        await asyncio.gather(self._program, self._watch, return_exceptions=True)
        self._exit_code.exception()

    def _end(self, code: int) -> None:
        self._program.cancel()
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    async def _watch_sandbox(self) -> None:
        await self._sandbox_ended.wait()
        self._program.cancel()
        if not self._exit_code.done():
            self._exit_code.set_exception(SandboxGone("SandboxGone", "the sandbox ended"))

    async def _run(self) -> None:
        self._code = await self._main(self._spec.command[0], self._spec.command[1:])
        # The exit code is known once this is read: after all output, as the contract has it.
        await self._output.put(None)

    async def _main(self, program: str, words: tuple[str, ...]) -> int:
        if program in ("echo", "warn"):
            await self._say(" ".join(words).encode() + b"\n", STDERR if program == "warn" else STDOUT)
        elif program == "cat":
            return await self._cat(words)
        elif program == "size":
            return await self._size()
        elif program == "flood":
            left = int(words[0])
            while left > 0:
                await self._say(b"x" * min(left, CHUNK_BYTES))
                left -= CHUNK_BYTES
        elif program == "sleep":
            await asyncio.Event().wait()
        return {"false": 1, "fail": int(words[0]) if words and program == "fail" else 0}.get(program, 0)

    async def _cat(self, words: tuple[str, ...]) -> int:
        if words:
            await self._say(" ".join(words).encode() + b"\n")
        while data := await self._input.get():
            if self._spec.tty and _INTERRUPT in data:
                await self._say(b"^C\r\n")
                return 130
            await self._say(data)
        return 0

    async def _size(self) -> int:
        rows, cols = self._spec.rows, self._spec.cols
        ended = asyncio.ensure_future(self._input.get())
        while True:
            await self._say(f"{rows} {cols}\n".encode())
            changed = asyncio.ensure_future(self._sizes.get())
            await asyncio.wait({ended, changed}, return_when=asyncio.FIRST_COMPLETED)
            if not changed.done():
                changed.cancel()
                return 0
            rows, cols = changed.result()

    async def _say(self, data: bytes, stream: int = STDOUT) -> None:
        await self._output.put((STDOUT if self._spec.tty else stream, data))


def open_exec(spec: ExecSpec, sandbox_ended: asyncio.Event) -> FakeExec:
    """Raises `DriverError` for a program that there is not."""
    if not spec.command or spec.command[0] not in PROGRAMS:
        raise DriverError("ExecNotFound", f"the command can't be run: {spec.command[:1]} is not found")
    return FakeExec(spec, sandbox_ended)
