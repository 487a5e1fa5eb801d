"""A small client of QEMU's monitor protocol (QMP): commands, with descriptors if need be, and the two events that
matter: SHUTDOWN and MIGRATION."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.host.guestlink.unix import connect_unix

log = get_logger(__name__)
MAX_LINE_BYTES = 1024 * 1024
COMMAND_TIMEOUT_S = 10.0


class QmpError(HutchError):
    """QEMU refused a command, did not answer in time, or is gone."""


class Qmp:
    """A connection to one VM's monitor. `on_shutdown(reason)` is called when the guest has ended, with
    QEMU's word for how: "guest-shutdown", "guest-reset", "guest-panic" ..."""

    def __init__(
        self,
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        on_shutdown: Callable[[str], None],
    ) -> None:
        self._reader, self._writer = streams
        self._on_shutdown = on_shutdown
        self._answers: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._one_at_a_time = asyncio.Lock()
        self._migrations: asyncio.Queue[str] = asyncio.Queue()
        self._task = asyncio.create_task(self._listen(), name="qmp")

    @classmethod
    async def connect(cls, path: Path, on_shutdown: Callable[[str], None]) -> "Qmp":
        """Connect and agree on capabilities. Raises `QmpError`."""
        try:
            streams = await connect_unix(path, limit=MAX_LINE_BYTES)
        except OSError as error:
            raise QmpError(f"QEMU's monitor can't be reached: {error.strerror}") from None
        qmp = cls(streams, on_shutdown)
        try:
            await qmp.execute("qmp_capabilities")
        except BaseException:
            await qmp.close()
            raise
        return qmp

    async def execute(self, command: str, *, pass_fd: int | None = None, **arguments: Any) -> Any:
        """Run a command; its `return` value. `pass_fd`: a descriptor that QEMU gets a copy of (`getfd`, `add-fd`).
        Raises `QmpError`."""
        async with self._one_at_a_time:
            if self._task.done():
                raise QmpError("QEMU's monitor is closed")
            # QMP's names have dashes where Python's have underscores.
            document: dict[str, Any] = {"execute": command}
            if arguments:
                document["arguments"] = {name.replace("_", "-"): value for name, value in arguments.items()}
            self._send(msgspec.json.encode(document) + b"\n", pass_fd)
            try:
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    answer = await self._answers.get()
            except TimeoutError:
                # An answer that still comes would be taken for the next command's.
                self._task.cancel()
                raise QmpError(f"QEMU did not answer {command} within {COMMAND_TIMEOUT_S:g} s") from None
        if answer is None:
            raise QmpError(f"QEMU's monitor closed during {command}")
        if "return" not in answer:
            raise QmpError(f"QEMU refused {command}: {str(answer.get('error', {}))[:500]}")
        return answer["return"]

    def _send(self, line: bytes, pass_fd: int | None) -> None:
        if pass_fd is None:
            self._writer.write(line)
            return
        # Nothing is on its way: commands go one at a time, each after the answer to the one before.
        own = self._writer.get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(own)) as connection:
            try:
                sent = socket.send_fds(connection, [line], [pass_fd])
            except OSError as error:
                raise QmpError(f"QEMU's monitor does not take a descriptor: {error.strerror}") from None
        self._writer.write(line[sent:])

    async def migration_outcome(self, timeout_s: float) -> str:
        """The word for how the migration ended that was begun on this connection: "completed", "failed", "cancelled".
        Needs the capability "events". Raises `QmpError`."""
        try:
            async with asyncio.timeout(timeout_s):
                while (status := await self._migrations.get()) not in ("completed", "failed", "cancelled"):
                    if not status:
                        raise QmpError("QEMU's monitor closed during a migration")
                return status
        except TimeoutError:
            raise QmpError(f"the migration took longer than {timeout_s:g} s") from None

    async def _listen(self) -> None:
        try:
            while line := await self._reader.readline():
                self._take(line)
        except OSError:
            log.debug("QEMU's monitor closed")
        except (ValueError, msgspec.MsgspecError) as error:
            log.warning("QEMU's monitor broke", reason=str(error)[:200])
        finally:
            self._answers.put_nowait(None)
            self._migrations.put_nowait("")
            self._writer.close()

    def _take(self, line: bytes) -> None:
        document = msgspec.json.decode(line, type=dict[str, Any])
        if "return" in document or "error" in document:
            self._answers.put_nowait(document)
            return
        data = document.get("data")
        given = data if isinstance(data, dict) else {}
        if document.get("event") == "SHUTDOWN":
            self._on_shutdown(str(given.get("reason", "")))
        elif document.get("event") == "MIGRATION":
            self._migrations.put_nowait(str(given.get("status", "")))

    async def close(self) -> None:
        """Hang up; the VM goes on."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
