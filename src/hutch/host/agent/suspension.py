"""A task out of memory and back, or held still to be copied: one of these at a time.

The task's end does not wait for what is under way here, but ends it. See docs/design/suspend.md.
"""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from hutch.base.log import get_logger
from hutch.host.agent.context import RunnerContext, Starts, Tell
from hutch.host.agent.observation import cause_chain
from hutch.host.agent.record import TaskRecord
from hutch.host.drivers.contract import (
    Driver,
    Handle,
    HostFault,
    SandboxGone,
    SupportsFork,
    SupportsSuspend,
)
from hutch.model.task import CauseLink
from hutch.rules.containers import Action

log = get_logger(__name__)


class Suspension:
    """That of one task."""

    def __init__(
        self,
        context: RunnerContext,
        driver: Driver | None,
        record: TaskRecord,
        starts: Starts,
        tell: Tell,
        *,
        on_suspended: Callable[[], None],
        on_resumed: Callable[[], None],
    ) -> None:
        self._context = context
        self._driver = driver
        self._record = record
        self._seen = record.seen
        self._machine = record.seen.machine
        self._starts = starts
        self._tell = tell
        self._on_suspended = on_suspended
        self._on_resumed = on_resumed
        self._now = context.clock.now
        self._one = asyncio.Lock()
        self._under_way: asyncio.Future[None] | None = None

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

    async def end(self) -> None:
        """Break off what is under way."""
        if (work := self._under_way) is not None:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    def note(self, at: float | None) -> None:
        """Remember since when the task is suspended; None: it is not."""
        self._seen.suspended_at = at
        self._record.update(suspended_at=at)

    def unless_suspended(self, actions: list[Action]) -> list[Action]:
        """What is not in memory can't be told to end: it is dropped as it is."""
        if self._seen.suspended_at is None or not self._machine.is_stopping:
            return actions
        text = "the task was stopped while it was suspended: its processes did not go on"
        cause = CauseLink(kind="StoppedWhileSuspended", text=text, fix="resume a task before stopping it")
        return self._machine.sandbox_gone(text, cause, self._now())

    async def publish_again(self, *, is_asleep: bool) -> None:
        """An endpoint that is not as it should be is no reason for a running task to end."""
        spec = self._record.spec
        if not spec.publish:
            return
        try:
            await self._context.ingress.publish(spec, is_asleep=is_asleep)
        except HostFault as fault:
            log.error("endpoint not published again", task=spec.task_id, reason=fault.message)

    async def _one_at_a_time(self, work: Coroutine[Any, Any, None]) -> None:
        async with self._one:
            self._under_way = asyncio.ensure_future(work)
            try:
                await self._under_way
            except asyncio.CancelledError:
                current = asyncio.current_task()
                if current is not None and current.cancelling():
                    raise
                task_id = self._record.spec.task_id
                raise HostFault("TaskEnded", f"task {task_id} was stopped meanwhile") from None
            finally:
                self._under_way.cancel()
                await asyncio.gather(self._under_way, return_exceptions=True)
                self._under_way = None

    def _running_handle(self, what: str) -> Handle:
        if self._machine.status != "RUNNING" or self._record.file.handle is None:
            task_id = self._record.spec.task_id
            raise HostFault(
                "TaskNotRunning",
                f"only a task that is RUNNING can be {what}; task {task_id} is {self._seen.status}",
            )
        return self._record.file.handle

    async def _suspend(self) -> None:
        driver = self._driver
        if not isinstance(driver, SupportsSuspend):
            raise HostFault(
                "NotSuspended",
                f"tasks of launch type {self._record.spec.launch_type} can't be suspended",
                fix="run it with launch type FARGATE, in a microVM",
            )
        handle = self._running_handle("suspended")
        if self._record.file.suspended_at is not None:
            return
        async with self._starts.none():
            self._starts.awake.clear()
            try:
                await driver.suspend(handle)
                self.note(self._now())
            finally:
                if self._record.file.suspended_at is None:
                    self._starts.awake.set()
        self._on_suspended()
        await self._record.save()
        await self.publish_again(is_asleep=True)
        if self._machine.is_stopping:
            self._tell(lambda: self.unless_suspended([]))

    async def _resume(self) -> None:
        if self._record.file.suspended_at is None:
            return
        handle = self._running_handle("resumed")
        assert isinstance(self._driver, SupportsSuspend)
        begun_at = self._now()
        opening = asyncio.ensure_future(self.publish_again(is_asleep=False))
        try:
            handle = await self._driver.resume(handle, self._record.sandbox())
        except SandboxGone as gone:
            self.note(None)
            link, message = cause_chain(gone)[0], gone.message
            self._tell(lambda: self._machine.sandbox_gone(message, link, self._now()))
            raise
        except HostFault:
            await opening
            await self.publish_again(is_asleep=True)
            raise
        finally:
            await asyncio.gather(opening, return_exceptions=True)
        self._record.update(handle=handle)
        self.note(None)
        self._seen.measured("resume", "", begun_at, self._now())
        self._starts.awake.set()
        self._on_resumed()
        self._tell(lambda: self._machine.resume(self._now()))
        await self._record.save()

    async def _snapshot(self, directory: Path) -> None:
        handle, driver = self._running_handle("forked"), self._driver
        if not isinstance(driver, SupportsFork):
            raise HostFault(
                "NotForked",
                f"tasks of launch type {self._record.spec.launch_type} can't be forked",
                fix="run it with launch type FARGATE, in a microVM",
            )
        if self._record.file.suspended_at is not None:
            raise HostFault("TaskSuspended", "the task is suspended", fix="resume it first")
        async with self._starts.none():
            await driver.snapshot(handle, str(directory))
