"""The tasks of a host: which there are, who runs each, and how they come and go."""

import asyncio
import platform
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hutch.base.background import Background
from hutch.base.errors import HutchError, Invalid
from hutch.base.log import get_logger
from hutch.host.agent.context import RunnerContext
from hutch.host.agent.driverwatch import DriverWatch
from hutch.host.agent.metadata import TaskView
from hutch.host.agent.runner import TaskRunner
from hutch.host.agent.taskfile import TaskFile
from hutch.host.agent.tasklogs import prune_logs, read_tail
from hutch.host.drivers.contract import Driver, ExecStream, HostFault
from hutch.model.exec import ExecSpec
from hutch.model.task import CauseLink
from hutch.wire.fleet import Assignments, Stop
from hutch.wire.taskspec import TaskSpec

log = get_logger(__name__)

GARBAGE_AFTER_TASKS = 20
MAX_LOG_TAIL = 10_000
_TASK_ID = re.compile(r"[0-9A-Za-z-]{1,64}")
_CONTAINER_NAME = re.compile(r"[0-9A-Za-z_-]{1,255}")
_DOWN = Stop(task_id="", stop_code="UserInitiated", reason="The platform was stopped (hutch down)")


class HostTasks:
    """All of them, from their assignment (or what an earlier agent left of them on disk) until they are forgotten."""

    def __init__(
        self,
        context: RunnerContext,
        state_directory: Path,
        drivers: Sequence[Driver],
        driver_watch: DriverWatch,
        forgotten: Callable[[str], None],
    ) -> None:
        """`forgotten` is told the id of each task that goes."""
        self._context = context
        self._directory = state_directory / "tasks"
        self._kept_logs = state_directory / "stopped-task-logs"
        self._drivers = drivers
        self._driver_watch = driver_watch
        self._forgotten = forgotten
        self._runners: dict[str, TaskRunner] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._orphans: set[str] = set()
        """Tasks of drivers that are not to be used."""
        self._forgetting: set[str] = set()
        self._ended_count = 0
        self._forgotten_count = 0
        self._beside = Background(lambda error: log.error("work beside the tasks failed", reason=repr(error)))
        self._closing = False

    # -- which there are

    def ids(self) -> tuple[str, ...]:
        """Of all that are not forgotten."""
        return tuple(self._runners)

    def running(self, task_id: str) -> TaskRunner:
        """The runner of a task that has not ended. Raises `HostFault`."""
        runner = self._runners.get(task_id)
        if runner is None or task_id not in self._running:
            raise HostFault("NotFound", f"task {task_id} does not run on this host")
        return runner

    async def exec(self, task_id: str, container: str, spec: ExecSpec) -> ExecStream:
        """Run a further process in a container, of a task that has stopped in a sandbox made for that. Raises `HostFault`."""
        if self._closing:
            raise HostFault("Closing", "the host agent is being stopped")
        if task_id not in self._running:
            return await self._context.kept.exec(task_id, container, spec)
        return await self.running(task_id).exec(container, spec)

    def running_specs(self) -> list[TaskSpec]:
        """Of those that have not ended."""
        return [self._runners[task_id].spec for task_id in self._running]

    def view_at(self, address: str) -> TaskView | None:
        """The task that runs with this address."""
        runners = (self._runners[t] for t in self._running if t in self._runners)
        interfaces = ((r, r.spec.interface) for r in runners)
        return next((r.view() for r, i in interfaces if i is not None and i.address == address), None)

    async def read_logs(self, task_id: str, container: str, tail: int) -> dict[str, Any]:
        """The newest lines of a container's file, also of a task that is forgotten: {"lines": see `read_tail`}. Raises
        `Invalid`, `HostFault`."""
        if not _TASK_ID.fullmatch(task_id) or not _CONTAINER_NAME.fullmatch(container):
            raise Invalid(f"{task_id}/{container} names no container")
        current, kept = self._directory / task_id / "logs", self._kept_logs / task_id
        if task_id not in self._runners and not kept.exists():
            raise HostFault("NotFound", f"this host keeps nothing of task {task_id} any more")
        tail = min(max(1, int(tail)), MAX_LOG_TAIL)
        lines = await asyncio.to_thread(read_tail, current / f"{container}.log", tail)
        # In this order: a task that is being forgotten just now moves from the one place to the other.
        return {"lines": lines or await asyncio.to_thread(read_tail, kept / f"{container}.log", tail)}

    # -- how they come

    async def take_over(self) -> None:
        """All that an earlier agent left on disk. The host's network is as that agent had it."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._kept_logs.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(prune_logs, self._kept_logs, self._context.clock.now())
        known = []
        contents = await asyncio.to_thread(self._context.book.open)
        await self._context.kept.start(frozenset(t for t, c in contents.items() if not c.ended))
        for directory in sorted(self._directory.iterdir()):
            if directory.name not in contents:
                await self._remove_unrecorded(directory)
        for task_id, content in sorted(contents.items()):
            directory = self._directory / task_id
            directory.mkdir(mode=0o700, exist_ok=True)
            if content.handle is None and not content.ended:
                await self._discard(directory, content)
            else:
                known.append((directory, content))
        await self._context.network.remove_strays(frozenset(c.spec.task_id for _, c in known))
        for directory, content in known:
            self._begin(directory, content)

    async def _remove_unrecorded(self, directory: Path) -> None:
        """A directory without a record: its set-up was cut off at the very start, or the record is damaged."""
        for driver in self._drivers:
            try:
                await driver.destroy_leftovers(str(directory), directory.name)
            except HostFault as fault:
                log.error("leftovers not removed", directory=str(directory), reason=fault.message)
        shutil.rmtree(directory, ignore_errors=True)
        await self._context.book.remove(directory.name)

    async def _discard(self, directory: Path, content: TaskFile) -> None:
        """A set-up that was cut off: what it left is removed, and the next assignments start the task anew (only
        they hold the registry credentials)."""
        for driver in self._drivers:
            if content.driver in ("", driver.name):
                await TaskRunner(self._context, driver, "", directory, content).discard()
        await asyncio.to_thread(shutil.rmtree, directory, True)
        await self._context.book.remove(content.spec.task_id)

    def reconcile(self, wanted: Assignments) -> None:
        """Bring the tasks to the whole list of what is assigned to this host."""
        names = {t.task_id for t in wanted.tasks}.union(wanted.later)
        for task_id, runner in self._runners.items():
            if task_id in names:
                continue
            if runner.has_ended:
                # The control plane has all of it; that it may be forgotten was said over a connection that broke.
                self.forget(task_id)
                continue
            text = "no longer assigned to this host"
            stop = Stop(task_id=task_id, stop_code="TaskFailedToStart", reason=text)
            runner.stop(stop, CauseLink(kind="NotAssigned", text=text))
        for task in wanted.tasks:
            self.assign(task)
        for stop in wanted.stop:
            self.stop(stop)

    def assign(self, spec: TaskSpec) -> None:
        """One task more; or the secrets of one that is here."""
        if (known := self._runners.get(spec.task_id)) is not None:
            known.take_secrets(spec)
            return
        if spec.task_id in self._orphans or self._closing:
            return
        if not _TASK_ID.fullmatch(spec.task_id):
            log.error("assignment refused", task=spec.task_id, reason="not a task id")
            return
        directory = self._directory / spec.task_id
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._begin(directory, TaskFile(spec=spec))
        self._runners[spec.task_id].take_secrets(spec)

    def _begin(self, directory: Path, content: TaskFile) -> None:
        task_id = content.spec.task_id
        driver, refusal = self._choose(content)
        if driver is None and content.handle is not None and not content.ended:
            # It may well run; without its driver we can neither watch nor end it.
            log.error(
                "task left alone", task=task_id, reason=refusal, fix="start with its driver in --drivers"
            )
            self._orphans.add(task_id)
            return
        runner = TaskRunner(self._context, driver, refusal, directory, content)
        self._runners[task_id] = runner
        if content.facts is not None:
            # Perhaps an earlier agent's last report never arrived.
            self._context.report(content.facts)
        if content.ended:
            self._beside.start(runner.run())
            return
        task = self._running[task_id] = asyncio.create_task(runner.run())
        task.add_done_callback(lambda t: self._ended(task_id, t))

    def _choose(self, content: TaskFile) -> tuple[Driver | None, str]:
        """The driver of a task: the one that has it, else the first healthy one for its launch type."""
        wanted, here = content.spec.architecture, platform.machine()
        if content.handle is None and wanted != here:
            return None, f"this host is {here}, the task asks for {wanted} (runtimePlatform.cpuArchitecture)"
        reasons = []
        for driver in self._drivers:
            fact = self._driver_watch.facts[driver.name]
            if content.driver:
                if driver.name == content.driver:
                    return driver, ""
                reasons.append(f"it runs on driver {content.driver}")
            elif content.spec.launch_type in driver.capabilities.launch_types:
                if fact.healthy:
                    return driver, ""
                reasons.append(f"{driver.name}: {fact.reason}")
        why = "; ".join(reasons) or "no driver offers it (see --drivers)"
        return None, f"this host can't run launch type {content.spec.launch_type}: {why}"

    # -- how they go

    def stop(self, stop: Stop) -> None:
        """End one in order; no error if it is not here."""
        if (named := self._runners.get(stop.task_id)) is not None:
            named.stop(stop)

    def _ended(self, task_id: str, task: asyncio.Task[None]) -> None:
        self._running.pop(task_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task runner failed", task=task_id, reason=repr(error))
        self._ended_count += 1
        if self._ended_count >= GARBAGE_AFTER_TASKS and not self._closing:
            self._ended_count = 0
            self._beside.start(self._collect())

    async def _collect(self) -> None:
        try:
            await self._context.images.collect_garbage()
        except HutchError as error:
            log.warning("image cache not collected", reason=error.message)

    def forget(self, task_id: str) -> None:
        """The control plane has all of an ended task; no error if it is not here."""
        runner = self._runners.get(task_id)
        if runner is None or task_id in self._forgetting:
            return
        if runner.has_ended or task_id not in self._running:
            self._forgetting.add(task_id)
            self._beside.start(self._drop(task_id, runner))

    async def _drop(self, task_id: str, runner: TaskRunner) -> None:
        try:
            if (last_steps := self._running.get(task_id)) is not None:
                # Its end was told before its runner returned.
                await asyncio.wait({last_steps})
            await runner.forget(self._kept_logs)
            self._forgotten(task_id)
            del self._runners[task_id]
        finally:
            self._forgetting.discard(task_id)
        self._forgotten_count += 1
        if self._forgotten_count % GARBAGE_AFTER_TASKS == 0:
            await asyncio.to_thread(prune_logs, self._kept_logs, self._context.clock.now())

    async def let_go(self) -> None:
        """Nothing of them goes on in this process; the tasks themselves go on."""
        self._closing = True
        for task in self._running.values():
            task.cancel()
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def stop_all(self) -> None:
        """End all in order; returns when they have ended."""
        self._closing = True
        for each in self._runners.values():
            each.stop(_DOWN, CauseLink(kind="PlatformStopped", text="the platform was stopped on this host"))
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def close(self) -> None:
        """After `let_go` or `stop_all`: no logs are shipped any more, and the disk is as it will be found."""
        await self._beside.end()
        for runner in self._runners.values():
            await runner.close()
