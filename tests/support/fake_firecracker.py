"""A stand-in for Firecracker where there is no KVM. It takes nothing that Firecracker's own description of its API does not
allow, keeps the order of things, and runs the guest in QEMU's emulation: the real kernel, agent, disks and containers. Of
Firecracker itself nothing is in it: what is proven with it is our end of the API, and not that Firecracker runs our guest.

    fake_firecracker.py --dials JSON --binds JSON --guest-pid FILE --id NAME --api-sock PATH ...

What differs: the agent's channel is a virtio port behind a relay that speaks Firecracker's vsock handshake; a snapshot holds
the VM's configuration, and restoring one boots it anew, with the disks and the tap that are there then.
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]
# Not this directory, which has a `platform` of its own.
sys.path[:1] = [str(REPO), str(REPO / "src")]

import httptools  # noqa: E402
from tests.support.firecracker_api import ApiDocument, Refused  # noqa: E402

from hutch.base.clock import SystemClock  # noqa: E402
from hutch.host.drivers.microvm.qemu import Disk, VmSpec, disk_slots, inherited_fds, qemu_argv  # noqa: E402
from hutch.host.kernel.tap import open_tap  # noqa: E402
from hutch.host.kernel.tsc import host_tsc_khz  # noqa: E402

PR_SET_PDEATHSIG = 1
ELF = b"\x7fELF"


class Dials:
    """How it shall behave, for tests. `fail`: by "METHOD /path", the words of a refusal; `die_at`: a request at which it
    exits with code 1; `guest`: qemu, or none (it never comes up)."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.version: str = given.get("version", "1.12.0")
        self.fail: dict[str, str] = given.get("fail", {})
        self.die_at: str = given.get("die_at", "")
        self.hang_at: str = given.get("hang_at", "")
        self.guest: str = given.get("guest", "qemu")
        self.record: str = given.get("record", "")


class Jail:
    """Places in the jail, as files of the host."""

    def __init__(self, binds: list[tuple[str, str, bool]]) -> None:
        self._binds = binds

    def find(self, place: str, *, writable: bool = False) -> Path:
        """The host's file. Raises `Refused`."""
        if re.fullmatch(r"/proc/self/fd/\d+", place):
            return Path(place)
        for source, at, may_write in self._binds:
            if place == at or place.startswith(f"{at}/"):
                if writable and not may_write:
                    raise Refused(f"{place}: Read-only file system (os error 30)")
                return Path(source + place[len(at) :])
        if place.startswith("/disks/") and not writable:
            return Path("/dev/null")  # the placeholder: an empty file
        raise Refused(f"{place}: No such file or directory (os error 2)")

    def listen(self, place: str) -> socket.socket:
        """A listening socket at a place."""
        path = self.find(place, writable=True)
        directory = os.open(path.parent, os.O_PATH)
        made = socket.socket(socket.AF_UNIX)
        made.bind(f"/proc/self/fd/{directory}/{path.name}")
        made.listen(8)
        os.close(directory)
        return made


class Guest:
    """The VM, run by QEMU."""

    def __init__(self, name: str, jail: Jail, configured: dict[str, Any], pid_file: str) -> None:
        self._name, self._jail, self._configured, self._pid_file = name, jail, configured, pid_file
        self._agent_address = ""
        self.is_up = asyncio.Event()

    async def run(self) -> int:
        """Boot, and return QEMU's exit code when it has ended."""
        agent, monitor = _listener(), _listener()
        self._agent_address = agent.getsockname()
        given = self._configured["drives"].values()
        drives = [d for d in given if self._jail.find(d["path_on_host"]) != Path("/dev/null")]
        drives.sort(key=lambda d: int(d["drive_id"].removeprefix("disk")))
        files = [self._jail.find(d["path_on_host"]) for d in drives]
        fds = [
            os.open(f, os.O_RDONLY if d["is_read_only"] else os.O_RDWR)
            for f, d in zip(files, drives, strict=True)
        ]
        boot, machine = self._configured["boot-source"], self._configured["machine-config"]
        networks = list(self._configured["network-interfaces"].values())
        spec = VmSpec(
            name=self._name,
            accelerator="tcg",
            vcpus=machine["vcpu_count"],
            memory_mib=machine["mem_size_mib"],
            kernel_fd=os.open(self._jail.find(boot["kernel_image_path"]), os.O_RDONLY),
            initrd_fd=os.open(self._jail.find(boot["initrd_path"]), os.O_RDONLY),
            agent_fd=agent.fileno(),
            qmp_fd=monitor.fileno(),
            disks=tuple(Disk(fd=fd, read_only=d["is_read_only"]) for fd, d in zip(fds, drives, strict=True)),
            disk_slots=disk_slots(len(drives)),
            tap_fd=open_tap(networks[0]["host_dev_name"]) if networks else None,
        )
        argv = _as_firecracker(
            qemu_argv(spec), files, boot["boot_args"], await host_tsc_khz(SystemClock()) or 0
        )
        process = await asyncio.create_subprocess_exec(
            *argv, pass_fds=inherited_fds(spec), preexec_fn=_die_with_parent, stdin=asyncio.subprocess.DEVNULL
        )
        if self._pid_file:
            Path(self._pid_file).write_text(str(process.pid))
        watching = asyncio.create_task(self._watch_port(monitor.getsockname()))
        try:
            return await process.wait()
        finally:
            watching.cancel()

    async def _watch_port(self, address: str) -> None:
        """Set `is_up` when the agent has opened its port."""
        reader, writer = await asyncio.open_unix_connection(address)
        writer.write(b'{"execute": "qmp_capabilities"}\n')
        async for line in reader:
            told = json.loads(line)
            if told.get("event") == "VSERPORT_CHANGE" and told["data"]["open"]:
                self.is_up.set()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The agent's channel."""
        return await asyncio.open_unix_connection(self._agent_address)


def _listener() -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(f"\0fake-firecracker-{os.getpid()}-{made.fileno()}")
    made.listen(1)
    return made


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _as_firecracker(argv: list[str], files: list[Path], boot_args: str, tsc_khz: int) -> list[str]:
    """Our QEMU command line with what Firecracker does otherwise: serials, the end of the guest, the console."""
    words = [w for w in boot_args.split() if not w.startswith(("hutch_vsock=", "reboot="))]
    words += ["reboot=t", "no_timer_check", "mitigations=off", "tsc=reliable", f"tsc_early_khz={tsc_khz}"]
    made = list(argv)
    made[made.index("-append") + 1] = " ".join(words)
    made[made.index("-action") + 1] = "reboot=shutdown,shutdown=poweroff"
    port = "virtserialport,chardev=agent,name=hutch.agent"
    # Of a port without an id QEMU does not tell when it is opened.
    made[made.index(port)] = f"{port},id=agent"
    made[made.index("-serial") - 1] = "stdio,id=console,signal=off"
    for index, file in enumerate(files):
        status = file.stat()
        serial = f"{status.st_dev}{status.st_rdev}{status.st_ino}"[:20]
        at = made.index(f"virtio-blk-device,drive=disk{index},serial=disk{index}")
        made[at] = f"virtio-blk-device,drive=disk{index},serial={serial}"
    return made


class FakeFirecracker:
    """One process: one API, at most one VM."""

    def __init__(self, name: str, jail: Jail, dials: Dials, guest_pid_file: str) -> None:
        self._name, self._jail, self._dials, self._guest_pid_file = name, jail, dials, guest_pid_file
        self._document = ApiDocument()
        self._state = "Not started"
        self._configured: dict[str, Any] = {"drives": {}, "network-interfaces": {}}
        self._is_restored = False
        self._guest: Guest | None = None
        self._running: asyncio.Task[None] | None = None
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def answer(self, method: str, path: str, text: bytes) -> tuple[int, dict[str, Any]]:
        """Status and document for a request."""
        what = f"{method} {path}"
        try:
            body = json.loads(text) if text else None
            if self._dials.record:
                with Path(self._dials.record).open("a") as f:
                    f.write(json.dumps([method, path, body]) + "\n")
            if self._dials.die_at == what:
                print("firecracker: something terrible happened", flush=True)
                os._exit(1)
            if what in self._dials.fail:
                raise Refused(self._dials.fail[what])
            operation = self._document.check(method, path, body, booted=self._state != "Not started")
            return self._carry_out(operation, body or {})
        except (Refused, ValueError, OSError) as error:
            return 400, {"fault_message": str(error)}

    def _carry_out(self, operation: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match operation:
            case "describeInstance":
                return 200, {"app_name": "Firecracker", "id": self._name, "state": self._state,
                             "vmm_version": self._dials.version}  # fmt: skip
            case "putMachineConfiguration":
                self._configured["machine-config"] = body
            case "putGuestBootSource":
                if self._jail.find(body["kernel_image_path"]).read_bytes()[:4] != ELF:
                    raise Refused("Kernel Loader: failed to load ELF kernel image")
                self._jail.find(body["initrd_path"]).stat()
                self._configured["boot-source"] = body
            case "putGuestDriveByID":
                if "is_read_only" not in body or "path_on_host" not in body:
                    raise Refused("a virtio-block drive needs is_read_only and path_on_host")
                self._jail.find(body["path_on_host"], writable=not body["is_read_only"]).stat()
                self._configured["drives"][body["drive_id"]] = body
            case "putGuestNetworkInterfaceByID":
                os.stat(f"/sys/class/net/{body['host_dev_name']}/tun_flags")
                self._configured["network-interfaces"][body["iface_id"]] = body
            case "putEntropyDevice":
                self._configured["entropy"] = body
            case "putGuestVsock":
                self._jail.find(body["uds_path"], writable=True)
                self._configured["vsock"] = body
            case "createSyncAction" if body["action_type"] == "InstanceStart":
                self._start()
            case "patchVm":
                self._state = {"Paused": "Paused", "Resumed": "Running"}[body["state"]]
            case "createSnapshot":
                self._save(body)
            case "loadSnapshot":
                self._load(body)
            case _:
                raise Refused(f"{operation} is not emulated")
        return 204, {}

    def _start(self) -> None:
        if "boot-source" not in self._configured:
            raise Refused("Cannot start microvm without kernel configuration.")
        if self._state != "Not started":
            raise Refused("The requested operation is not supported after starting the microVM.")
        self._state = "Running"
        if self._dials.guest == "none":
            return
        uds = self._configured["vsock"]["uds_path"]
        self._guest = Guest(self._name, self._jail, self._configured, self._guest_pid_file)
        self._running = asyncio.create_task(self._run(self._guest, uds, self._jail.listen(uds)))

    def _save(self, body: dict[str, Any]) -> None:
        if self._state != "Paused":
            raise Refused("Create snapshot error: the microVM is not paused")
        memory = self._jail.find(body["mem_file_path"], writable=True)
        with memory.open("wb") as f:
            f.write(b"memory of the guest")
            f.truncate(self._configured["machine-config"]["mem_size_mib"] << 20)
        state = {"version": self._dials.version, **self._configured}
        self._jail.find(body["snapshot_path"], writable=True).write_text(json.dumps(state))

    def _load(self, body: dict[str, Any]) -> None:
        if self._configured != {"drives": {}, "network-interfaces": {}}:
            raise Refused("Loading a microVM snapshot not allowed after configuring boot-specific resources.")
        backend = body.get("mem_backend", {})
        if backend.get("backend_type") != "File" or not body.get("resume_vm"):
            raise Refused("only a file is emulated, and a VM that runs at once")
        state = json.loads(self._jail.find(body["snapshot_path"]).read_text())
        if state.pop("version") != self._dials.version:
            raise Refused("Load snapshot error: Invalid snapshot version")
        size = os.stat(backend["backend_path"]).st_size
        if size != state["machine-config"]["mem_size_mib"] << 20:
            raise Refused(f"Load snapshot error: the memory file has {size} bytes")
        with Path(backend["backend_path"]).open("rb") as f:
            if not f.read(32).startswith(b"memory of the guest"):
                raise Refused("the memory is not what was saved")
        for override in body.get("network_overrides", []):
            if override["iface_id"] not in state["network-interfaces"]:
                raise Refused(f"Unknown Network Device: {override['iface_id']}")
            state["network-interfaces"][override["iface_id"]]["host_dev_name"] = override["host_dev_name"]
        for each in state["network-interfaces"].values():
            os.stat(f"/sys/class/net/{each['host_dev_name']}/tun_flags")
        self._configured = state
        self._is_restored = True
        self._start()

    async def _run(self, guest: Guest, uds: str, listener: socket.socket) -> None:
        calling = asyncio.create_task(asyncio.sleep(0) if self._is_restored else self._call_host(guest, uds))
        async with await asyncio.start_unix_server(self._vsock, sock=listener):
            code = await guest.run()
        calling.cancel()
        # Firecracker ends without an error when its guest does.
        self.ended.set_result(0 if code == 0 else 1)

    async def _call_host(self, guest: Guest, uds: str) -> None:
        """What the agent does when it listens."""
        await guest.is_up.wait()
        path = self._jail.find(f"{uds}_1024")
        with contextlib.suppress(OSError):
            directory = os.open(path.parent, os.O_PATH)
            _, writer = await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}")
            writer.close()

    async def _vsock(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        guest = self._guest
        command = await reader.readline()
        if guest is not None and self._is_restored:
            await guest.is_up.wait()
        if guest is None or not guest.is_up.is_set() or command != b"CONNECT 1024\n":
            writer.close()
            return
        agent_reader, agent_writer = await guest.connect()
        writer.write(b"OK 1073741824\n")
        ways = [asyncio.create_task(_copy(a, b)) for a, b in ((reader, agent_writer), (agent_reader, writer))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for each in ways:
            each.cancel()
        for end in (writer, agent_writer):
            end.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection to the API."""
        request = _Request()
        parser = httptools.HttpRequestParser(request)
        while not request.complete and (data := await reader.read(65536)):
            parser.feed_data(data)
        method = parser.get_method().decode()
        if f"{method} {request.url}" == self._dials.hang_at:
            await asyncio.Event().wait()
        status, document = self.answer(method, request.url, request.body)
        body = json.dumps(document).encode() if document else b""
        # Its status line has no reason, and an answer without a body no length.
        head = f"HTTP/1.1 {status} \r\nServer: Firecracker API\r\nConnection: keep-alive\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        writer.write(f"{head}\r\n".encode() + body)
        await reader.read()
        writer.close()


class _Request:
    def __init__(self) -> None:
        self.url, self.body, self.complete = "", b"", False

    def on_url(self, url: bytes) -> None:
        self.url += url.decode()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.complete = True


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()


async def _main(name: str, api_socket: str, jail: Jail, dials: Dials, guest_pid_file: str) -> int:
    fake = FakeFirecracker(name, jail, dials, guest_pid_file)
    async with await asyncio.start_unix_server(fake.serve, sock=jail.listen(api_socket)):
        return await fake.ended


def main() -> None:
    """Run until the guest ends."""
    parser = argparse.ArgumentParser()
    for option in ("--dials", "--binds"):
        parser.add_argument(option, default="{}" if option == "--dials" else "[]", type=json.loads)
    for option in ("--id", "--api-sock", "--level", "--guest-pid"):
        parser.add_argument(option, default="")
    parser.add_argument("--version", action="store_true")
    given = parser.parse_args()
    dials = Dials(given.dials)
    if given.version:
        print(f"Firecracker v{dials.version}\n")
        return
    sys.exit(asyncio.run(_main(given.id, given.api_sock, Jail(given.binds), dials, given.guest_pid)))


if __name__ == "__main__":
    main()
