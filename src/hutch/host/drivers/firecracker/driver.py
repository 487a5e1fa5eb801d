"""The Firecracker driver: as the microVM driver, on hosts with KVM, with Firecracker as the VM monitor. See
docs/design/firecracker.md."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.host.drivers.contract import (
    Capabilities,
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
from hutch.host.drivers.microvm.accelerator import PROBE_LIMIT_S, kvm_obstacle
from hutch.host.drivers.microvm.jail import Confinement, MonitorJail
from hutch.host.drivers.microvm.vmdriver import HANDLE_FORMAT, VmDriver, check_format
from hutch.host.kernel.process import ProcessRef

log = get_logger(__name__)


class FirecrackerDriver(VmDriver[FirecrackerSandbox]):
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
        probe_limit_s: float = PROBE_LIMIT_S,
        use_templates: bool = True,
    ) -> None:
        """`program`: Firecracker's name on the path, or its path; `state_dir` is the driver's own (made when needed).
        Without `use_templates` every VM boots. `jail`, `obstacle` (why KVM can't be used, given /proc/cpuinfo) and
        `probe_limit_s` (within which a guest must answer if KVM works) are what tests put in the place of the host's."""
        jail = jail or MonitorJail(
            platform_id=platform_id,
            state_dir=state_dir,
            confinement=confinement or Confinement(),
            monitor=monitor_program(program),
        )
        super().__init__(clock, jail, platform_id)
        self._launcher = FirecrackerLauncher(
            platform_id=platform_id,
            program=program,
            guest_dir=guest_dir,
            state_dir=state_dir,
            clock=clock,
            jail=jail,
            kvm_obstacle=obstacle,
            boot_timeout_s=boot_timeout_s,
            probe_limit_s=probe_limit_s,
            use_templates=use_templates,
        )

    async def _check(self) -> dict[str, str]:
        await self._jail.check()
        ground = await self._launcher.ground()
        await self._launcher.clean(ground)
        return {
            "accelerator": "kvm",
            "firecracker": ground.firecracker.version_text,
            "guest_kernel": ground.image.kernel_version,
            "boot_ms": str(round(ground.verdict.boot_s * 1000)),
        }

    def _files(self, directory: str) -> FirecrackerFiles:
        return FirecrackerFiles(directory)

    async def _mounts(self, spec: SandboxSpec) -> list[dict[str, Any]]:
        return await asyncio.to_thread(disk_mounts, spec)

    async def create(self, spec: SandboxSpec) -> Handle:
        """Boot the task's VM, mount its disks, set up its network. On failure nothing is left but the
        directory."""
        sandbox, phases = await self._launch(spec, partial(self._launcher.launch, spec))
        return Handle(
            driver=self.name,
            format=HANDLE_FORMAT,
            task_id=spec.task.task_id,
            state={"directory": spec.directory, **msgspec.to_builtins(sandbox.ref)},
            phases=tuple(phases.told),
        )

    async def adopt(self, handle: Handle, spec: SandboxSpec) -> tuple[ObservedContainer, ...]:
        """Connect to a VM that an earlier agent started. `SandboxGone` says how it ended, if it did."""
        check_format(handle)
        ref = ProcessRef(pid=int(handle.state["pid"]), start_ticks=int(handle.state["start_ticks"]))
        sandbox = FirecrackerSandbox(spec, self._files(handle.state["directory"]), ref, self._clock)
        return await self._adopt(sandbox, may_be_frozen=False)

    async def close(self) -> None:
        """Let go of all VMs without touching them."""
        await self._launcher.close()
        await super().close()
