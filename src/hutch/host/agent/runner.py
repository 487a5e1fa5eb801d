"""One task's life on this host: set up, run, stop, clean up; each step measured, each fact reported.

Set-up is a row of named steps, clean-up another that works alone: every clean-up step runs even if an earlier one
fails, and does no harm if the set-up never came to it.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any, Protocol

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import HutchError, Invalid
from hutch.base.log import get_logger
from hutch.base.retry import backoff_seconds
from hutch.base.units import GIB
from hutch.host.agent.logship import LogShipper
from hutch.host.agent.taskfile import SavedContainer, TaskFile, save, without_secrets
from hutch.host.drivers.contract import (
    Attachment,
    ContainerExited,
    Driver,
    HostFault,
    RootImage,
    SandboxExited,
    SandboxGone,
    SandboxSpec,
)
from hutch.host.images.contract import ImageStore
from hutch.host.kernel.inotify import FileWatcher
from hutch.host.network.contract import HostNetwork
from hutch.model.task import CauseLink
from hutch.rules import containers as rules
from hutch.rules.awslogs import parse_options
from hutch.wire.fleet import (
    CauseFact,
    ContainerFact,
    ContainerSpec,
    LogEvent,
    PhaseFact,
    Stop,
    TaskFacts,
    TaskSpec,
)

log = get_logger(__name__)

RETRY_FOR_S = 15.0
LOG_DRAIN_S = 5.0
_SIGNAL_NUMBERS = {"SIGHUP": 1, "SIGINT": 2, "SIGQUIT": 3, "SIGKILL": 9, "SIGUSR1": 10, "SIGUSR2": 12, "SIGTERM": 15,
                   "SIGWINCH": 28}  # fmt: skip


class Ingress(Protocol):
    """What publishes host ports; `hutch.host.lb` implements it."""

    async def publish(self, task: TaskSpec) -> None:
        """Make the task's published ports reachable. Raises `HostFault`."""
        ...

    async def withdraw(self, task_id: str) -> None:
        """Take them back; also if they never were."""
        ...


class RunnerContext(msgspec.Struct, frozen=True, kw_only=True):
    """What all runners of a host share."""

    images: ImageStore
    network: HostNetwork
    ingress: Ingress
    clock: Clock
    watcher: FileWatcher
    report: Callable[[TaskFacts], None]
    send_logs: Callable[[TaskSpec, ContainerSpec, tuple[LogEvent, ...]], Awaitable[str]]


class TaskRunner:
    """Runs one task. `run` returns when it has ended and everything of it but its directory is gone."""

    def __init__(
        self, context: RunnerContext, driver: Driver | None, refusal: str, directory: Path, content: TaskFile
    ) -> None:
        self._context = context
        self._driver = driver
        self._refusal = refusal
        self._directory = directory
        self._file = content
        self.spec = content.spec
        self._now = context.clock.now
        self._machine = rules.TaskMachine(
            tuple(_rule(c) for c in content.spec.containers), content.spec.memory_mib
        )
        self._runtime_ids: dict[str, str] = {}
        self._digests = {n: i.digest for n, i in content.images.items()}
        self._phases: list[PhaseFact] = list(content.phases)
        self._times: dict[str, float] = {}
        self._events: asyncio.Queue[Callable[[], list[rules.Action]]] = asyncio.Queue()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._shippers: dict[str, tuple[LogShipper, asyncio.Task[None]]] = {}
        self._status = "ACTIVATING"
        self._finished = False

    # -- from outside

    def stop(self, stop: Stop) -> None:
        """End the task in order; the first request counts."""
        if self._file.stop is not None:
            return
        self._save(stop=stop)
        self._events.put_nowait(lambda: self._machine.stop(stop.stop_code, stop.reason, (), self._now()))

    async def run(self) -> None:
        """From wherever the task's file says it is to its end."""
        if self._file.ended:
            return
        try:
            try:
                if self._file.handle is not None:
                    await self._adopt()
                else:
                    await self._launch()
                await self._loop()
            except HostFault as fault:
                self._failed(fault)
            except HutchError as error:
                self._failed(HostFault("HostFault", error.message, aws_prefix="ResourceInitializationError"))
        except asyncio.CancelledError:
            await self._let_go()
            raise
        await self._clean_up()

    # -- set-up

    async def _launch(self) -> None:
        spec = self.spec
        driver = self._driver
        if self._file.stop is not None:
            self._machine.stop(self._file.stop.stop_code, self._file.stop.reason, (), self._now())
        if driver is None:
            raise HostFault("NoDriver", self._refusal, aws_prefix="ResourceInitializationError")
        self._report("ACTIVATING")
        await driver.destroy_leftovers(str(self._directory), spec.task_id)
        setting_up = asyncio.gather(
            self._step("network", "", self._context.network.attach(spec, driver.capabilities.network)),
            self._pull_all(driver),
            self._step("publish", "", self._context.ingress.publish(spec)) if spec.publish else _nothing(),
        )
        attachment, images, _ = await self._unless_stopped(setting_up)
        self._times["network_ready_at"] = self._now()
        self._save(attachment=attachment, images=images, driver=driver.name)
        handle = await self._unless_stopped(
            self._step("boot" if driver.capabilities.owns_kernel else "sandbox", driver.name,
                       driver.create(self._sandbox(attachment, images)))
        )  # fmt: skip
        self._save(handle=handle)
        self._listen()
        self._do(self._machine.begin(self._now()))

    async def _unless_stopped(self, work: Awaitable[Any]) -> Any:
        """Wait for a step of the set-up, or give it up when the task is to be stopped meanwhile."""
        step = asyncio.ensure_future(work)
        while not self._machine.is_stopping:
            request = asyncio.ensure_future(self._events.get())
            try:
                await asyncio.wait({step, request}, return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                step.cancel()
                request.cancel()
                await asyncio.gather(step, return_exceptions=True)
                raise
            if request.done():
                self._do(request.result()())
            else:
                request.cancel()
            if step.done():
                return step.result()
        step.cancel()
        await asyncio.gather(step, return_exceptions=True)
        raise HostFault("Stopped", self._machine.stopped_reason)

    async def _pull_all(self, driver: Driver) -> dict[str, RootImage]:
        self._times["pull_started_at"] = self._now()
        names = [c.name for c in self.spec.containers]
        pulled = await asyncio.gather(*(self._pull(driver, c) for c in self.spec.containers))
        self._times["pull_stopped_at"] = self._now()
        return dict(zip(names, pulled, strict=True))

    async def _pull(self, driver: Driver, container: ContainerSpec) -> RootImage:
        delays = backoff_seconds(0.2, 4.0, Random(container.container_id))
        give_up_at = self._context.clock.monotonic() + RETRY_FOR_S
        while True:
            try:
                image: RootImage = await self._step(
                    "pull",
                    container.image,
                    self._context.images.prepare(
                        container.image,
                        architecture=self.spec.architecture,
                        root_format=driver.capabilities.root_format,
                        credentials=container.registry_credentials,
                        max_bytes=self.spec.ephemeral_gib * GIB,
                    ),
                )
                break
            except HostFault as fault:
                delay = next(delays)
                if not fault.retryable or self._context.clock.monotonic() + delay > give_up_at:
                    raise
                await asyncio.sleep(delay)
        self._context.images.acquire(image.digest, self.spec.task_id)
        self._digests[container.name] = image.digest
        return image

    async def _step(self, name: str, detail: str, work: Awaitable[Any]) -> Any:
        """Run a step and measure it."""
        started_at = self._now()
        try:
            return await work
        finally:
            self._phases.append(
                PhaseFact(name=name, started_at=started_at, ended_at=self._now(), detail=detail)
            )

    def _sandbox(self, attachment: Attachment, images: dict[str, RootImage]) -> SandboxSpec:
        return SandboxSpec(
            task=self.spec, directory=str(self._directory), images=images, attachment=attachment
        )

    async def _adopt(self) -> None:
        """Take over a sandbox that an earlier agent made. What ended meanwhile comes as events."""
        assert self._file.handle is not None and self._file.attachment is not None
        self._restore()
        driver = self._driver
        if driver is None:
            raise HostFault("NoDriver", self._refusal)
        sandbox = self._sandbox(self._file.attachment, self._file.images)
        if self.spec.publish:
            await self._context.ingress.publish(self.spec)
        try:
            found = await driver.adopt(self._file.handle, sandbox)
        except SandboxGone as gone:
            self._do(self._machine.sandbox_gone(gone.message, _cause_link(gone), self._now()))
            self._events.put_nowait(list)
            return
        seen = {c.name for c in found}
        for name, state in self._machine.containers.items():
            if state.status == rules.STARTING and name in seen:
                # Its start was under way when the earlier agent ended, and came through.
                observed = next(c for c in found if c.name == name)
                self._runtime_ids[name] = observed.runtime_id
                self._do(self._machine.started(name, observed.started_at or self._now()))
            elif state.status == rules.STARTING:
                self._do([rules.Start(name)])
            elif state.status == rules.RUNNING:
                self._ship_logs(name)
                if state.rule.health:
                    self._do([rules.Arm(f"probe/{name}", state.rule.health.interval_s)])
        self._listen()
        if self._file.stop is not None:
            stop = self._file.stop
            self._do(self._machine.stop(stop.stop_code, stop.reason, (), self._now()))
        self._do(self._machine.begin(self._now()))

    def _restore(self) -> None:
        for saved in self._file.containers:
            state = self._machine.containers[saved.name]
            state.status, state.restarts, state.reason = saved.status, saved.restarts, saved.reason
            state.started_at, state.finished_at, state.health = (
                saved.started_at,
                saved.finished_at,
                saved.health,
            )
            state.exit = msgspec.convert(saved.exit, rules.Exit) if saved.exit else None
            self._runtime_ids[saved.name] = saved.runtime_id
        facts = self._file.facts
        if facts is None:
            return
        self._status = facts.status
        if facts.started_at:
            self._machine.status = "RUNNING"
        for name in ("network_ready_at", "pull_started_at", "pull_stopped_at", "started_at", "stopping_at"):
            if (value := getattr(facts, name)) is not None:
                self._times[name] = value
        if facts.stop_code:
            causes = tuple(
                CauseLink(kind=c.kind, text=c.text, evidence=c.evidence, fix=c.fix) for c in facts.causes
            )
            self._machine.stop(facts.stop_code, facts.stopped_reason, causes, self._now())

    # -- while it runs

    async def _loop(self) -> None:
        while not self._finished:
            event = await self._events.get()
            self._do(event())

    def _listen(self) -> None:
        self._spawn(self._follow_events())

    async def _follow_events(self) -> None:
        assert self._driver is not None and self._file.handle is not None
        async for event in self._driver.events(self._file.handle):
            if isinstance(event, ContainerExited):
                self._events.put_nowait(lambda e=event: self._container_exited(e))  # type: ignore[misc]
            else:
                self._events.put_nowait(lambda e=event: self._sandbox_exited(e))  # type: ignore[misc]
                return

    def _container_exited(self, event: ContainerExited) -> list[rules.Action]:
        if self._runtime_ids.get(event.container) not in (None, "", event.runtime_id):
            return []
        status = event.status
        how = rules.Exit(
            exit_code=status.exit_code,
            signal=status.signal,
            oom=status.oom,
            oom_process=status.oom_process,
            oom_rss_bytes=status.oom_rss_bytes,
        )
        self._times.setdefault("execution_stopped_at", event.at)
        actions = self._machine.exited(event.container, how, event.at)
        if not any(isinstance(a, rules.Start) and a.container == event.container for a in actions):
            self._end_logs(event.container)
        return actions

    def _sandbox_exited(self, event: SandboxExited) -> list[rules.Action]:
        cause = CauseLink(kind=event.kind, text=event.text, evidence=event.evidence, fix=event.fix)
        return self._machine.sandbox_gone(event.text, cause, event.at)

    def _do(self, actions: list[rules.Action]) -> None:
        """Carry actions out; then make durable and report what they led to."""
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
        self._save_containers()
        if self._machine.status == "RUNNING" and self._status == "ACTIVATING":
            self._times.setdefault("started_at", self._now())
            self._report("RUNNING")
        elif self._machine.is_stopping and self._status in ("ACTIVATING", "RUNNING"):
            self._times.setdefault("stopping_at", self._now())
            self._report("DEACTIVATING")
            self._report("STOPPING")
        else:
            self._report(self._status)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task step failed", task=self.spec.task_id, reason=repr(error))

    def _arm(self, action: rules.Arm) -> None:
        if old := self._timers.pop(action.key, None):
            old.cancel()
        fire = lambda: self._events.put_nowait(lambda: self._machine.timer(action.key, self._now()))  # noqa: E731
        self._timers[action.key] = asyncio.get_running_loop().call_later(action.seconds, fire)

    async def _start_container(self, name: str) -> None:
        assert self._driver is not None and self._file.handle is not None
        container = next(c for c in self.spec.containers if c.name == name)
        self._runtime_ids[name] = ""
        try:
            started = await self._step(
                "start", name, self._driver.start_container(self._file.handle, container)
            )
        except HostFault as fault:
            prefix = fault.aws_prefix or "CannotStartContainerError"
            reason = f"{prefix}: {fault.message}"
            link = _cause_link(fault)
            self._events.put_nowait(lambda: self._machine.start_failed(name, reason, link, self._now()))
            return
        self._runtime_ids[name] = started.runtime_id
        self._ship_logs(name)
        self._events.put_nowait(lambda: self._machine.started(name, started.started_at))

    async def _terminate(self, action: rules.Terminate) -> None:
        assert self._driver is not None and self._file.handle is not None
        image = self._file.images.get(action.container)
        wanted = str(image.config.get("StopSignal") or "SIGTERM") if image else "SIGTERM"
        number = 9 if action.kill else _signal_number(wanted)
        with contextlib.suppress(SandboxGone):
            await self._driver.signal_container(self._file.handle, action.container, number)

    async def _run_probe(self, name: str) -> None:
        assert self._driver is not None and self._file.handle is not None
        container = next(c for c in self.spec.containers if c.name == name)
        check = container.health_check
        assert check is not None
        healthy = False
        try:
            result = await self._driver.probe(self._file.handle, name, check.command, check.timeout_s)
            healthy = result.exit_code == 0 and not result.timed_out
        except HostFault as fault:
            log.info("health check not run", task=self.spec.task_id, container=name, reason=fault.message)
        self._events.put_nowait(lambda: self._machine.probed(name, healthy, self._now()))

    # -- logs

    def _ship_logs(self, name: str) -> None:
        container = next(c for c in self.spec.containers if c.name == name)
        if container.log.driver != "awslogs" or name in self._shippers:
            return
        try:
            options = parse_options(container.log.options)
        except Invalid as error:
            log.warning("log options refused", task=self.spec.task_id, container=name, reason=error.message)
            return

        async def send(events: tuple[LogEvent, ...]) -> str:
            return await self._context.send_logs(self.spec, container, events)

        shipper = LogShipper(self._directory / "logs" / f"{name}.log", options, send, self._context.watcher)
        self._shippers[name] = (shipper, asyncio.create_task(shipper.run()))

    def _end_logs(self, name: str) -> None:
        if name in self._shippers:
            self._shippers[name][0].end()

    # -- the end

    def _failed(self, fault: HostFault) -> None:
        """The task can't be run: remember why, unless it was to be stopped anyway."""
        if fault.kind == "Stopped":
            return
        reason = f"{fault.aws_prefix}: {fault.message}" if fault.aws_prefix else fault.message
        self._machine.stop(rules.FAILED_TO_START, reason, (_cause_link(fault),), self._now())
        for state in self._machine.containers.values():
            state.status = rules.STOPPED
            state.reason = state.reason or (reason if fault.aws_prefix.startswith("Cannot") else "")
        self._times.setdefault("stopping_at", self._now())

    async def _let_go(self) -> None:
        """The agent ends and the task goes on: stop watching, touch nothing."""
        for timer in self._timers.values():
            timer.cancel()
        tasks = [*self._background, *(t for _, t in self._shippers.values())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _clean_up(self) -> None:
        for timer in self._timers.values():
            timer.cancel()
        if self._status not in ("DEACTIVATING", "STOPPING"):
            self._times.setdefault("stopping_at", self._now())
            self._report("DEACTIVATING")
        self._report("DEPROVISIONING")
        for name, work in (
            ("logs", self._drain_logs),
            ("ingress", self._withdraw),
            ("sandbox", self._destroy),
            ("network", self._detach),
            ("images", self._release),
        ):
            try:
                await work()
            except (HutchError, OSError) as error:
                log.error("clean-up step failed", task=self.spec.task_id, step=name, reason=str(error))
        await self._let_go()
        self._times.setdefault("execution_stopped_at", self._now())
        self._times["stopped_at"] = self._now()
        for state in self._machine.containers.values():
            state.status = rules.STOPPED
        self._save_containers()
        self._save(ended=True)
        self._report("STOPPED")

    async def _drain_logs(self) -> None:
        """What the containers wrote last, before the files may go. A link that is away must not hold this up long."""
        for shipper, _ in self._shippers.values():
            shipper.end()
        running = [t for _, t in self._shippers.values()]
        if running:
            await asyncio.wait(running, timeout=LOG_DRAIN_S)

    async def _withdraw(self) -> None:
        if self.spec.publish:
            await self._context.ingress.withdraw(self.spec.task_id)

    async def _destroy(self) -> None:
        if self._driver is None:
            return
        if self._file.handle is not None:
            await self._driver.destroy(self._file.handle)
        else:
            await self._driver.destroy_leftovers(str(self._directory), self.spec.task_id)

    async def _detach(self) -> None:
        await self._context.network.detach(self.spec)

    async def _release(self) -> None:
        self._context.images.release(self.spec.task_id)

    async def stats(self) -> dict[str, Any]:
        """What the sandbox uses now. Raises `HostFault`."""
        if self._driver is None or self._file.handle is None:
            raise HostFault("NotReady", f"task {self.spec.task_id} has no sandbox yet")
        built: dict[str, Any] = msgspec.to_builtins(await self._driver.stats(self._file.handle))
        return built

    def forget(self, keep_logs_in: Path) -> None:
        """Drop the task's directory: the control plane has all but the containers' output, which is kept."""
        logs = self._directory / "logs"
        if logs.exists():
            with contextlib.suppress(OSError):
                logs.rename(keep_logs_in / self.spec.task_id)
        shutil.rmtree(self._directory, ignore_errors=True)

    # -- what is known

    def _save(self, **changes: Any) -> None:
        self._file = replace(
            self._file, spec=without_secrets(self.spec), phases=tuple(self._phases), **changes
        )
        save(self._directory, self._file)

    def _save_containers(self) -> None:
        saved = tuple(
            SavedContainer(
                name=n,
                status=s.status,
                runtime_id=self._runtime_ids.get(n, ""),
                restarts=s.restarts,
                started_at=s.started_at,
                finished_at=s.finished_at,
                reason=s.reason,
                health=s.health,
                exit=msgspec.to_builtins(s.exit) if s.exit else None,
            )
            for n, s in self._machine.containers.items()
        )
        if saved != self._file.containers:
            self._save(containers=saved)

    def facts(self) -> TaskFacts:
        """All that is known of the task now."""
        machine = self._machine
        return TaskFacts(
            task_id=self.spec.task_id,
            status=self._status,
            containers=tuple(
                ContainerFact(
                    name=n,
                    status="PENDING" if s.status == rules.STARTING else s.status,
                    runtime_id=self._runtime_ids.get(n, ""),
                    image_digest=self._digests.get(n, ""),
                    health=s.health,
                    exit_code=s.exit.exit_code if s.exit else None,
                    reason=s.reason,
                    restart_count=s.restarts,
                    started_at=s.started_at,
                    finished_at=s.finished_at,
                )
                for n, s in machine.containers.items()
            ),
            stop_code=machine.stop_code,
            stopped_reason=machine.stopped_reason,
            causes=tuple(
                CauseFact(kind=c.kind, text=c.text, evidence=c.evidence, fix=c.fix) for c in machine.causes
            ),
            phases=tuple(self._phases),
            **{k: v for k, v in self._times.items()},
        )

    def _report(self, status: str) -> None:
        self._status = status
        facts = self.facts()
        before = self._file.facts
        if before == facts:
            return
        self._save(facts=facts)
        self._context.report(facts)


def _rule(container: ContainerSpec) -> rules.ContainerRule:
    check, policy = container.health_check, container.restart_policy
    return rules.ContainerRule(
        name=container.name,
        essential=container.essential,
        depends_on=tuple((d.container, d.condition) for d in container.depends_on),
        stop_timeout_s=container.stop_timeout_s,
        start_timeout_s=container.start_timeout_s,
        health=rules.HealthRule(
            interval_s=check.interval_s, retries=check.retries, start_period_s=check.start_period_s
        )
        if check
        else None,
        restart_ignored_codes=policy.ignored_exit_codes if policy else (),
        restart_period_s=policy.attempt_period_s if policy else None,
        memory_mib=container.memory_mib,
    )


def _cause_link(fault: HostFault) -> CauseLink:
    return CauseLink(kind=fault.kind, text=fault.message, evidence=fault.evidence, fix=fault.fix)


def _signal_number(name: str) -> int:
    name = name.upper()
    if name.isdecimal():
        return int(name)
    return _SIGNAL_NUMBERS.get(name if name.startswith("SIG") else f"SIG{name}", 15)


async def _nothing() -> None:
    return None
