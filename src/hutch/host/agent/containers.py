"""The containers of a task, between its machine and its driver: the machine's orders go one way, what the driver saw the
other way, as events. What an order comes to is an event too; nothing is raised.
"""

import asyncio
from functools import partial

from hutch.base.log import get_logger
from hutch.host.agent.context import RunnerContext, Starts, Tell
from hutch.host.agent.observation import cause_chain, container_named, reason_of
from hutch.host.agent.record import TaskRecord
from hutch.host.agent.taskfile import lacks_secrets, with_secrets
from hutch.host.agent.tasklogs import TaskLogs
from hutch.host.drivers.contract import (
    ContainerExited,
    Driver,
    Handle,
    HostFault,
    ProcessFacts,
    SandboxExited,
)
from hutch.model.task import CauseLink
from hutch.rules import containers as rules
from hutch.rules.signals import stop_signal
from hutch.wire.taskspec import ContainerSpec

log = get_logger(__name__)

START_LIMIT_S = 300.0
ROUTER_DRAIN_S = 5.0


class Containers:
    """Those of one task. All but `__init__` is for a task whose sandbox is there."""

    def __init__(
        self,
        context: RunnerContext,
        driver: Driver | None,
        record: TaskRecord,
        logs: TaskLogs,
        starts: Starts,
        tell: Tell,
    ) -> None:
        self._driver = driver
        self._threats = context.threats
        self._record = record
        self._logs = logs
        self._starts = starts
        self._tell = tell
        self._machine = record.seen.machine
        self._now = context.clock.now
        self._early_exits: dict[str, ContainerExited] = {}

    def _sandbox(self) -> tuple[Driver, Handle]:
        assert self._driver is not None and self._record.file.handle is not None
        return self._driver, self._record.file.handle

    # -- what the driver saw

    async def follow(self) -> None:
        """Tell what happens in the sandbox, until the sandbox has ended."""
        driver, handle = self._sandbox()
        async for event in driver.events(handle):
            if isinstance(event, ContainerExited):
                self._tell(partial(self._exited, event))
            elif isinstance(event, ProcessFacts):
                self._threats.judge(self._record.spec, self._record.seen.runtime_ids, event)
            else:
                self._tell(partial(self._sandbox_exited, event))
                return

    def _exited(self, event: ContainerExited) -> list[rules.Action]:
        name = event.container
        state = self._machine.containers.get(name)
        if state is None:
            return []
        if state.status != rules.RUNNING or self._record.seen.runtime_ids.get(name) != event.runtime_id:
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

    def _sandbox_exited(self, event: SandboxExited) -> list[rules.Action]:
        cause = CauseLink(kind=event.kind, text=event.text, evidence=event.evidence, fix=event.fix)
        return self._machine.sandbox_gone(event.text, cause, min(event.at, self._now()))

    # -- what the machine orders

    async def start(self, name: str) -> None:
        """Start one, once its secrets are known and the task is in memory."""
        spec = self._record.spec
        try:
            container = with_secrets(await self._with_all_secrets(name))
        except HostFault as missing:
            self._start_failed(name, missing)
            return
        # Who shares namespaces with another container needs that one's process to be there.
        shares = "task" in (spec.pid_mode, spec.ipc_mode)
        async with self._starts.none() if shares else self._starts.one():
            await self._starts.awake.wait()
            driver, handle = self._sandbox()
            begun_at = self._now()
            try:
                async with asyncio.timeout(START_LIMIT_S):
                    started = await driver.start_container(handle, container)
            except TimeoutError:
                text = f'container "{name}" did not start within {START_LIMIT_S:g} s'
                fault = HostFault("StartTimedOut", text, aws_prefix="ContainerRuntimeTimeoutError")
                self._start_failed(name, fault)
                return
            except HostFault as fault:
                self._start_failed(name, fault)
                return
            finally:
                self._record.seen.measured("start", name, begun_at, self._now())
        self._logs.begin(container_named(self._record.spec, name))
        self._tell(partial(self._has_started, name, started.runtime_id, started.started_at))

    def _has_started(self, name: str, runtime_id: str, started_at: float) -> list[rules.Action]:
        self._record.seen.runtime_ids[name] = runtime_id
        actions = self._machine.started(name, started_at)
        early = self._early_exits.pop(name, None)
        return actions + (self._exited(early) if early is not None else [])

    def _start_failed(self, name: str, fault: HostFault) -> None:
        first, *others = cause_chain(fault)
        reason = reason_of(fault, "CannotStartContainerError")

        def event() -> list[rules.Action]:
            actions = self._machine.start_failed(name, reason, first, self._now())
            self._machine.causes += others
            return actions

        self._tell(event)

    async def _with_all_secrets(self, name: str) -> ContainerSpec:
        """The container with its secrets, which an agent that was started anew gets with the next assignment."""
        record = self._record
        if lacks_secrets(container_named(record.spec, name)):
            log.info("container waits for its secrets", task=record.spec.task_id, container=name)
            events = [asyncio.ensure_future(e.wait()) for e in (record.assigned, record.ending)]
            try:
                await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for event in events:
                    event.cancel()
                await asyncio.gather(*events, return_exceptions=True)
        container = container_named(record.spec, name)
        if lacks_secrets(container):
            raise HostFault(
                "SecretNotFound",
                f'secrets of container "{name}" can\'t be had any more, and it is to be started again',
                fix="create them anew",
                aws_prefix="ResourceInitializationError",
            )
        return container

    async def terminate(self, order: rules.Terminate) -> None:
        """Send one its stop signal, or SIGKILL."""
        driver, handle = self._sandbox()
        image = self._record.file.images.get(order.container)
        number = 9 if order.kill else stop_signal(str(image.config.get("StopSignal") or "") if image else "")
        container = container_named(self._record.spec, order.container)
        if container.log_router is not None and not order.kill:
            # It goes last, and with all that the others said; but not late.
            await self._logs.drain(min(ROUTER_DRAIN_S, container.stop_timeout_s / 2), order.container)
        try:
            await driver.signal_container(handle, order.container, number)
        except HostFault as fault:
            # Not the end: a sandbox that is gone says so itself, and the timer of the kill goes on.
            task_id = self._record.spec.task_id
            log.info("signal not sent", task=task_id, signal=number, reason=fault.message)

    async def probe(self, name: str) -> None:
        """Run one's health check once."""
        driver, handle = self._sandbox()
        check = container_named(self._record.spec, name).health_check
        assert check is not None
        try:
            async with asyncio.timeout(check.timeout_s + START_LIMIT_S):
                result = await driver.probe(handle, name, check.command, check.timeout_s)
            answer = rules.ProbeAnswer(
                exit_code=None if result.timed_out else result.exit_code,
                timed_out=result.timed_out,
                output=result.output,
            )
        except (HostFault, TimeoutError) as error:
            if not self._starts.awake.is_set():
                return  # once it is resumed, it is asked again
            task_id = self._record.spec.task_id
            log.info("health check not run", task=task_id, container=name, reason=str(error))
            answer = rules.ProbeAnswer(exit_code=None, output=f"it could not be run: {error}")
        self._tell(lambda: self._machine.probed(name, answer, self._now()))
