"""What is known of one task, kept: each fact survives this process before it is reported."""

import asyncio
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hutch.base.errors import StorageFull
from hutch.base.log import get_logger
from hutch.host.agent.context import RunnerContext
from hutch.host.agent.observation import Observation
from hutch.host.agent.taskfile import TaskFile, lacks_files, renewed, without_secrets
from hutch.host.drivers.contract import HostFault, SandboxSpec, WatchSpec
from hutch.wire.fleet import TaskSpec

log = get_logger(__name__)


class TaskRecord:
    """A task's file and what was seen of the task. Whoever changes either sets `changed`, or uses `update`."""

    def __init__(self, context: RunnerContext, content: TaskFile, directory: Path) -> None:
        self.directory = directory
        self.spec = content.spec
        """With the values of secrets that are known; the file has none."""
        self.assigned = asyncio.Event()
        """Set once an assignment came in this process's life."""
        self.ending = asyncio.Event()
        """Set once the task is on the way to its end."""
        self.file = content
        self.seen = Observation(content)
        self.changed = asyncio.Event()
        self._context = context
        self._safe_spec = without_secrets(content.spec)
        self._saved: TaskFile | None = None
        self._saving = asyncio.Lock()

    def update(self, **members: Any) -> None:
        """Change members of the file; kept soon."""
        self.file = replace(self.file, **members)
        self.changed.set()

    def take_secrets(self, spec: TaskSpec) -> None:
        """The task was assigned again: values that no disk keeps are known from now on. Those of its launch stay."""
        given = {c.name: c for c in spec.containers}
        containers = tuple(renewed(c, given[c.name]) if c.name in given else c for c in self.spec.containers)
        files = {v.name: v for v in spec.volumes}
        volumes = tuple(files.get(v.name, v) if lacks_files(v) else v for v in self.spec.volumes)
        self.spec = replace(self.spec, containers=containers, volumes=volumes)
        self.assigned.set()

    def sandbox(self, watch: WatchSpec | None = None) -> SandboxSpec:
        """What the driver gets, of a task whose network and images are ready. `watch`: of a new sandbox."""
        assert self.file.attachment is not None
        return SandboxSpec(
            task=self.spec,
            directory=str(self.directory),
            images=self.file.images,
            attachment=self.file.attachment,
            watch=watch,
        )

    async def with_secret_files(self) -> None:
        """Returns once the contents of all files that are secrets are known, which an agent that was started anew gets with
        the next assignment. Raises `HostFault` if they can't be had."""
        if any(lacks_files(v) for v in self.spec.volumes):
            log.info("task waits for its secrets", task=self.spec.task_id)
            await self.assigned.wait()
        lacking = [v.name for v in self.spec.volumes if lacks_files(v)]
        if lacking:
            raise HostFault(
                "SecretNotFound",
                f'secrets of volume "{lacking[0]}" can\'t be had any more, and it is to be made again',
                fix="create them anew",
                aws_prefix="ResourceInitializationError",
            )

    async def keep_saving(self) -> None:
        """For ever: keep and report what changed."""
        while True:
            await self.changed.wait()
            self.changed.clear()
            await self.save()

    async def save(self, *, strict: bool = False) -> None:
        """Keep what is known, then report it. `strict`: raise if it can't be kept (`StorageFull`)."""
        async with self._saving:
            content = replace(
                self.file,
                spec=self._safe_spec,
                containers=self.seen.saved_containers(),
                phases=tuple(self.seen.phases),
                facts=self.seen.facts(),
            )
            before = self._saved
            if content == before:
                return
            try:
                await self._context.book.save(content)
            except StorageFull as error:
                if strict:
                    raise
                log.error("task's state not kept", task=content.spec.task_id, reason=error.message)
            self._saved = content
            if content.facts is not None and (before is None or before.facts != content.facts):
                self._context.report(content.facts)
