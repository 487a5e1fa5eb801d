"""The Firecracker driver over the stand-in (`fake_firecracker.py`), without a jail: this machine need not have KVM."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from tests.conftest import REPO

from hutch.base.clock import SystemClock
from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.firecracker.driver import FirecrackerDriver
from hutch.host.drivers.microvm.jail import Confinement, JailRequest, MonitorJail
from hutch.host.kernel.jail_root import JailRoot
from hutch.host.kernel.process import ProcessRef, find_processes, kill_and_wait, process_ref
from hutch.host.kernel.run import spawn_daemon

PATIENCE_S = 240.0
"""The stand-in's guest is emulated: on a busy machine it boots many times slower than one under KVM ever would."""
FAKE = REPO / "tests" / "support" / "fake_firecracker.py"


class NoJail(MonitorJail):
    """Starts the stand-in as an ordinary process; what would be bound into the jail it is told."""

    def __init__(self, *, platform_id: str, state_dir: Path) -> None:
        super().__init__(platform_id=platform_id, state_dir=state_dir, confinement=Confinement())
        self._state_dir = state_dir

    async def check(self) -> None:
        """Nothing to prove."""

    async def root(self) -> JailRoot:
        return JailRoot(directory=Path("/"), program="")

    def user_of(self, name: str) -> int:
        return os.getuid()

    def start(self, request: JailRequest, root: JailRoot) -> ProcessRef:
        binds = json.dumps([(b.source, b.place, b.writable) for b in request.binds])
        guest_pid = str(self._guest_pid_file(request.name))
        argv = [request.argv[0], "--binds", binds, "--guest-pid", guest_pid, *request.argv[1:]]
        child = spawn_daemon(argv, output_path=request.output_path, pass_fds=request.pass_fds)
        ref = process_ref(child.pid)
        if ref is None:
            child.wait()
            raise DriverError("JailFailed", "the program ended at once")
        # It is reaped through its pidfd.
        child.returncode = 0
        return ref

    async def remove(self, name: str) -> None:
        for ref in find_processes(name):
            await kill_and_wait(ref)
        # QEMU follows the stand-in that started it a moment later, without a name by then, and holds the tap until it has.
        pid_file = self._guest_pid_file(name)
        if pid_file.exists():
            guest = process_ref(int(pid_file.read_text()))
            if guest is not None and _comm(guest.pid).startswith("qemu-system"):
                await kill_and_wait(guest)
            pid_file.unlink()

    def _guest_pid_file(self, name: str) -> Path:
        return self._state_dir / f"{name}.guest.pid"

    def close(self) -> None:
        """Nothing is held."""


def _comm(pid: int) -> str:
    """The program's name, which a process keeps to its end."""
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


class FirecrackerBench:
    """Drivers of one platform, and how the stand-in behaves."""

    def __init__(self, directory: Path, platform_id: str, *, state: Path | None = None, **dials: Any) -> None:
        """`state`: the drivers' directory, which can be shared so that only one probe guest boots."""
        self.directory = directory
        self.state = state or directory / "state"
        self.platform_id = platform_id
        self.program = directory / "firecracker"
        self.set(**dials)

    def set(self, **dials: Any) -> None:
        """How the stand-in behaves from now on; see `fake_firecracker.Dials`."""
        quoted = json.dumps(dials).replace("'", "")
        version = dials.get("version", "1.12.0")
        self.program.write_text(
            f"#!/bin/sh\n[ \"$1\" = --version ] && {{ echo 'Firecracker v{version}'; exit; }}\n"
            f"exec {sys.executable} {FAKE} --dials '{quoted}' \"$@\"\n"
        )
        self.program.chmod(0o755)

    def trust_kvm(self, *versions: str) -> None:
        """As if a probe guest had booted with these versions of Firecracker before."""
        key = json.loads((REPO / "build" / "guest" / "manifest.json").read_text())["key"]
        verdicts = {f"kvm {os.uname().release} firecracker {v} {key}": {"works": True} for v in versions}
        self.state.mkdir(exist_ok=True)
        (self.state / "accelerator.json").write_text(json.dumps(verdicts))

    def jail(self) -> NoJail:
        """In the place of a jail."""
        return NoJail(platform_id=self.platform_id, state_dir=self.state)

    def driver(self, *, boot_timeout_s: float = PATIENCE_S, use_templates: bool = False) -> FirecrackerDriver:
        """As another process would make it, over the same host."""
        return FirecrackerDriver(
            platform_id=self.platform_id,
            program=str(self.program),
            guest_dir=REPO / "build" / "guest",
            state_dir=self.state,
            clock=SystemClock(),
            jail=self.jail(),
            obstacle=lambda cpuinfo: "",
            boot_timeout_s=boot_timeout_s,
            probe_limit_s=PATIENCE_S,
            use_templates=use_templates,
        )
