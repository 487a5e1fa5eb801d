"""The Firecracker driver: as the microVM driver, on hosts with KVM, with Firecracker as the VM monitor. See
docs/design/firecracker.md."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.host.drivers.contract import (
    Capabilities,
    DriverError,
    Handle,
    ObservedContainer,
    SandboxSpec,
)
from hutch.host.drivers.firecracker.launcher import (
    BOOT_TIMEOUT_S,
    FirecrackerLauncher,
    disk_mounts,
)
from hutch.host.drivers.firecracker.program import monitor_program
from hutch.host.drivers.firecracker.sandbox import FirecrackerSandbox
from hutch.host.drivers.firecracker.vm import FirecrackerFiles
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.accelerator import kvm_obstacle
from hutch.host.drivers.microvm.jail import Confinement, MonitorJail
from hutch.host.drivers.microvm.running import RunningVms, hold_namespaces, observed
from hutch.host.drivers.microvm.sandbox import ENTROPY_BYTES, Empty
from hutch.host.drivers.microvm.slots import LaunchSlots, queue_phase
from hutch.host.drivers.microvm.vm import remove_vm, vm_name
from hutch.host.kernel.process import ProcessRef
from hutch.wire.fleet import DriverFactMsg

log = get_logger(__name__)
HANDLE_FORMAT = 1
ADOPT_TIMEOUT_S = 30.0
SET_UP_TIMEOUT_S = 60.0


class FirecrackerDriver(RunningVms[FirecrackerSandbox]):
    """Implements `hutch.host.drivers.contract.Driver` with Firecracker."""

    name = "firecracker"
    capabilities = Capabilities(
        launch_types=("FARGATE",), root_format="erofs", network="tap", owns_kernel=True, tells_facts=True
    )

    def __init__(
        self,
        *,
        platform_id: str,
        program: str,
        guest_dir: Path,
        state_dir: Path,
        clock: Clock,
        confinement: Confinement | None = None,
        jail: MonitorJail | None = None,
        obstacle: Callable[[str], str] = kvm_obstacle,
        boot_timeout_s: float = BOOT_TIMEOUT_S,
        use_templates: bool = True,
    ) -> None:
        """`program`: Firecracker's name on the path, or its path; `state_dir` is the driver's own (made when needed).
        Without `use_templates` every VM boots. `jail` and `obstacle` (why KVM can't be used, given /proc/cpuinfo) are what
        tests put in the place of the host's."""
        jail = jail or MonitorJail(
            platform_id=platform_id,
            state_dir=state_dir,
            confinement=confinement or Confinement(),
            monitor=monitor_program(program),
        )
        super().__init__(clock, jail, platform_id)
        self._launching = LaunchSlots()
        self._launcher = FirecrackerLauncher(
            platform_id=platform_id,
            program=program,
            guest_dir=guest_dir,
            state_dir=state_dir,
            clock=clock,
            jail=jail,
            kvm_obstacle=obstacle,
            boot_timeout_s=boot_timeout_s,
            use_templates=use_templates,
        )

    async def fingerprint(self) -> DriverFactMsg:
        """Whether guests can run here, proven by booting one; the answer is remembered."""
        try:
            await self._jail.check()
            ground = await self._launcher.ground()
            await self._launcher.clean(ground)
        except DriverError as error:
            reason = f"{error.message}; {error.fix}" if error.fix else error.message
            return DriverFactMsg(
                name=self.name, launch_types=self.capabilities.launch_types, healthy=False, reason=reason
            )
        details = {
            "accelerator": "kvm",
            "firecracker": ground.firecracker.version_text,
            "guest_kernel": ground.image.kernel_version,
            "boot_ms": str(round(ground.verdict.boot_s * 1000)),
        }
        return DriverFactMsg(
            name=self.name, launch_types=self.capabilities.launch_types, healthy=True, details=details
        )

    async def create(self, spec: SandboxSpec) -> Handle:
        """Boot the task's VM, mount its disks, set up its network. On failure nothing is left but the
        directory."""
        task_id = spec.task.task_id
        if task_id in self._sandboxes:
            raise DriverError("SandboxExists", f"task {task_id} has a VM already")
        plan.check_task(spec)
        sandbox: FirecrackerSandbox | None = None
        ready = False
        try:
            asked_at = self._clock.now()
            async with self._launching.one() as slot:
                begun_at = self._clock.now()
                sandbox, _, phases = await self._launcher.launch(spec, slot)
                mounts = await asyncio.to_thread(disk_mounts, spec)
                setting_up = sandbox.while_alive(_set_up(sandbox, mounts), "set itself up")
                await phases.measure("set up", setting_up, "disks and network")
            ready = True
        finally:
            if not ready:
                if sandbox is not None:
                    await sandbox.release()
                await self._remove(task_id, spec.directory)
        self._sandboxes[task_id] = sandbox
        phases.told[:0] = queue_phase(asked_at, begun_at)
        took_ms = {p.name: round((p.ended_at - p.started_at) * 1000) for p in phases.told}
        log.info("Firecracker VM ready", task=task_id, took_ms=took_ms)
        return Handle(
            driver=self.name,
            format=HANDLE_FORMAT,
            task_id=task_id,
            state={"directory": spec.directory, **msgspec.to_builtins(sandbox.ref)},
            phases=tuple(phases.told),
        )

    async def adopt(self, handle: Handle, spec: SandboxSpec) -> tuple[ObservedContainer, ...]:
        """Connect to a VM that an earlier agent started. `SandboxGone` says how it ended, if it did."""
        if handle.format != HANDLE_FORMAT:
            raise DriverError("UnknownHandle", f"handle format {handle.format} is not known here")
        ref = ProcessRef(pid=int(handle.state["pid"]), start_ticks=int(handle.state["start_ticks"]))
        files = FirecrackerFiles(handle.state["directory"])
        sandbox = FirecrackerSandbox(spec, files, ref, self._clock)
        try:
            answer = await sandbox.attach(entropy=os.urandom(ENTROPY_BYTES), hello_timeout_s=ADOPT_TIMEOUT_S)
            await sandbox.take_over(answer.containers)
            if sandbox.started:
                await self._hold_to_share(sandbox)
        except BaseException:
            await sandbox.release()
            raise
        self._sandboxes[handle.task_id] = sandbox
        return observed(sandbox)

    async def destroy(self, handle: Handle) -> None:
        """End the VM at once; its files go, logs and console stay for the directory's owner."""
        await self._destroy(handle.task_id, str(handle.state["directory"]))

    async def destroy_leftovers(self, directory: str, task_id: str) -> None:
        """As `destroy`, from names alone: the VM's process is found by the name on its command line."""
        await self._destroy(task_id, directory)

    async def _destroy(self, task_id: str, directory: str) -> None:
        sandbox = self._sandboxes.pop(task_id, None)
        if sandbox is not None:
            with contextlib.suppress(HutchError):
                await sandbox.save_console()
            await sandbox.release()
        await self._remove(task_id, directory)

    async def _remove(self, task_id: str, directory: str) -> None:
        await remove_vm(vm_name(self._platform_id, task_id), FirecrackerFiles(directory), self._jail)

    async def close(self) -> None:
        """Let go of all VMs without touching them."""
        await self._launcher.close()
        sandboxes, self._sandboxes = self._sandboxes, {}
        for sandbox in sandboxes.values():
            await sandbox.release()
        self._jail.close()


async def _set_up(sandbox: FirecrackerSandbox, mounts: list[dict[str, object]]) -> None:
    configure = plan.configure_members(sandbox.spec)
    await asyncio.gather(
        sandbox.session.request("configure", Empty, timeout_s=SET_UP_TIMEOUT_S, **configure),
        sandbox.session.request("disks", Empty, timeout_s=SET_UP_TIMEOUT_S, mounts=mounts),
    )
    await sandbox.watch()
    await hold_namespaces(sandbox)
