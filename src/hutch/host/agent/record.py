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
from hutch.wire.facts import TaskFacts
from hutch.wire.taskspec import TaskSpec

log = get_logger(__name__)


class TaskRecord:
    """A task's file and what was seen of the task. Whoever changes either calls `touch`, or uses `update`."""

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
        self._context = context
        self._safe_spec = without_secrets(content.spec)
        self._given: TaskFile | None = None
        """What was last given to be kept, and was not refused."""
        self._reported: TaskFacts | None = None
        self._keeping: asyncio.Future[None] | None = None
        self._is_closed = False

    def update(self, **members: Any) -> None:
        """Change members of the file; kept soon."""
        self.file = replace(self.file, **members)
        self.touch()

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

    def touch(self) -> asyncio.Future[None] | None:
        """Something changed: what is known when its turn comes is kept, then reported. The future, which others share, raises
        `StorageFull`; none once the record is closed."""
        if self._is_closed:
            return None
        kept = self._context.book.save(self.spec.task_id, self._content)
        if kept is not self._keeping:
            self._keeping = kept
            kept.add_done_callback(self._kept)
        return kept

    async def save(self, *, strict: bool = False) -> None:
        """As `touch`; returns when that is done. `strict`: raise if it can't be kept (`StorageFull`)."""
        if (kept := self.touch()) is None:
            return
        try:
            await asyncio.shield(kept)
        except StorageFull:
            if strict:
                raise

    def close(self) -> None:
        """The last was kept: what changes from now on nobody needs to know."""
        self._is_closed = True

    def _content(self) -> TaskFile | None:
        content = replace(
            self.file,
            spec=self._safe_spec,
            containers=self.seen.saved_containers(),
            phases=tuple(self.seen.phases),
            facts=self.seen.facts(),
        )
        if content == self._given:
            return None
        self._given = content
        return content

    def _kept(self, kept: asyncio.Future[None]) -> None:
        self._keeping = None
        facts = self._given.facts if self._given is not None else None
        if not kept.cancelled() and (error := kept.exception()) is not None:
            log.error("task's state not kept", task=self.spec.task_id, reason=str(error))
            self._given = None
        if facts is not None and facts != self._reported:
            self._reported = facts
            self._context.report(facts)
