"""A running microVM as this host agent sees it: its process, its guest, and what to tell of them. What depends on the VM
monitor is in `qemu_sandbox.py` and `firecracker/sandbox.py`.
"""

import asyncio
import contextlib
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Coroutine
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
from hutch.host.drivers.microvm.event_queue import EventQueue
from hutch.host.drivers.microvm.plan import runtime_id
from hutch.host.drivers.microvm.vm import VmFiles
from hutch.host.guestlink.logs import SandboxLogs
from hutch.host.guestlink.session import GuestGone, GuestLinkError, GuestRefused, GuestSession
from hutch.host.kernel.kmsg import oom_kill_record
from hutch.host.kernel.process import ProcessRef, wait_gone
from hutch.rules.logdrivers.files import FileBounds, bounds_of
from hutch.wire.guest_documents import ContainerExitedEvent, GuestContainer, HelloAnswer, StateAnswer
from hutch.wire.taskspec import ContainerSpec

log = get_logger(__name__)
T = TypeVar("T")
EXPLAIN_TIMEOUT_S = 5.0
DRAIN_TIMEOUT_S = 10.0
FREEZE_TIMEOUT_S = 10.0
ENTROPY_BYTES = 64
MAX_EARLY_EXITS = 1000
"""A guest that tells more between its greeting and its containers being known is not listened to."""


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


class Sandbox(ABC):
    """One VM. Made by the driver with `attach`; all verbs from one event loop."""

    def __init__(
        self,
        spec: SandboxSpec,
        files: VmFiles,
        ref: ProcessRef,
        clock: Clock,
        *,
        is_new: bool = True,
    ) -> None:
        """`is_new`: it has no containers yet; else `take_over` must follow `attach`."""
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
        self._early_exits: dict[int, ContainerExitedEvent] | None = None if is_new else {}
        """By number of the event, exits that the guest told before `take_over` said whose they are; None after that."""
        self._queue = EventQueue(self._is_settled, self._acknowledge)
        self._over = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._telling: set[asyncio.Task[None]] = set()

    @property
    def session(self) -> GuestSession:
        """The conversation with the guest; there is one from `attach` on."""
        if self._session is None:
            raise SandboxGone("VmNotAttached", "the VM's guest was never reached")
        return self._session

    async def attach(self, *, hello_timeout_s: float) -> HelloAnswer:
        """Connect to monitor and guest, greet it, and watch the process. Raises `DriverError`, `SandboxGone`."""
        self._run(self._watch_process())
        return await self.while_alive(self._attach(hello_timeout_s), "come up")

    @abstractmethod
    async def _attach(self, hello_timeout_s: float) -> HelloAnswer:
        """Connect to the monitor and to the guest (`_session`), have the VM run, greet it. Raises `DriverError`,
        `SandboxGone`, `GuestLinkError`."""

    @abstractmethod
    async def save_console(self) -> None:
        """Write the end of the guest's console to `console.log`. Raises `HutchError` if the monitor does not give it."""

    @abstractmethod
    def _traces(self, exit_code: int | None) -> Traces:
        """What a process that has ended left. Blocks."""

    @abstractmethod
    async def _close_monitor(self) -> None:
        """Let go of the connection to the monitor."""

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

    @property
    def _first_id(self) -> int:
        """The first number of a new session's requests, beyond those of all sessions before."""
        return int(self._clock.now() * 1000) * 1000

    def _now_ns(self) -> int:
        return int(self._clock.now() * 1e9)

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
        early, self._early_exits = self._early_exits or {}, None
        for event in early.values():
            await self._exited(event)
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
            self._queue.look_again()

    async def _exited(self, event: ContainerExitedEvent) -> None:
        if self._early_exits is not None:
            if len(self._early_exits) < MAX_EARLY_EXITS:
                self._early_exits[event.seq] = event
            return
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
        self._queue.tell(_exit_event(started, status, at_ns / 1e9), seq)

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

    def events(self) -> AsyncIterator[SandboxEvent]:
        """Events in order; an exit is acknowledged to the guest when the caller comes for the next event."""
        return aiter(self._queue)

    def _acknowledge(self, event: SandboxEvent, seq: int) -> None:
        if self._session is None:
            return
        if isinstance(event, ProcessFacts):
            self._session.acknowledge_facts(seq)
        else:
            self._session.acknowledge_event(seq)

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
        self._queue.tell(self.ended, 0)
        self._over.set()

    def _oom_record(self, exit_code: int | None) -> str | None:
        """The host kernel's words on having killed the process, if it was killed. Blocks."""
        return oom_kill_record(self.ref.pid) if exit_code in (None, -signal.SIGKILL) else None

    def _run(self, work: Coroutine[Any, Any, None], group: set[asyncio.Task[None]] | None = None) -> None:
        tasks = self._background if group is None else group
        task = asyncio.create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def release(self) -> None:
        """Let go of the VM without touching it; iterators of events end."""
        self._over.set()
        self._queue.close()
        tasks = [*self._background, *self._telling]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._session is not None:
            await self._session.close()
        await self._close_monitor()
        await self._logs.close()


def _exit_event(started: Started, status: ExitStatus, at: float) -> ContainerExited:
    return ContainerExited(
        container=started.container.name, runtime_id=started.runtime_id, status=status, at=at
    )


def _log_bounds(spec: SandboxSpec) -> dict[str, FileBounds]:
    return {c.name: bounds_of(c.log.driver, c.log.options) for c in spec.task.containers}
