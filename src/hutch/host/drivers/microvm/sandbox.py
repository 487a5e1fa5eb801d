"""A running microVM as this host agent sees it: its process, its monitor, its guest, and what to tell of
them.

A VM that ends by itself (power-off, panic) is held, paused, by QEMU until its console was read; only then is
the process ended. So the last words are there even if no host agent was when it happened.
"""

import asyncio
import base64
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterable
from typing import Any, TypeVar

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.host.drivers.contract import (
    ContainerExited,
    DriverError,
    ExitStatus,
    ProcessFacts,
    SandboxEvent,
    SandboxExited,
    SandboxGone,
    SandboxSpec,
)
from hutch.host.drivers.microvm.ending import Traces, explain
from hutch.host.drivers.microvm.hotplug import replace_disk
from hutch.host.drivers.microvm.image import Machine
from hutch.host.drivers.microvm.plan import runtime_id
from hutch.host.drivers.microvm.qemu import CONSOLE_BYTES
from hutch.host.drivers.microvm.qmp import Qmp, QmpError
from hutch.host.drivers.microvm.restore import restore, save, save_devices
from hutch.host.drivers.microvm.templates import TemplateRef
from hutch.host.drivers.microvm.vm import VmFiles, tail, write_console
from hutch.host.guestlink.logs import SandboxLogs
from hutch.host.guestlink.session import GuestGone, GuestLinkError, GuestRefused, GuestSession
from hutch.host.kernel.kmsg import oom_kill_record
from hutch.host.kernel.process import ProcessRef, is_alive, wait_gone
from hutch.host.kernel.sealed import open_memory_file
from hutch.rules.logdrivers.files import FileBounds, bounds_of
from hutch.wire.guest_documents import ContainerExitedEvent, GuestContainer, HelloAnswer, StateAnswer
from hutch.wire.guest_facts import RuntimeFactsEvent
from hutch.wire.taskspec import ContainerSpec

log = get_logger(__name__)
T = TypeVar("T")
EXPLAIN_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 10.0
_ENDED_STATES = ("shutdown", "guest-panicked", "internal-error", "io-error")
_STILL_STATES = ("paused", "save-vm")
FREEZE_TIMEOUT_S = 10.0
ENTROPY_BYTES = 64
MAX_FACT_BATCHES = 8
"""The guest may have four under way."""
SERVER_GRACE_S = 1.0


class Empty(msgspec.Struct):
    """An answer without members."""


class Started(msgspec.Struct, kw_only=True):
    """One start of a container."""

    container: ContainerSpec
    number: int
    runtime_id: str
    running: bool = True
    started_at: float | None = None
    settled: asyncio.Event | None = None
    """Set when the caller of the start has its answer: only then is an exit told."""


async def _nothing(*_: object) -> None:
    """What a restoration does besides if it is a template's."""


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a VM was made of, which must be known to save and restore it."""

    machine: Machine
    template: TemplateRef | None = None
    """What its memory is a private copy of."""
    has_link: bool = False
    """As in `Manifest`."""


class Restoration(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VM's state comes from, and what else is to be done at which moment."""

    state_fd: int
    fill_memory: Callable[[ProcessRef], Awaitable[None]] = _nothing
    """Before the devices have their state, which they check against the memory."""
    before_it_runs: Callable[[], Awaitable[None]] = _nothing
    """When all is there. What fails from here on is the VM's end."""


class Sandbox:
    """One VM. Made by the driver with `attach`; all verbs from one event loop."""

    def __init__(
        self,
        spec: SandboxSpec,
        files: VmFiles,
        ref: ProcessRef,
        clock: Clock,
        *,
        origin: Origin | None = None,
        is_new: bool = True,
    ) -> None:
        """`is_new`: it has no containers yet; else `take_over` must follow `attach`."""
        self.origin = origin
        self.spec = spec
        self.files = files
        self.ref = ref
        self.started: dict[str, Started] = {}
        self.next_number = 1
        self.ended: SandboxExited | None = None
        self.is_capped = False
        """It is held to its share of CPU."""
        self._clock = clock
        self._logs = SandboxLogs(files.logs, bounds=_log_bounds(spec), knows_all=is_new)
        self._session: GuestSession | None = None
        self._qmp: Qmp | None = None
        self._shutdown_reason = ""
        self._queue: deque[tuple[SandboxEvent, int]] = deque()
        self._facts_seq = 0
        self._facts_waiting = 0
        self._news = asyncio.Event()
        self._over = asyncio.Event()
        self._released = False
        self._lost_server = False
        self._background: set[asyncio.Task[None]] = set()
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def session(self) -> GuestSession:
        """The conversation with the guest; there is one from `attach` on."""
        if self._session is None:
            raise SandboxGone("VmNotAttached", "the VM's guest was never reached")
        return self._session

    async def attach(self, *, hello_timeout_s: float, restoration: Restoration | None = None) -> HelloAnswer:
        """Connect to monitor and guest, greet it, and watch the process. With a `restoration` the VM waits for its state,
        which it is given first; else one that stands still goes on. Raises `DriverError`, `SandboxGone`."""
        self._run(self._watch_process())
        return await self.while_alive(self._attach(hello_timeout_s, restoration), "come up")

    async def _attach(self, hello_timeout_s: float, restoration: Restoration | None) -> HelloAnswer:
        try:
            self._qmp = await Qmp.connect(self.files.qmp_socket, self._shut_down)
            status = await self._qmp.execute("query-status")
        except QmpError as error:
            # A monitor that is not there most often means a process that is not: then that is the cause.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
                    await self._over.wait()
            raise self.gone() if self.ended else DriverError("VmMonitorFailed", error.message) from None
        if status.get("status") in _ENDED_STATES:
            self._shut_down(self._shutdown_reason)
            await self._over.wait()
        self._session = await GuestSession.connect(
            self.files.agent_socket,
            logs=self._logs,
            on_exit=self._exited,
            on_facts=self._take_facts,
            first_id=int(self._clock.now() * 1000) * 1000,
        )
        try:
            if restoration is not None:
                # After the channel is open, as it was when the state was saved: so the guest has nothing to notice.
                await restoration.fill_memory(self.ref)
                await restore(self._qmp, restoration.state_fd)
                await restoration.before_it_runs()
                await self._qmp.execute("cont")
            elif status.get("status") in _STILL_STATES:
                # It was being saved when the agent was killed.
                await self._qmp.execute("cont")
        except QmpError as error:
            said = await asyncio.to_thread(tail, self.files.qemu_log, 500)
            raise DriverError("VmNotRestored", f"{error.message}: {said.strip()}") from None
        return await self._hello(hello_timeout_s)

    async def _hello(self, timeout_s: float) -> HelloAnswer:
        """Greet the guest: its clock is set, its generator seeded."""
        entropy = os.urandom(ENTROPY_BYTES)
        return await self.session.hello(now_ns=self._now_ns, entropy=entropy, timeout_s=timeout_s)

    def assign(self, spec: SandboxSpec, files: VmFiles) -> None:
        """A VM that was made without a task gets one. Nothing of a task may have been in it."""
        self.spec, self.files = spec, files
        self._logs = SandboxLogs(files.logs, bounds=_log_bounds(spec))
        self.session.use_logs(self._logs)

    async def greet(self, *, timeout_s: float) -> HelloAnswer:
        """Greet the guest again. Raises `DriverError`, `SandboxGone`."""
        return await self.while_alive(self._hello(timeout_s), "answer")

    def _now_ns(self) -> int:
        return int(self._clock.now() * 1e9)

    async def replace_disk(self, index: int, path: str, *, read_only: bool) -> None:
        """Put a file in the place of an empty disk that the guest has not looked at yet. Raises `DriverError`,
        `SandboxGone`, `OSError`."""
        if self._qmp is None:
            raise SandboxGone("VmNotAttached", "the VM's monitor was never reached")
        fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        try:
            await replace_disk(self._qmp, index, fd, read_only=read_only)
        except QmpError as error:
            raise DriverError("DiskNotAttached", error.message) from None
        finally:
            os.close(fd)

    async def save_state(self) -> bytes:
        """Stop the VM for good, and give the state of its devices: not what is in memory that is in a shared file.
        Raises `DriverError`."""
        if self._qmp is None:
            raise SandboxGone("VmNotAttached", "the VM's monitor was never reached")
        fd = open_memory_file("hutch-state")
        try:
            await self.while_alive(save(self._qmp, fd), "save its state")
            return os.pread(fd, os.fstat(fd).st_size, 0)
        except QmpError as error:
            raise DriverError("VmNotSaved", error.message) from None
        finally:
            os.close(fd)

    async def freeze(self) -> None:
        """All processes of all containers stand still when this returns. Raises `DriverError`, `SandboxGone`."""
        await self._ask_plainly("freeze", "stop its containers where they are")

    async def thaw(self) -> None:
        """They go on; no error if they did not stand still. Raises as `freeze`."""
        await self._ask_plainly("thaw", "let its containers go on")

    async def identify(self, members: dict[str, Any]) -> None:
        """Tell a guest that was copied who it is now. Raises as `freeze`."""
        await self._ask_plainly("identify", "take its new identity", **members)

    async def watch(self) -> None:
        """Have the guest tell what processes do, if that is asked for: before the first container. Raises as `freeze`."""
        watch = self.spec.watch
        if watch is not None:
            await self._ask_plainly("watch", "watch its processes", **msgspec.to_builtins(watch))

    async def _ask_plainly(self, operation: str, purpose: str, **members: Any) -> None:
        request = self.session.request(operation, Empty, timeout_s=FREEZE_TIMEOUT_S, **members)
        await self.while_alive(request, purpose)

    async def save_devices(self) -> bytes:
        """Stop the VM where it is, and give the state of its devices, without its memory. It can go on (`go_on`). Raises
        `DriverError`, `SandboxGone`."""
        fd = open_memory_file("hutch-state")
        try:
            write_only = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                await self._with_monitor(lambda qmp: save_devices(qmp, write_only), "save its devices' state")
            finally:
                os.close(write_only)
            return os.pread(fd, os.fstat(fd).st_size, 0)
        finally:
            os.close(fd)

    async def go_on(self) -> None:
        """Let a VM that was stopped run again. Raises as `save_devices`."""
        await self._with_monitor(lambda qmp: qmp.execute("cont"), "go on")

    async def _with_monitor(self, work: Callable[[Qmp], Coroutine[Any, Any, Any]], purpose: str) -> None:
        if self._qmp is None:
            raise SandboxGone("VmNotAttached", "the VM's monitor was never reached")
        try:
            await self.while_alive(work(self._qmp), purpose)
        except QmpError as error:
            raise DriverError("VmMonitorFailed", f"the VM did not {purpose}: {error.message}") from None

    def ended_starts(self) -> tuple[str, ...]:
        """Runtime ids of the containers whose end is known here."""
        return tuple(s.runtime_id for s in self.started.values() if not s.running)

    async def take_over(
        self, containers: tuple[GuestContainer, ...], told: Collection[str] = (), *, copied: bool = False
    ) -> None:
        """Learn from the guest what was started before; exits among it become events, but for those of the runtime ids in
        `told`. `copied`: it was started in another VM, to which all output until now belongs."""
        specs = {c.name: c for c in self.spec.task.containers}
        for found in sorted(containers, key=lambda c: c.number):
            self.next_number = max(self.next_number, found.number + 1)
            if found.name not in specs:
                continue
            written = found.log_seq if copied else found.log_acked
            self._logs.register(found.number, found.name, written=written)
            known = self.started.get(found.name)
            if known is not None and known.number > found.number:
                continue
            self.started[found.name] = Started(
                container=specs[found.name],
                number=found.number,
                runtime_id=runtime_id(self.spec.task.task_id, found.name, found.number),
                running=found.status != "exited",
                started_at=found.started_ns / 1e9 if found.started_ns else None,
            )
        for found in containers:
            current = self.started.get(found.name)
            is_last = current is not None and current.number == found.number and found.status == "exited"
            if current is not None and is_last and current.runtime_id not in told:
                status = ExitStatus(exit_code=found.exit_code, signal=found.signal, oom=found.oom)
                self._run(self._tell_exit(current, status, found.finished_ns, 0), self._telling)
        self._logs.register_last()
        # What came before it was known whose it is comes again.
        await self.greet(timeout_s=FREEZE_TIMEOUT_S)
        self._logs.greeted()

    def begin_start(self, container: ContainerSpec) -> Started:
        """A number and id for a new start. Raises `DriverError` if the container runs already."""
        known = self.started.get(container.name)
        if known is not None and known.running:
            raise DriverError("ContainerRunning", f'container "{container.name}" runs already')
        number = self.next_number
        self.next_number += 1
        started = Started(
            container=container,
            number=number,
            runtime_id=runtime_id(self.spec.task.task_id, container.name, number),
            settled=asyncio.Event(),
        )
        self.started[container.name] = started
        self._logs.register(number, container.name)
        return started

    def settle_start(self, started: Started, *, ok: bool) -> None:
        """The start has succeeded or failed, and its caller is about to know."""
        if not ok and self.started.get(started.container.name) is started:
            started.running = False
        if started.settled is not None:
            started.settled.set()
            self._news.set()

    async def _exited(self, event: ContainerExitedEvent) -> None:
        started = self.started.get(event.name)
        if started is None or started.number != event.number or not started.running:
            # Told before (by the state at `adopt`), or of a start that is long over.
            self.session.acknowledge_event(event.seq)
            return
        started.running = False
        status = ExitStatus(
            exit_code=event.exit_code,
            signal=event.signal,
            oom=event.oom,
            oom_process=event.oom_process,
            oom_rss_bytes=event.oom_rss_bytes,
        )
        self._run(self._tell_exit(started, status, event.time_ns, event.seq), self._telling)

    def _take_facts(self, event: RuntimeFactsEvent) -> None:
        """Into the queue of events; a guest that sends more than it may is not listened to."""
        if event.seq <= self._facts_seq or self._facts_waiting >= MAX_FACT_BATCHES:
            return
        self._facts_seq = event.seq
        self._facts_waiting += 1
        self._tell(ProcessFacts(facts=event.facts, dropped=event.dropped), event.seq)

    async def _tell_exit(self, started: Started, status: ExitStatus, at_ns: int, seq: int) -> None:
        """Tell an exit once its container's output is on the disk: whoever hears of it may end the VM at once."""
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                await self._drain(started.number)
        except (TimeoutError, GuestLinkError) as error:
            log.warning(
                "a container's last output may be missing",
                task=self.spec.task.task_id,
                container=started.container.name,
                reason=str(error) or f"not there within {DRAIN_TIMEOUT_S:g} s",
            )
        await self._logs.end_lines(started.number, at_ns)
        self._tell(_exit_event(started, status, at_ns / 1e9), seq)

    async def _drain(self, number: int) -> None:
        """Return when all output of a start that has ended is written: when the guest, which reads between any two
        answers what there is to read, has nothing new."""
        known = -1
        while True:
            answer = await self.session.request("state", StateAnswer, timeout_s=DRAIN_TIMEOUT_S)
            last = max((c.log_seq for c in answer.containers if c.number == number), default=0)
            if last == known:
                return
            known = last
            await self._logs.wait_written(number, known)

    def _tell(self, event: SandboxEvent, seq: int) -> None:
        self._queue.append((event, seq))
        self._news.set()

    async def events(self) -> AsyncIterator[SandboxEvent]:
        """Events in order; an exit is acknowledged to the guest when the caller comes for the next event."""
        while not self._released:
            self._news.clear()
            while self._queue:
                event, seq = self._queue[0]
                if isinstance(event, ContainerExited) and not self._is_settled(event):
                    break
                self._queue.popleft()
                yield event
                if isinstance(event, SandboxExited):
                    return
                if isinstance(event, ProcessFacts):
                    self._facts_waiting -= 1
                if seq and self._session is not None:
                    acknowledge = (
                        self._session.acknowledge_facts
                        if isinstance(event, ProcessFacts)
                        else self._session.acknowledge_event
                    )
                    acknowledge(seq)
            if self._queue or not self._released:
                await self._news.wait()

    def _is_settled(self, event: ContainerExited) -> bool:
        started = self.started.get(event.container)
        if started is None or started.runtime_id != event.runtime_id:
            return True
        return started.settled is None or started.settled.is_set() or self.ended is not None

    async def wait_ended(self) -> None:
        """Return when the VM's process has ended and it is known why."""
        await self._over.wait()

    async def while_alive(self, work: Coroutine[Any, Any, T], purpose: str) -> T:
        """Do something with the guest, for as long as the VM lives. Raises `SandboxGone` with how it ended,
        and `DriverError` for whatever the guest could not do."""
        task = asyncio.ensure_future(work)
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise self.gone()
            return task.result()
        except GuestRefused as error:
            raise DriverError(error.kind, error.message[:1000]) from None
        except GuestGone as error:
            # The channel closes a moment before the process has ended and the reason is known.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
                    await self._over.wait()
            raise self.gone() if self.ended else SandboxGone("VmGone", error.message) from None
        except GuestLinkError as error:
            raise DriverError(
                "GuestTimeout", f"the VM did not {purpose}: {error.message}", retryable=True
            ) from None
        finally:
            for each in (task, over):
                each.cancel()
            await asyncio.gather(task, over, return_exceptions=True)

    def gone(self) -> SandboxGone:
        """The end of the VM as an error."""
        if self.ended is None:
            return SandboxGone("VmReleased", "the sandbox was destroyed or let go of")
        return SandboxGone(self.ended.kind, self.ended.text, fix=self.ended.fix, evidence=self.ended.evidence)

    def _shut_down(self, reason: str) -> None:
        self._shutdown_reason = reason or "ended"
        self._run(self._end_paused_vm())

    async def _end_paused_vm(self) -> None:
        with contextlib.suppress(QmpError):
            await self.save_console()
        if is_alive(self.ref):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.ref.pid, signal.SIGKILL)

    async def save_console(self) -> None:
        """Write the end of the guest's console to `console.log`. Raises `QmpError`."""
        if self._qmp is None:
            return
        encoded = await self._qmp.execute(
            "ringbuf-read", device="console", size=CONSOLE_BYTES, format="base64"
        )
        try:
            data = base64.b64decode(str(encoded))
        except ValueError:
            raise QmpError("QEMU's console ring can't be read") from None
        await asyncio.to_thread(write_console, self.files, data)

    async def _watch_process(self) -> None:
        exit_code = await wait_gone(self.ref)
        traces = await asyncio.to_thread(self._traces, exit_code)
        self.ended = explain(traces, at=self._clock.now(), memory_mib=self.spec.task.memory_mib)
        log.info("microVM ended", task=self.spec.task.task_id, kind=self.ended.kind, text=self.ended.text)
        if self._session is not None:
            # What it sent before it ended is still to be read: exits come before the end.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXPLAIN_TIMEOUT_S):
                    await self._session.closed.wait()
        await asyncio.gather(*self._telling, return_exceptions=True)
        self._tell(self.ended, 0)
        self._over.set()

    def watch_servers(self, refs: Iterable[ProcessRef]) -> None:
        """End the VM when one of these programs, which serve it, has ended: its guest would wait for ever."""
        for ref in refs:
            self._run(self._watch_server(ref))

    async def _watch_server(self, ref: ProcessRef) -> None:
        await wait_gone(ref)
        # They end with the VM as well.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SERVER_GRACE_S):
                await self._over.wait()
                return
        self._lost_server = True
        with contextlib.suppress(ProcessLookupError):
            if is_alive(self.ref):
                os.kill(self.ref.pid, signal.SIGKILL)

    def _traces(self, exit_code: int | None) -> Traces:
        return Traces(
            shutdown_reason=self._shutdown_reason,
            exit_code=exit_code,
            console=tail(self.files.console, CONSOLE_BYTES),
            qemu_output=tail(self.files.qemu_log),
            lost_server=self._lost_server,
            oom_record=oom_kill_record(self.ref.pid) if exit_code in (None, -signal.SIGKILL) else None,
        )

    def _run(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]] | None = None) -> None:
        tasks = self._background if group is None else group
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def release(self) -> None:
        """Let go of the VM without touching it; iterators of events end."""
        self._released = True
        self._over.set()
        self._news.set()
        tasks = [*self._background, *self._telling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        if self._qmp is not None:
            await self._qmp.close()
        await self._logs.close()


def _exit_event(started: Started, status: ExitStatus, at: float) -> ContainerExited:
    return ContainerExited(
        container=started.container.name, runtime_id=started.runtime_id, status=status, at=at
    )


def _log_bounds(spec: SandboxSpec) -> dict[str, FileBounds]:
    return {c.name: bounds_of(c.log.driver, c.log.options) for c in spec.task.containers}
