"""A task's set-up on this host: a row of named, measured steps, side by side where they may be."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from random import Random
from typing import Any, TypeVar

from msgspec.structs import replace

from hutch.base.log import get_logger
from hutch.base.retry import backoff_seconds
from hutch.base.units import GIB
from hutch.host.agent.context import RunnerContext, all_of
from hutch.host.agent.observation import reason_of
from hutch.host.agent.record import TaskRecord
from hutch.host.drivers.contract import (
    Attachment,
    Driver,
    Handle,
    HostFault,
    ObservedContainer,
    RootImage,
    SandboxSpec,
    SupportsFork,
)
from hutch.wire.taskspec import ContainerSpec

log = get_logger(__name__)
T = TypeVar("T")

RETRY_FOR_S = 15.0


class SetUp:
    """Images, network, endpoint and sandbox of one task."""

    def __init__(self, context: RunnerContext, driver: Driver, record: TaskRecord) -> None:
        self._context = context
        self._spec = record.spec
        self._driver = driver
        self._record = record
        self._seen = record.seen
        self._now = context.clock.now
        self._forked: tuple[ObservedContainer, ...] = ()

    async def run(self) -> tuple[ObservedContainer, ...]:
        """Do all of it; the containers that run already, if the task is a copy of another. Raises `HostFault`."""
        self._record.touch()
        works: list[Awaitable[Any]] = [self._make_sandbox(), self._record.save(strict=True)]
        if self._spec.publish:
            works.append(self._step("publish", "", partial(self._context.ingress.publish, self._spec)))
        await all_of(works)
        return self._forked

    async def _make_sandbox(self) -> None:
        spec, images = self._spec, self._context.images
        self._seen.note("pull_started_at", self._now())
        attachment, *pulled = await all_of([self._attach(), *(self._pull(c) for c in spec.containers)])
        self._seen.note("pull_stopped_at", self._now())
        for image in pulled:
            images.acquire(image.digest, spec.task_id)
        prepared: dict[str, RootImage] = dict(zip((c.name for c in spec.containers), pulled, strict=True))
        self._record.update(attachment=attachment, images=prepared, driver=self._driver.name)
        await self._record.with_secret_files()
        watch = self._context.threats.watch(self._driver.capabilities)
        handle = await self._create(self._record.sandbox(watch))
        for phase in handle.phases:
            self._seen.measured(phase.name, phase.detail, phase.started_at, phase.ended_at)
        # Not waited for: until it is kept the sandbox is found by its names (`destroy_leftovers`), and nothing is
        # reported before it is.
        self._record.update(handle=handle)

    async def _create(self, sandbox: SandboxSpec) -> Handle:
        driver, snapshot_id = self._driver, self._spec.snapshot_id
        if not snapshot_id:
            name = "boot" if driver.capabilities.owns_kernel else "sandbox"
            return await self._step(name, driver.name, partial(driver.create, sandbox))
        if not isinstance(driver, SupportsFork):
            raise HostFault("NotForked", f"driver {driver.name} can't go on from a copy of another task")
        snapshots = self._context.snapshots
        fork = partial(driver.fork, str(snapshots.path(snapshot_id)), sandbox)
        try:
            handle, found = await self._step("fork", driver.name, fork)
        finally:
            await snapshots.used(snapshot_id)
        self._forked = tuple(replace(c, started_at=self._now()) for c in found)
        return handle

    async def _attach(self) -> Attachment:
        attach = partial(self._context.network.attach, self._spec, self._driver.capabilities.network)
        attachment = await self._step("network", "", attach)
        self._seen.note("network_ready_at", self._now())
        return attachment

    async def _pull(self, container: ContainerSpec) -> RootImage:
        prepare = partial(
            self._context.images.prepare,
            container.image,
            architecture=self._spec.architecture,
            root_format=self._driver.capabilities.root_format,
            credentials=container.registry_credentials,
            max_bytes=self._spec.ephemeral_gib * GIB,
        )
        try:
            image = await self._step("pull", container.image, prepare)
        except HostFault as fault:
            fault.aws_prefix = fault.aws_prefix or "CannotPullContainerError"
            self._seen.machine.containers[container.name].reason = reason_of(fault, "")
            raise
        self._seen.digests[container.name] = image.digest
        return image

    async def _step(self, name: str, detail: str, work: Callable[[], Awaitable[T]]) -> T:
        """Run a step and measure it; a fault that may pass is tried again for a while."""
        started_at = self._now()
        delays: Iterator[float] | None = None
        give_up_at = self._context.clock.monotonic() + RETRY_FOR_S
        try:
            while True:
                try:
                    return await work()
                except HostFault as fault:
                    delays = delays or backoff_seconds(0.2, 4.0, Random(self._spec.task_id))
                    delay = next(delays)
                    if not fault.retryable or self._context.clock.monotonic() + delay > give_up_at:
                        raise
                    log.info("step is tried again", task=self._spec.task_id, step=name, reason=fault.message)
                await asyncio.sleep(delay)
        finally:
            self._seen.measured(name, detail, started_at, self._now())
            self._record.touch()
