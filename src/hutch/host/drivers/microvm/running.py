"""What a driver does with a VM that runs, whatever its monitor: containers, signals, health checks, events, use."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Generic, TypeVar

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.units import CPU_UNITS_PER_VCPU
from hutch.host.drivers.contract import (
    ContainerStats,
    DriverError,
    ExecStream,
    Handle,
    ObservedContainer,
    ProbeResult,
    SandboxEvent,
    SandboxGone,
    SandboxStats,
    StartedContainer,
)
from hutch.host.drivers.microvm import plan
from hutch.host.drivers.microvm.exec import open_exec
from hutch.host.drivers.microvm.jail import MonitorJail
from hutch.host.drivers.microvm.qemu import vm_vcpus
from hutch.host.drivers.microvm.router import dial_router
from hutch.host.drivers.microvm.sandbox import Empty, Sandbox, Started
from hutch.host.drivers.microvm.vm import allocated_bytes, bound_qemu_log, vm_name
from hutch.host.drivers.oci_config import build_further_process
from hutch.host.drivers.start_faults import start_fault
from hutch.host.drivers.volume_disks import volume_disks
from hutch.host.kernel.process import process_use
from hutch.host.logs.contract import Connection
from hutch.model.exec import ExecSpec
from hutch.wire.guest_documents import ProbeAnswer, StatsAnswer
from hutch.wire.taskspec import ContainerSpec

START_TIMEOUT_S = 120.0
PROBE_GRACE_S = 10.0
FLUSH_TIMEOUT_S = 20.0
log = get_logger(__name__)
S = TypeVar("S", bound=Sandbox)


class RunningVms(Generic[S]):
    """The VMs of one driver, by task, and the verbs of the contract that only need their guests."""

    def __init__(self, clock: Clock, jail: MonitorJail, platform_id: str) -> None:
        self._clock = clock
        self._jail = jail
        self._platform_id = platform_id
        self._sandboxes: dict[str, S] = {}

    async def start_container(self, handle: Handle, container: ContainerSpec) -> StartedContainer:
        """Start a container, or start it again after its exit."""
        sandbox = self.sandbox_of(handle)
        first = container.name not in sandbox.started

        def members(started: Started) -> dict[str, Any]:
            return plan.start_members(sandbox.spec, started.container, started.number, first=first)

        return await self._start_container(sandbox, container, members)

    async def _start_container(
        self, sandbox: S, container: ContainerSpec, members: Callable[[Started], dict[str, Any]]
    ) -> StartedContainer:
        started = sandbox.begin_start(container)
        ok = False
        try:
            work = _start(sandbox, started, members)
            await sandbox.while_alive(work, f"start container {container.name}")
            ok = True
        except SandboxGone:
            raise
        except DriverError as error:
            raise _start_fault(container, error) from None
        finally:
            sandbox.settle_start(started, ok=ok)
        await self._hold_to_share(sandbox)
        started.started_at = self._clock.now()
        return StartedContainer(runtime_id=started.runtime_id, started_at=started.started_at)

    async def _hold_to_share(self, sandbox: S) -> None:
        """Once its first container runs, a task that is to have its share of CPU and no more is held to it; up to then
        a launch is as quick as any other. Raises `DriverError`."""
        task = sandbox.spec.task
        if sandbox.is_capped or not (task.cpu_capped or self._jail.caps_cpu):
            return
        units = task.cpu_units or vm_vcpus(task.cpu_units) * CPU_UNITS_PER_VCPU
        await asyncio.to_thread(self._jail.cap_cpu, vm_name(self._platform_id, task.task_id), units)
        sandbox.is_capped = True

    async def signal_container(self, handle: Handle, container: str, signal: int) -> None:
        """Send a signal to the container's first process."""
        sandbox = self.sandbox_of(handle)
        request = sandbox.session.request("kill", Empty, name=container, signal=signal)
        await sandbox.while_alive(request, "signal a container")

    async def probe(
        self, handle: Handle, container: str, command: tuple[str, ...], timeout_s: float
    ) -> ProbeResult:
        """Run a health check's command in the container."""
        sandbox = self.sandbox_of(handle)
        started = sandbox.started.get(container)
        if started is None or not started.running:
            raise DriverError("ContainerNotRunning", f'container "{container}" does not run')
        spec = msgspec.structs.replace(started.container, entry_point=command, command=None)
        context = plan.oci_context(sandbox.spec, spec, started.number)
        process = build_further_process(spec, sandbox.spec.images[container], context)
        request = sandbox.session.request(
            "exec",
            ProbeAnswer,
            timeout_s=timeout_s + PROBE_GRACE_S,
            name=container,
            process=process,
            timeout_ms=round(timeout_s * 1000),
        )
        answer = await sandbox.while_alive(request, "run a health check")
        output = answer.output.encode()[:4096].decode("utf-8", "ignore")
        return ProbeResult(exit_code=answer.exit_code, timed_out=answer.timed_out, output=output)

    async def dial_router(self, handle: Handle, container: str) -> Connection:
        """Connect to the socket of the task's log router; see `SupportsLogRouter`."""
        return dial_router(self.sandbox_of(handle), container)

    async def exec(self, handle: Handle, container: str, spec: ExecSpec) -> ExecStream:
        """Run a process in a container, with its own streams."""
        return open_exec(self.sandbox_of(handle), container, spec)

    def events(self, handle: Handle) -> AsyncIterator[SandboxEvent]:
        """The sandbox's events; see the contract."""
        return self.sandbox_of(handle).events()

    async def stats(self, handle: Handle) -> SandboxStats:
        """What the containers use in the guest, and what its monitor costs the host."""
        sandbox = self.sandbox_of(handle)
        answer = await sandbox.while_alive(sandbox.session.request("stats", StatsAnswer), "tell its use")
        use = await asyncio.to_thread(process_use, sandbox.ref)
        if use is None:
            raise sandbox.gone()
        await asyncio.to_thread(bound_qemu_log, sandbox.files)
        known = {c.name for c in sandbox.spec.task.containers}
        return SandboxStats(
            host_cpu_ns=use.cpu_ns,
            host_memory_bytes=use.memory_bytes,
            disk_bytes=allocated_bytes(sandbox.files.scratch),
            containers={
                name: ContainerStats(cpu_ns=s.cpu_ns, memory_bytes=s.memory_bytes, pids=s.pids)
                for name, s in answer.containers.items()
                if name in known
            },
        )

    def sandbox_of(self, handle: Handle) -> S:
        """The VM of a handle. Raises `DriverError` if it was neither created nor adopted here."""
        sandbox = self._sandboxes.get(handle.task_id)
        if sandbox is None:
            raise DriverError(
                "SandboxUnknown", f"task {handle.task_id} has no VM that was created or adopted here"
            )
        return sandbox


async def hold_namespaces(sandbox: Sandbox) -> None:
    """Start the container that holds the namespaces which the task's containers share, if they share any."""
    if plan.needs_pause(sandbox.spec.task):
        number, sandbox.next_number = sandbox.next_number, sandbox.next_number + 1
        members = plan.pause_members(number)
        await sandbox.session.request("start", Empty, timeout_s=START_TIMEOUT_S, **members)


async def fill_files(sandbox: Sandbox) -> None:
    """Write the volumes that are files, if there are any."""
    for members in plan.files_members(sandbox.spec.task):
        await sandbox.session.request("files", Empty, timeout_s=START_TIMEOUT_S, **members)


async def finish_volumes(sandbox: Sandbox) -> None:
    """Before a VM is killed: what its containers wrote to a volume that stays goes to the disk. A guest that does not do so
    in time loses what it had not flushed, as a machine does whose power fails."""
    if not any(d.name for d in volume_disks(sandbox.spec.task)) or sandbox.ended is not None:
        return
    if reason := await power_off(sandbox, FLUSH_TIMEOUT_S):
        log.warning("volumes may lack what was written last", task=sandbox.spec.task.task_id, reason=reason)


async def power_off(sandbox: Sandbox, limit_s: float) -> str:
    """Have the guest write what it has to its disks, and end; "", or why it did not do so in time."""
    reason = f"the guest did not power off within {limit_s:g} s"
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(limit_s):
            try:
                await sandbox.session.request("shutdown", Empty, timeout_s=limit_s)
            except HutchError as error:
                # A guest that powers off may be gone before its answer is out: how it ended tells.
                reason = error.message
            await sandbox.wait_ended()
    return "" if sandbox.ended is not None and sandbox.ended.kind == "GuestPoweredOff" else reason


async def _start(sandbox: Sandbox, started: Started, members: Callable[[Started], dict[str, Any]]) -> None:
    given = members(started)
    try:
        await sandbox.session.request("start", Empty, timeout_s=START_TIMEOUT_S, **given)
    except ValueError:
        raise DriverError(
            "ContainerTooLarge",
            f'command, environment and settings of container "{started.container.name}" are longer than '
            "64 KiB",
            fix="pass less in the environment",
        ) from None


def _start_fault(container: ContainerSpec, error: DriverError) -> DriverError:
    """The guest's words on a container that can't be started, with what they are about and what to do."""
    kind, text, fix = start_fault(container, error.kind, error.message)
    command = [*(container.entry_point or ()), *(container.command or ())]
    return DriverError(
        kind,
        f'container "{container.name}" can\'t be started: {text}',
        fix=error.fix or fix,
        aws_prefix=error.aws_prefix or "CannotStartContainerError",
        evidence=error.evidence or {"container": container.name, "command": [w[:200] for w in command[:10]]},
        retryable=error.retryable,
    )


def observed(sandbox: Sandbox) -> tuple[ObservedContainer, ...]:
    """What `adopt` tells of a VM."""
    return tuple(
        ObservedContainer(
            name=s.container.name, runtime_id=s.runtime_id, running=s.running, started_at=s.started_at
        )
        for s in sandbox.started.values()
    )
