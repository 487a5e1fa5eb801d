"""A small client of QEMU's monitor protocol (QMP): commands, and the one event that matters, SHUTDOWN."""

import asyncio
import contextlib
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

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command; its `return` value. Raises `QmpError`."""
        async with self._one_at_a_time:
            if self._task.done():
                raise QmpError("QEMU's monitor is closed")
            document: dict[str, Any] = {"execute": command}
            if arguments:
                document["arguments"] = arguments
            self._writer.write(msgspec.json.encode(document) + b"\n")
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
            self._writer.close()

    def _take(self, line: bytes) -> None:
        document = msgspec.json.decode(line, type=dict[str, Any])
        if "return" in document or "error" in document:
            self._answers.put_nowait(document)
        elif document.get("event") == "SHUTDOWN":
            data = document.get("data")
            self._on_shutdown(str(data.get("reason", "")) if isinstance(data, dict) else "")

    async def close(self) -> None:
        """Hang up; the VM goes on."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
