"""Running a health check's command in a container: with its limits of time and output, and nothing left behind."""

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any

import msgspec

from hutch.host.drivers.container.further import FurtherProcess
from hutch.host.drivers.container.runtime import Runtime
from hutch.host.drivers.contract import ProbeResult
from hutch.host.kernel.run import start_child

MAX_OUTPUT_BYTES = 4096
TIMED_OUT_CODE = 137
_STOP_READING_S = 0.5


async def run_probe(
    runtime: Runtime,
    state: Path,
    container_id: str,
    bundle: Path,
    process: dict[str, Any],
    timeout_s: float,
    further: FurtherProcess,
) -> ProbeResult:
    """`process` is an OCI process object, `further` the same once it runs."""
    document = bundle / "probe.json"
    document.write_bytes(msgspec.json.encode(process))
    further.pid_file.unlink(missing_ok=True)
    command = runtime.command(state, "exec", "--process", str(document), *further.arguments, container_id)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    output = _Output(read_end)
    try:
        try:
            child = await start_child(command, stdout=write_end, stderr=write_end)
        finally:
            os.close(write_end)
        timed_out = False
        try:
            async with asyncio.timeout(timeout_s):
                await child.wait()
        except TimeoutError:
            timed_out = True
        finally:
            if child.returncode is None:
                try:
                    await further.end()
                finally:
                    await child.kill()
        # Something that the command left running may hold the pipe for ever.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STOP_READING_S):
                await output.complete.wait()
    finally:
        output.close()
    text = output.data.decode("utf-8", "replace").encode()[:MAX_OUTPUT_BYTES].decode("utf-8", "ignore")
    code = child.returncode if child.returncode is not None else 255
    if timed_out:
        return ProbeResult(exit_code=TIMED_OUT_CODE, timed_out=True, output=text)
    return ProbeResult(exit_code=code if code >= 0 else 128 - code, output=text)


class _Output:
    """The beginning of what a command writes; the rest is read and dropped."""

    def __init__(self, fd: int) -> None:
        self.data = b""
        self.complete = asyncio.Event()
        self._fd = fd
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)

    def _readable(self) -> None:
        try:
            part = os.read(self._fd, 65536)
        except BlockingIOError:
            return
        if not part:
            self.complete.set()
            asyncio.get_running_loop().remove_reader(self._fd)
        self.data += part[: MAX_OUTPUT_BYTES - len(self.data)]
