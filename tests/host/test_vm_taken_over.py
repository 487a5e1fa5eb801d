"""Taking over a VM that an earlier agent started, with the guest's end of the conversation played by the test."""

import asyncio
import json
import os
import socket
from pathlib import Path
from typing import Any

from tests.support.fleet_control import make_container, make_task

from hutch.base.clock import SystemClock
from hutch.host.drivers.contract import Attachment, ContainerExited, SandboxSpec
from hutch.host.drivers.microvm.ending import Traces
from hutch.host.drivers.microvm.sandbox import Sandbox
from hutch.host.drivers.microvm.vm import VmFiles
from hutch.host.guestlink.session import GuestSession
from hutch.host.kernel.process import process_ref
from hutch.wire.guest import CONTROL, PROTOCOL_VERSION, FrameDecoder, encode_frame
from hutch.wire.guest_documents import HelloAnswer

ID = "0123456789abcdef0123456789abcdef"
EXIT = {"event": "container_exited", "seq": 1, "name": "app", "number": 1, "exit_code": 3, "time_ns": 1}


class Guest:
    """Says that its container runs, and in the same breath that it has ended. `acknowledged`: events that it may forget."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._exited = False
        self.acknowledged: list[int] = []

    async def run(self) -> None:
        reader, writer = await asyncio.open_connection(sock=self._channel)
        decoder = FrameDecoder()
        while data := await reader.read(65536):
            for frame in decoder.feed(data):
                request = json.loads(frame.payload)
                if request["op"] == "event_ack":
                    self.acknowledged.append(request["seq"])
                elif request["op"] in ("hello", "state"):
                    writer.write(self._answer(request["id"]))
                    if not self._exited:
                        self._exited = True
                        writer.write(encode_frame(CONTROL, 0, json.dumps(EXIT).encode()))

    def _answer(self, request_id: int) -> bytes:
        status = {"status": "exited", "exit_code": 3} if self._exited else {"status": "running"}
        ok = {"version": PROTOCOL_VERSION, "containers": [{"name": "app", "number": 1, **status}]}
        return encode_frame(CONTROL, 0, json.dumps({"id": request_id, "ok": ok}).encode())


class Vm(Sandbox):
    """Without a monitor; its process is the test's own."""

    def __init__(self, spec: SandboxSpec, channel: socket.socket) -> None:
        ref = process_ref(os.getpid())
        assert ref is not None
        super().__init__(spec, VmFiles(spec.directory), ref, SystemClock(), is_new=False)
        self._channel = channel

    async def _attach(self, hello_timeout_s: float) -> HelloAnswer:
        streams = await asyncio.open_connection(sock=self._channel)
        self._session = GuestSession.over(
            streams, logs=self._logs, on_exit=self._exited, first_id=self._first_id
        )
        return await self._hello(hello_timeout_s)

    async def save_console(self) -> None:
        raise NotImplementedError

    def _traces(self, exit_code: int | None) -> Traces:
        raise NotImplementedError

    async def _close_monitor(self) -> None:
        return None


async def test_an_exit_between_the_greeting_and_the_taking_over_is_told(tmp_path: Path) -> None:
    ours, guests = socket.socketpair()
    guest = Guest(guests)
    playing = asyncio.create_task(guest.run())
    VmFiles(str(tmp_path)).logs.parent.mkdir(parents=True, exist_ok=True)
    spec: Any = SandboxSpec(
        task=make_task(ID, make_container("app")),
        directory=str(tmp_path),
        images={},
        attachment=Attachment(),
    )
    vm = Vm(spec, ours)
    async with asyncio.timeout(20):
        answer = await vm.attach(hello_timeout_s=10)
        assert [c.status for c in answer.containers] == ["running"]
        # A request's answer comes after all that the guest said before it.
        await vm.greet(timeout_s=10)
        assert guest.acknowledged == []  # nobody has been told yet
        await vm.take_over(answer.containers)
        event = await anext(vm.events())
    assert isinstance(event, ContainerExited)
    assert (event.container, event.status.exit_code) == ("app", 3)
    await vm.release()
    playing.cancel()
