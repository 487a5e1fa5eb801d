"""One task's life on this host: set up, run, stop, clean up (see `setup` for the first, `record` for what is kept).

Clean-up works alone: every step of it runs even if an earlier one fails, and does no harm if the set-up never came to it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from msgspec.structs import replace

from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.retry import backoff_seconds
from hutch.host.agent.context import RunnerContext, Starts
from hutch.host.agent.metadata import TaskView
from hutch.host.agent.observation import cause_chain, container_named, reason_of, with_last_output
from hutch.host.agent.record import TaskRecord
from hutch.host.agent.setup import SetUp
from hutch.host.agent.taskfile import TaskFile, lacks_secrets, renewed, with_secrets
from hutch.host.agent.tasklogs import TaskLogs, keep_logs
from hutch.host.drivers.contract import (
    ContainerExited,
    Driver,
    ExecStream,
    Handle,
    HostFault,
    ObservedContainer,
    SandboxExited,
    SandboxGone,
    SandboxStats,
    SupportsExec,
    SupportsFork,
    SupportsSuspend,
)
from hutch.model.exec import ExecSpec
from hutch.model.task import CauseLink
from hutch.rules import containers as rules
from hutch.rules.containers import stop_signal
from hutch.wire.fleet import ContainerSpec, Stop, TaskSpec

log = get_logger(__name__)
T = TypeVar("T")

START_LIMIT_S = 300.0
DESTROY_LIMIT_S = 120.0
WITHDRAW_LIMIT_S = 10.0
LOG_DRAIN_S = 5.0
LAST_LOG_DRAIN_S = 30.0
CLEAN_UP_TRIES = 3


class _StoppedEarly(Exception):
    """The task was to be stopped before its set-up was over."""


class TaskRunner:
    """Runs one task. `run` returns when it has ended and everything of it but its directory is gone."""

    def __init__(
        self, context: RunnerContext, driver: Driver | None, refusal: str, directory: Path, content: TaskFile
    ) -> None:
        """`driver` None: this host can't run it, `refusal` says why."""
        self.spec = content.spec
        self._context = context
        self._driver = driver
        self._refusal = refusal
        self._directory = directory
        self._record = TaskRecord(context, content)
        self._seen = self._record.seen
        self._machine = self._seen.machine
        self._now = context.clock.now
        self._events: asyncio.Queue[Callable[[], list[rules.Action]]] = asyncio.Queue()
        self._stop_requested = asyncio.Event()
        self._starts = Starts()
        self._early_exits: dict[str, ContainerExited] = {}
        self._assigned = asyncio.Event()
        """Set once an assignment came after this runner was made."""
        self._ending = asyncio.Event()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._logs = TaskLogs(content.spec, directory / "logs", context.send_logs, context.watcher)
        self._finished = False
        self._power = asyncio.Lock()
        self._power_work: asyncio.Future[None] | None = None
        self._awake = asyncio.Event()
        """Clear while it is suspended, or on the way there."""
        self._awake.set()
        self._forked: tuple[ObservedContainer, ...] = ()
        if content.stop is not None:
            self._stop_requested.set()

    # -- from outside

    def stop(self, stop: Stop, cause: CauseLink | None = None) -> None:
        """End the task in order; the first request counts. `cause`: for a stop that this host decided."""
        if self._record.file.stop is not None:
            return
        self._record.update(stop=stop)
        self._stop_requested.set()
        causes = (cause,) if cause is not None else ()
        self._events.put_nowait(
            lambda: self._unless_suspended(
                self._machine.stop(stop.stop_code, stop.reason, causes, self._now())
            )
        )

    def take_secrets(self, spec: TaskSpec) -> None:
        """The task was assigned again: values that no disk keeps are known from now on. Those of its launch stay."""
        given = {c.name: c for c in spec.containers}
        containers = tuple(
            renewed(c, given[c.name]) if c.name in given and lacks_secrets(c) else c
            for c in self.spec.containers
        )
        self.spec = replace(self.spec, containers=containers)
        self._assigned.set()

    async def run(self) -> None:
        """From wherever the task's file says it is to its end. Cancelled: let go of it, touch nothing."""
        if self._record.file.ended:
            for container in self.spec.containers:
                self._logs.begin(container)
            await self._logs.drain(LOG_DRAIN_S)
            return
        saver = asyncio.create_task(self._record.keep_saving())
        try:
            try:
                await self._live()
            except HostFault as fault:
                self._failed(fault)
            except HutchError as error:
                self._failed(HostFault("HostFault", error.message))
            except Exception as bug:
                log.exception("task runner failed", task=self.spec.task_id)
                self._failed(HostFault("InternalError", f"hutch failed: {bug!r}"))
            await self._clean_up()
        except asyncio.CancelledError:
            await self._logs.let_go()
            raise
        finally:
            saver.cancel()
            await asyncio.gather(saver, return_exceptions=True)
            await self._let_go()

    async def discard(self) -> None:
        """Remove what a set-up that was cut off has left; the task itself is to be started anew."""
        await self._clean_up_steps()

    async def stats(self) -> SandboxStats:
        """What the sandbox uses now. Raises `HostFault`."""
        if self._driver is None or self._record.file.handle is None:
            raise HostFault("NotReady", f"task {self.spec.task_id} has no sandbox yet")
        return await self._driver.stats(self._record.file.handle)

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
        await self._one_at_a_time(self._suspend())

    async def resume(self) -> None:
        """Let a suspended task go on. Raises `HostFault` if it can't; it is then still suspended, unless it has ended."""
        await self._one_at_a_time(self._resume())

    async def snapshot(self, directory: Path) -> None:
        """Copy the running task into a new directory, for forks. Raises `HostFault`."""
        await self._one_at_a_time(self._snapshot(directory))

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
        await asyncio.to_thread(keep_logs, self._directory, kept_logs)
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
            actions = self._compare({c.name: c for c in self._forked})
            await self._carry_out(actions + self._machine.begin(self._now()))
        while not self._finished:
            event = await self._events.get()
            await self._carry_out(event())

    async def _set_up(self) -> None:
        if self._driver is None:
            raise HostFault("NoDriver", self._refusal)
        set_up = SetUp(self._context, self.spec, self._driver, self._directory, self._record)
        self._forked = await set_up.run()

    async def _unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the set-up, or give it up when the task is to be stopped. Raises `_StoppedEarly`."""
        step = asyncio.ensure_future(work)
        request = asyncio.ensure_future(self._stop_requested.wait())
        try:
            await asyncio.wait({step, request}, return_when=asyncio.FIRST_COMPLETED)
            if step.done():
                return step.result()
        finally:
            for task in (step, request):
                task.cancel()
            await asyncio.gather(step, request, return_exceptions=True)
        raise _StoppedEarly

    # -- taking over

    async def _adopt(self, handle: Handle) -> None:
        """Take over a sandbox that an earlier agent made. What ended meanwhile comes as events."""
        assert self._record.file.attachment is not None
        if self._driver is None:
            raise HostFault("NoDriver", self._refusal)
        is_asleep = isinstance(self._driver, SupportsSuspend) and await self._driver.is_suspended(handle)
        if not self._machine.is_stopping:
            await self._publish_again(is_asleep=is_asleep)
        if is_asleep:
            await self._adopt_suspended()
            return
        self._note_suspended(None)
        try:
            sandbox = self._record.sandbox(self.spec, self._directory)
            found = await self._driver.adopt(handle, sandbox)
        except SandboxGone as gone:
            link = cause_chain(gone)[0]
            await self._carry_out(self._machine.sandbox_gone(gone.message, link, self._now()))
            return
        actions = self._compare({c.name: c for c in found})
        stop = self._record.file.stop
        if stop is not None:
            actions += self._machine.stop(stop.stop_code, stop.reason, (), self._now())
        actions += self._machine.resume(self._now())
        for name, state in self._machine.containers.items():
            if state.status == rules.RUNNING:
                self._logs.begin(container_named(self.spec, name))
        self._listen()
        await self._carry_out(actions)

    async def _publish_again(self, *, is_asleep: bool) -> None:
        """An endpoint that is not as it should be is no reason for a running task to end."""
        if not self.spec.publish:
            return
        try:
            await self._context.ingress.publish(self.spec, is_asleep=is_asleep)
        except HostFault as fault:
            log.error("endpoint not published again", task=self.spec.task_id, reason=fault.message)

    async def _adopt_suspended(self) -> None:
        """As `_adopt`, of a task that is not in memory."""
        self._awake.clear()
        self._note_suspended(self._record.file.suspended_at or self._now())
        for name, state in self._machine.containers.items():
            if state.status == rules.RUNNING:
                self._logs.begin(container_named(self.spec, name))
        actions: list[rules.Action] = []
        if (stop := self._record.file.stop) is not None:
            actions = self._machine.stop(stop.stop_code, stop.reason, (), self._now())
        await self._carry_out(self._unless_suspended(actions) if self._machine.is_stopping else [])

    # -- out of memory and back

    async def _one_at_a_time(self, work: Coroutine[Any, Any, None]) -> None:
        """Nothing else of this kind happens to the task meanwhile; its end does not wait for it, but ends it."""
        async with self._power:
            self._power_work = asyncio.ensure_future(work)
            try:
                await self._power_work
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                raise HostFault("TaskEnded", f"task {self.spec.task_id} was stopped meanwhile") from None
            finally:
                self._power_work.cancel()
                await asyncio.gather(self._power_work, return_exceptions=True)
                self._power_work = None

    def _note_suspended(self, at: float | None) -> None:
        self._seen.suspended_at = at
        self._record.update(suspended_at=at)

    def _running_handle(self, what: str) -> Handle:
        if self._machine.status != "RUNNING" or self._record.file.handle is None:
            raise HostFault(
                "TaskNotRunning",
                f"only a task that is RUNNING can be {what}; task {self.spec.task_id} is {self._seen.status}",
            )
        return self._record.file.handle

    async def _suspend(self) -> None:
        driver = self._driver
        if not isinstance(driver, SupportsSuspend):
            raise HostFault(
                "NotSuspended",
                f"tasks of launch type {self.spec.launch_type} can't be suspended",
                fix="run it with launch type FARGATE, in a microVM",
            )
        handle = self._running_handle("suspended")
        if self._record.file.suspended_at is not None:
            return
        async with self._starts.none():
            self._awake.clear()
            try:
                await driver.suspend(handle)
                self._note_suspended(self._now())
            finally:
                if self._record.file.suspended_at is None:
                    self._awake.set()
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        await self._record.save()
        await self._publish_again(is_asleep=True)
        if self._machine.is_stopping:
            self._events.put_nowait(lambda: self._unless_suspended([]))

    async def _resume(self) -> None:
        if self._record.file.suspended_at is None:
            return
        handle = self._running_handle("resumed")
        assert isinstance(self._driver, SupportsSuspend) and self._record.file.attachment is not None
        sandbox = self._record.sandbox(self.spec, self._directory)
        begun_at = self._now()
        opening = asyncio.ensure_future(self._publish_again(is_asleep=False))
        try:
            handle = await self._driver.resume(handle, sandbox)
        except SandboxGone as gone:
            self._note_suspended(None)
            link, message = cause_chain(gone)[0], gone.message
            self._events.put_nowait(lambda: self._machine.sandbox_gone(message, link, self._now()))
            raise
        except HostFault:
            await opening
            await self._publish_again(is_asleep=True)
            raise
        finally:
            await asyncio.gather(opening, return_exceptions=True)
        self._record.update(handle=handle)
        self._note_suspended(None)
        self._seen.measured("resume", "", begun_at, self._now())
        self._awake.set()
        self._listen()
        self._events.put_nowait(lambda: self._machine.resume(self._now()))
        await self._record.save()

    async def _snapshot(self, directory: Path) -> None:
        handle, driver = self._running_handle("forked"), self._driver
        if not isinstance(driver, SupportsFork):
            raise HostFault(
                "NotForked",
                f"tasks of launch type {self.spec.launch_type} can't be forked",
                fix="run it with launch type FARGATE, in a microVM",
            )
        if self._record.file.suspended_at is not None:
            raise HostFault("TaskSuspended", "the task is suspended", fix="resume it first")
        async with self._starts.none():
            await driver.snapshot(handle, str(directory))

    def _unless_suspended(self, actions: list[rules.Action]) -> list[rules.Action]:
        """What is not in memory can't be told to end: it is dropped as it is."""
        if self._seen.suspended_at is None or not self._machine.is_stopping:
            return actions
        text = "the task was stopped while it was suspended: its processes did not go on"
        cause = CauseLink(kind="StoppedWhileSuspended", text=text, fix="resume a task before stopping it")
        return self._machine.sandbox_gone(text, cause, self._now())

    def _compare(self, found: dict[str, ObservedContainer]) -> list[rules.Action]:
        """Bring what was saved to what is: the file may be a step behind."""
        actions: list[rules.Action] = []
        for name, state in self._machine.containers.items():
            seen, known_id = found.get(name), self._seen.runtime_ids.get(name, "")
            if state.status == rules.STOPPED:
                continue
            if state.status == rules.RUNNING and seen is None:
                state.reason = "ContainerRuntimeError: it was gone when the host agent came back"
                actions += self._machine.exited(name, rules.Exit(exit_code=255), self._now())
            elif state.status == rules.RUNNING and seen is not None:
                if seen.runtime_id != known_id:
                    state.restarts += 1
                    state.started_at = seen.started_at or state.started_at
                    self._seen.runtime_ids[name] = seen.runtime_id
            elif seen is not None and seen.runtime_id != known_id:
                state.status = rules.STARTING
                self._seen.runtime_ids[name] = seen.runtime_id
                actions += self._machine.started(name, seen.started_at or self._now())
            elif state.status == rules.STARTING and self._machine.is_stopping:
                state.status = rules.STOPPED
            elif state.status == rules.STARTING:
                actions.append(rules.Start(name))
        return actions

    # -- while it runs

    def _listen(self) -> None:
        self._spawn(self._follow_events())

    async def _follow_events(self) -> None:
        assert self._driver is not None and self._record.file.handle is not None
        async for event in self._driver.events(self._record.file.handle):
            if isinstance(event, ContainerExited):
                self._events.put_nowait(partial(self._container_exited, event))
            else:
                self._events.put_nowait(partial(self._sandbox_exited, event))
                return

    def _container_exited(self, event: ContainerExited) -> list[rules.Action]:
        name = event.container
        state = self._machine.containers.get(name)
        if state is None:
            return []
        if state.status != rules.RUNNING or self._seen.runtime_ids.get(name) != event.runtime_id:
            # Its start is still on the way to us (or it is an old one's, then it never matches).
            self._early_exits[name] = event
            return []
        status = event.status
        how = rules.Exit(
            exit_code=status.exit_code,
            signal=status.signal,
            oom=status.oom,
            oom_process=status.oom_process,
            oom_rss_bytes=status.oom_rss_bytes,
        )
        # The time is the guest's word: never before the start, nor in the future.
        at = min(max(event.at, state.started_at or 0.0), self._now())
        return self._machine.exited(name, how, at)

    def _container_started(self, name: str, runtime_id: str, started_at: float) -> list[rules.Action]:
        self._seen.runtime_ids[name] = runtime_id
        actions = self._machine.started(name, started_at)
        early = self._early_exits.pop(name, None)
        return actions + (self._container_exited(early) if early is not None else [])

    def _sandbox_exited(self, event: SandboxExited) -> list[rules.Action]:
        cause = CauseLink(kind=event.kind, text=event.text, evidence=event.evidence, fix=event.fix)
        return self._machine.sandbox_gone(event.text, cause, min(event.at, self._now()))

    async def _carry_out(self, actions: list[rules.Action]) -> None:
        """Tell what changed, then do what follows from it."""
        now = self._now()
        if self._machine.status == "RUNNING" and self._seen.status == "ACTIVATING":
            self._seen.note("started_at", now)
            self._seen.status = "RUNNING"
        elif self._machine.is_stopping and self._seen.status in ("ACTIVATING", "RUNNING"):
            self._ending.set()
            self._seen.note("stopping_at", now)
            self._seen.status = "DEACTIVATING"
            self._record.changed.set()
            if self.spec.publish:
                await self._withdraw_first()
            self._seen.status = "STOPPING"
        self._record.changed.set()
        for action in actions:
            if isinstance(action, rules.Start):
                self._spawn(self._start_container(action.container))
            elif isinstance(action, rules.Terminate):
                self._spawn(self._terminate(action))
            elif isinstance(action, rules.Probe):
                self._spawn(self._run_probe(action.container))
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

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        """What goes wrong beside the loop ends the task through the loop."""
        self._background.discard(task)
        if task.cancelled() or (error := task.exception()) is None:
            return

        def fail() -> list[rules.Action]:
            assert error is not None
            raise error

        self._events.put_nowait(fail)

    def _arm(self, action: rules.Arm) -> None:
        if old := self._timers.pop(action.key, None):
            old.cancel()

        def fire() -> None:
            self._events.put_nowait(lambda: self._machine.timer(action.key, self._now()))

        self._timers[action.key] = asyncio.get_running_loop().call_later(action.seconds, fire)

    async def _start_container(self, name: str) -> None:
        assert self._driver is not None and self._record.file.handle is not None
        try:
            container = with_secrets(await self._with_all_secrets(name))
        except HostFault as missing:
            self._start_failed(name, missing)
            return
        # Who shares namespaces with another container needs that one's process to be there.
        shares = "task" in (self.spec.pid_mode, self.spec.ipc_mode)
        async with self._starts.none() if shares else self._starts.one():
            await self._awake.wait()
            begun_at = self._now()
            try:
                async with asyncio.timeout(START_LIMIT_S):
                    started = await self._driver.start_container(self._record.file.handle, container)
            except TimeoutError:
                text = f'container "{name}" did not start within {START_LIMIT_S:g} s'
                fault = HostFault("StartTimedOut", text, aws_prefix="ContainerRuntimeTimeoutError")
                self._start_failed(name, fault)
                return
            except HostFault as fault:
                self._start_failed(name, fault)
                return
            finally:
                self._seen.measured("start", name, begun_at, self._now())
        self._logs.begin(container)
        self._events.put_nowait(
            partial(self._container_started, name, started.runtime_id, started.started_at)
        )

    async def _with_all_secrets(self, name: str) -> ContainerSpec:
        """The container with its secrets, which an agent that was started anew gets with the next assignment."""
        if lacks_secrets(container_named(self.spec, name)):
            log.info("container waits for its secrets", task=self.spec.task_id, container=name)
            events = [asyncio.ensure_future(e.wait()) for e in (self._assigned, self._ending)]
            try:
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for event in events:
                    event.cancel()
                await asyncio.gather(*events, return_exceptions=True)
        container = container_named(self.spec, name)
        if lacks_secrets(container):
            raise HostFault(
                "SecretNotFound",
                f'secrets of container "{name}" can\'t be had any more, and it is to be started again',
                fix="create them anew",
                aws_prefix="ResourceInitializationError",
            )
        return container

    def _start_failed(self, name: str, fault: HostFault) -> None:
        first, *others = cause_chain(fault)
        reason = reason_of(fault, "CannotStartContainerError")

        def tell() -> list[rules.Action]:
            actions = self._machine.start_failed(name, reason, first, self._now())
            self._machine.causes += others
            return actions

        self._events.put_nowait(tell)

    async def _terminate(self, action: rules.Terminate) -> None:
        assert self._driver is not None and self._record.file.handle is not None
        image = self._record.file.images.get(action.container)
        number = 9 if action.kill else stop_signal(str(image.config.get("StopSignal") or "") if image else "")
        try:
            await self._driver.signal_container(self._record.file.handle, action.container, number)
        except HostFault as fault:
            # Not the end: a sandbox that is gone says so itself, and the timer of the kill goes on.
            log.info("signal not sent", task=self.spec.task_id, signal=number, reason=fault.message)

    async def _run_probe(self, name: str) -> None:
        assert self._driver is not None and self._record.file.handle is not None
        check = container_named(self.spec, name).health_check
        assert check is not None
        try:
            async with asyncio.timeout(check.timeout_s + START_LIMIT_S):
                result = await self._driver.probe(
                    self._record.file.handle, name, check.command, check.timeout_s
                )
            answer = rules.ProbeAnswer(
                exit_code=None if result.timed_out else result.exit_code,
                timed_out=result.timed_out,
                output=result.output,
            )
        except (HostFault, TimeoutError) as error:
            if not self._awake.is_set():
                return  # once it is resumed, it is asked again
            log.info("health check not run", task=self.spec.task_id, container=name, reason=str(error))
            answer = rules.ProbeAnswer(exit_code=None, output=f"it could not be run: {error}")
        self._events.put_nowait(lambda: self._machine.probed(name, answer, self._now()))

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
        machine.causes = await asyncio.to_thread(with_last_output, machine.causes, self._directory / "logs")
        self._seen.status = "DEPROVISIONING"
        self._record.changed.set()
        await self._let_go()
        self._note_suspended(None)
        # The sandbox is the only other witness of how the containers ended.
        await self._record.save()
        left = await self._clean_up_steps()
        machine.causes += left
        self._seen.note("execution_stopped_at", now)
        self._seen.note("stopped_at", self._now())
        self._seen.status = "STOPPED"
        self._record.update(ended=True)
        await self._record.save()

    async def _clean_up_steps(self) -> list[CauseLink]:
        """All of them, whatever happens to one; what could not be removed."""
        left = []
        for name, step in (
            ("ingress", partial(self._context.ingress.withdraw, self.spec.task_id)),
            ("sandbox", self._destroy),
            ("network", partial(self._context.network.detach, self.spec)),
            ("images", self._release),
            ("logs", partial(self._logs.drain, LOG_DRAIN_S)),
        ):
            if (error := await self._try_clean_up(step)) is not None:
                log.error("clean-up step failed", task=self.spec.task_id, step=name, reason=str(error))
                text = f"the task's {name} could not be removed from the host: {error}"
                left.append(
                    CauseLink(kind="CleanUpFailed", text=text, fix="the next start of hutch tries again")
                )
        return left

    async def _try_clean_up(self, step: Callable[[], Awaitable[object]]) -> Exception | None:
        delays = backoff_seconds(0.2, 2.0, Random(self.spec.task_id))
        for attempt in range(CLEAN_UP_TRIES):
            try:
                async with asyncio.timeout(DESTROY_LIMIT_S):
                    await step()
                return None
            except Exception as error:  # noqa: BLE001 (the other steps must run; what is left is told)
                if attempt + 1 == CLEAN_UP_TRIES:
                    return error
            await asyncio.sleep(next(delays))
        return None

    async def _destroy(self) -> None:
        if self._driver is None:
            return
        if self._record.file.handle is not None:
            await self._driver.destroy(self._record.file.handle)
        else:
            await self._driver.destroy_leftovers(str(self._directory), self.spec.task_id)

    async def _release(self) -> None:
        self._context.images.release(self.spec.task_id)

    async def _let_go(self) -> None:
        """No more timers and nothing beside the loop; the sandbox is not touched."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        tasks: list[asyncio.Future[None]] = list(self._background)
        if self._power_work is not None:
            tasks.append(self._power_work)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
