"""One task's life on this host: set up, run, stop, clean up. Its stages and trades have files of their own.

`setup`: what comes before the first container. `containers`: what happens to these. `suspension`: out of memory and back.
`cleanup`: the end. `record`: what is kept of all this.
"""

import asyncio
import errno
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import asdict

from hutch.base.background import Background
from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.host.agent.cleanup import LOG_DRAIN_S, CleanUp
from hutch.host.agent.containers import Containers
from hutch.host.agent.context import RunnerContext, Starts
from hutch.host.agent.metadata import TaskView
from hutch.host.agent.observation import cause_chain, container_named, reason_of, with_last_output
from hutch.host.agent.record import TaskRecord
from hutch.host.agent.setup import SetUp
from hutch.host.agent.suspension import Suspension
from hutch.host.agent.taskfile import TaskFile
from hutch.host.agent.tasklogs import TaskLogs, keep_logs
from hutch.host.drivers.contract import (
    Driver,
    ExecStream,
    Handle,
    HostFault,
    ObservedContainer,
    SandboxGone,
    SandboxStats,
    SupportsExec,
    SupportsLogRouter,
    SupportsSuspend,
)
from hutch.host.logs.contract import Connection
from hutch.model.exec import ExecSpec
from hutch.model.task import CauseLink
from hutch.rules import containers as rules
from hutch.wire.fleet import Stop
from hutch.wire.taskspec import TaskSpec

log = get_logger(__name__)
T = TypeVar("T")

WITHDRAW_LIMIT_S = 10.0
LAST_LOG_DRAIN_S = 30.0


class _StoppedEarly(Exception):
    """The task was to be stopped before its set-up was over."""


class TaskRunner:
    """Runs one task. `run` returns when it has ended and everything of it but its directory is gone."""

    def __init__(
        self, context: RunnerContext, driver: Driver | None, refusal: str, directory: Path, content: TaskFile
    ) -> None:
        """`driver` None: this host can't run it, `refusal` says why."""
        self._context = context
        self._driver = driver
        self._refusal = refusal
        self._record = TaskRecord(context, content, directory)
        self._seen = self._record.seen
        self._machine = self._seen.machine
        self._now = context.clock.now
        self._events: asyncio.Queue[Callable[[], list[rules.Action]]] = asyncio.Queue()
        self._giving_up: asyncio.Future[Any] | None = None
        """The set-up, while it can be."""
        self._starts = Starts()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._background = Background(self._background_failed)
        self._finished = False
        self._forked: tuple[ObservedContainer, ...] = ()
        tell = self._events.put_nowait
        self._logs = TaskLogs(
            content.spec, directory / "logs", context.send_logs, context.watcher, self._dial_router
        )
        self._containers = Containers(context, driver, self._record, self._logs, self._starts, tell)
        self._suspension = Suspension(
            context,
            driver,
            self._record,
            self._starts,
            tell,
            on_suspended=self._stop_timers,
            on_resumed=self._listen,
        )
        self._clean = CleanUp(context, driver, self._record, self._logs)

    # -- from outside

    @property
    def spec(self) -> TaskSpec:
        """The task's specification, with the values of secrets that are known."""
        return self._record.spec

    @property
    def has_ended(self) -> bool:
        """Whether everything of it but its directory is gone. `run` is then about to return, if it has not."""
        return self._record.file.ended

    def stop(self, stop: Stop, cause: CauseLink | None = None) -> None:
        """End the task in order; the first request counts. `cause`: for a stop that this host decided."""
        if self._record.file.stop is not None:
            return
        self._record.update(stop=stop)
        if self._giving_up is not None:
            self._giving_up.cancel()
        causes = (cause,) if cause is not None else ()
        self._events.put_nowait(
            lambda: self._suspension.unless_suspended(
                self._machine.stop(stop.stop_code, stop.reason, causes, self._now())
            )
        )

    def take_secrets(self, spec: TaskSpec) -> None:
        """The task was assigned again: values that no disk keeps are known from now on. Those of its launch stay."""
        self._record.take_secrets(spec)
        self._logs.take_secrets(self.spec)

    async def run(self) -> None:
        """From wherever the task's file says it is to its end. Cancelled: let go of it, touch nothing."""
        if self._record.file.ended:
            for container in self.spec.containers:
                self._logs.begin(container)
            self._record.close()
            await self._logs.drain(LOG_DRAIN_S)
            return
        try:
            try:
                await self._live()
            except HostFault as fault:
                self._failed(fault)
            except HutchError as error:
                self._failed(HostFault("HostFault", error.message))
            except Exception as error:
                if (cause := _of_the_disk(error)) is None:
                    log.exception("task runner failed", task=self.spec.task_id)
                    cause = HostFault("InternalError", f"hutch failed: {error!r}")
                self._failed(cause)
            await self._clean_up()
        except asyncio.CancelledError:
            await self._logs.let_go()
            raise
        finally:
            self._record.close()
            await self._let_go()

    async def discard(self) -> None:
        """Remove what a set-up that was cut off has left; the task itself is to be started anew."""
        await self._clean.run()

    async def stats(self) -> SandboxStats:
        """What the sandbox uses now. Raises `HostFault`."""
        if self._driver is None or self._record.file.handle is None:
            raise HostFault("NotReady", f"task {self.spec.task_id} has no sandbox yet")
        return await self._driver.stats(self._record.file.handle)

    def log_drivers(self) -> dict[str, Any]:
        """How the shipping of the containers' logs is: name to driver, waiting_bytes, dropped_bytes, problem."""
        drivers = {c.name: c.log.driver for c in self.spec.containers}
        return {
            name: {"driver": drivers[name], **asdict(status)} for name, status in self._logs.status().items()
        }

    async def _dial_router(self, container: str) -> Connection:
        if not isinstance(self._driver, SupportsLogRouter):
            raise HostFault("NotServed", "the task runs on a driver that can't reach a log router")
        if self._record.file.handle is None:
            raise HostFault("NotReady", f"task {self.spec.task_id} has no sandbox yet")
        return await self._driver.dial_router(self._record.file.handle, container)

    def view(self) -> TaskView:
        """What the task may see of itself now."""
        return TaskView(
            spec=self.spec,
            facts=self._seen.facts(),
            stops=self._machine.is_stopping or self._record.file.stop is not None,
            created_at=self._seen.created_at,
            nameservers=self._record.file.attachment.nameservers if self._record.file.attachment else (),
            search=self._record.file.attachment.search if self._record.file.attachment else (),
            health=self._seen.health(),
            take_stats=self.stats,
            take_traffic=lambda: self._context.network.traffic(self.spec),
        )

    async def suspend(self) -> None:
        """Take the task out of the host's memory, as it is. Raises `HostFault` if it can't be; it then runs on, unless it
        has ended."""
        await self._suspension.suspend()

    async def resume(self) -> None:
        """Let a suspended task go on. Raises `HostFault` if it can't; it is then still suspended, unless it has ended."""
        await self._suspension.resume()

    async def snapshot(self, directory: Path) -> None:
        """Copy the running task into a new directory, for forks. Raises `HostFault`."""
        await self._suspension.snapshot(directory)

    async def exec(self, container: str, spec: ExecSpec) -> ExecStream:
        """Run a further process in a container. Raises `HostFault`."""
        if not isinstance(self._driver, SupportsExec):
            raise HostFault("NotServed", f"task {self.spec.task_id} runs on a driver that has no exec")
        if self._record.file.handle is None:
            raise HostFault("NotReady", f"task {self.spec.task_id} has no sandbox yet")
        return await self._driver.exec(self._record.file.handle, container, spec)

    async def forget(self, kept_logs: Path) -> None:
        """The control plane has all of it: ship the last logs, keep them on the host, drop the rest."""
        await self._logs.drain(LAST_LOG_DRAIN_S)
        await self._logs.let_go()
        # In this order: a record without its directory is taken for an ended task, a directory without its record for
        # leftovers.
        await asyncio.to_thread(keep_logs, self._record.directory, kept_logs)
        await self._context.book.remove(self.spec.task_id)

    async def close(self) -> None:
        """The agent ends: nothing of this task goes on in this process."""
        await self._logs.let_go()

    # -- set-up

    async def _live(self) -> None:
        if self._record.file.handle is not None:
            await self._adopt(self._record.file.handle)
        else:
            try:
                await self._unless_stopped(self._set_up())
            except _StoppedEarly:
                stop = self._record.file.stop
                assert stop is not None
                self._machine.stop(stop.stop_code, stop.reason, (), self._now())
                return
            self._listen()
            for forked in self._forked:
                self._logs.begin(container_named(self.spec, forked.name))
            actions = self._seen.catch_up({c.name: c for c in self._forked}, self._now())
            await self._carry_out(actions + self._machine.begin(self._now()))
        while not self._finished:
            event = await self._events.get()
            await self._carry_out(event())

    async def _set_up(self) -> None:
        if self._driver is None:
            raise HostFault("NoDriver", self._refusal)
        self._forked = await SetUp(self._context, self._driver, self._record).run()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the set-up, or give it up when the task is to be stopped. Raises `_StoppedEarly`."""
        step = asyncio.ensure_future(work)
        self._giving_up = step
        if self._record.file.stop is not None:
            step.cancel()
        try:
            return await step
        except (asyncio.CancelledError, HutchError):
            current = asyncio.current_task()
            if self._record.file.stop is None or (current is not None and current.cancelling()):
                raise
            raise _StoppedEarly from None
        finally:
            self._giving_up = None

    # -- taking over

    async def _adopt(self, handle: Handle) -> None:
        """Take over a sandbox that an earlier agent made. What ended meanwhile comes as events."""
        assert self._record.file.attachment is not None
        if self._driver is None:
            raise HostFault("NoDriver", self._refusal)
        is_asleep = isinstance(self._driver, SupportsSuspend) and await self._driver.is_suspended(handle)
        if not self._machine.is_stopping:
            await self._suspension.publish_again(is_asleep=is_asleep)
        if is_asleep:
            await self._adopt_suspended()
            return
        self._suspension.note(None)
        try:
            found = await self._driver.adopt(handle, self._record.sandbox())
        except SandboxGone as gone:
            link = cause_chain(gone)[0]
            await self._carry_out(self._machine.sandbox_gone(gone.message, link, self._now()))
            return
        actions = self._seen.catch_up({c.name: c for c in found}, self._now())
        stop = self._record.file.stop
        if stop is not None:
            actions += self._machine.stop(stop.stop_code, stop.reason, (), self._now())
        actions += self._machine.resume(self._now())
        self._read_logs_again()
        self._listen()
        await self._carry_out(actions)

    async def _adopt_suspended(self) -> None:
        """As `_adopt`, of a task that is not in memory."""
        self._starts.awake.clear()
        self._suspension.note(self._record.file.suspended_at or self._now())
        self._read_logs_again()
        actions: list[rules.Action] = []
        if (stop := self._record.file.stop) is not None:
            actions = self._machine.stop(stop.stop_code, stop.reason, (), self._now())
        await self._carry_out(self._suspension.unless_suspended(actions) if self._machine.is_stopping else [])

    def _read_logs_again(self) -> None:
        for name, state in self._machine.containers.items():
            if state.status == rules.RUNNING:
                self._logs.begin(container_named(self.spec, name))

    # -- while it runs

    def _listen(self) -> None:
        self._background.start(self._containers.follow())

    async def _carry_out(self, actions: list[rules.Action]) -> None:
        """Tell what changed, then do what follows from it."""
        now = self._now()
        if self._machine.status == "RUNNING" and self._seen.status == "ACTIVATING":
            self._seen.note("started_at", now)
            self._seen.status = "RUNNING"
        elif self._machine.is_stopping and self._seen.status in ("ACTIVATING", "RUNNING"):
            self._record.ending.set()
            self._seen.note("stopping_at", now)
            self._seen.status = "DEACTIVATING"
            self._record.touch()
            if self.spec.publish:
                await self._withdraw_first()
            self._seen.status = "STOPPING"
        self._record.touch()
        for action in actions:
            if isinstance(action, rules.Start):
                self._background.start(self._containers.start(action.container))
            elif isinstance(action, rules.Terminate):
                self._background.start(self._containers.terminate(action))
            elif isinstance(action, rules.Probe):
                self._background.start(self._containers.probe(action.container))
            elif isinstance(action, rules.Arm):
                self._arm(action)
            else:
                self._finished = True

    async def _withdraw_first(self) -> None:
        """New connections go elsewhere before the containers are told to end."""
        try:
            async with asyncio.timeout(WITHDRAW_LIMIT_S):
                await self._context.ingress.withdraw(self.spec.task_id)
        except (HostFault, TimeoutError) as error:
            log.warning("endpoint not withdrawn yet", task=self.spec.task_id, reason=str(error))

    def _background_failed(self, error: BaseException) -> None:
        """What goes wrong beside the loop ends the task through the loop."""

        def fail() -> list[rules.Action]:
            raise error

        self._events.put_nowait(fail)

    def _arm(self, action: rules.Arm) -> None:
        if old := self._timers.pop(action.key, None):
            old.cancel()

        def fire() -> None:
            self._events.put_nowait(lambda: self._machine.timer(action.key, self._now()))

        self._timers[action.key] = asyncio.get_running_loop().call_later(action.seconds, fire)

    # -- the end

    def _failed(self, fault: HostFault) -> None:
        """The task can't go on: remember why, unless it was being stopped anyway."""
        reason = reason_of(fault, "ResourceInitializationError")
        code = rules.ESSENTIAL_EXITED if self._machine.status == "RUNNING" else rules.FAILED_TO_START
        self._machine.stop(code, reason, cause_chain(fault), self._now())

    async def _clean_up(self) -> None:
        machine, now = self._machine, self._now()
        self._seen.note("stopping_at", now)
        ended = [s.finished_at for s in machine.containers.values() if s.finished_at is not None]
        if ended:
            self._seen.note("execution_stopped_at", max(ended))
        for state in machine.containers.values():
            if state.status in (rules.STARTING, rules.RUNNING):
                state.finished_at = now
            state.status = rules.STOPPED
        machine.causes = await asyncio.to_thread(
            with_last_output, machine.causes, self._record.directory / "logs"
        )
        self._seen.status = "DEPROVISIONING"
        self._record.touch()
        await self._let_go()
        self._suspension.note(None)
        # The sandbox is the only other witness of how the containers ended.
        await self._record.save()
        left = await self._clean.run()
        machine.causes += left
        self._seen.logs = self._logs.status()
        self._seen.note("execution_stopped_at", now)
        self._seen.note("stopped_at", self._now())
        self._seen.status = "STOPPED"
        self._record.update(ended=True)
        await self._record.save()

    async def _let_go(self) -> None:
        """No more timers and nothing beside the loop; the sandbox is not touched."""
        self._stop_timers()
        await asyncio.gather(self._background.end(), self._suspension.end())

    def _stop_timers(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()


def _of_the_disk(error: Exception) -> HostFault | None:
    """What the kernel said of a disk that takes nothing; None if it is about something else."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return None
    place = f" ({error.filename})" if error.filename else ""
    if error.errno == errno.EROFS:
        fix = "mount the data directory's file system for writing"
        return HostFault("HostDiskReadOnly", f"the host's disk is read-only{place}", fix=fix)
    fix = "free space in the data directory"
    return HostFault("HostDiskFull", f"the host's disk is full{place}", fix=fix)
