"""A microVM driver with a task to run, for tests of real VMs."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from tests.conftest import REPO
from tests.support.busybox_image import make_busybox_image

from hutch.base.clock import SystemClock
from hutch.host.criformat import parse_line
from hutch.host.drivers.contract import (
    Attachment,
    ContainerExited,
    Handle,
    RootImage,
    SandboxEvent,
    SandboxSpec,
)
from hutch.host.drivers.microvm.driver import MicrovmDriver
from hutch.host.drivers.microvm.warm import WarmLimits
from hutch.host.kernel.process import find_processes
from hutch.wire.taskspec import ContainerSpec, TaskSpec

EVENT_TIMEOUT_S = 60


class Bench:
    """A driver with a random platform id, and one task's specification."""

    def __init__(
        self,
        tmp_path: Path,
        *,
        image: RootImage | None = None,
        use_templates: bool = True,
        state: Path | None = None,
        warm: WarmLimits | None = None,
    ) -> None:
        """`state`: of the driver; without it the one that all tests of this run share, with its templates."""
        self.use_templates = use_templates
        self.warm = warm
        self.platform_id = f"t{secrets.token_hex(3)}"
        self.state = state or tmp_path.parent / "microvm-state"
        self.directory = tmp_path / "sandbox"
        self.directory.mkdir(mode=0o700)
        self.image = image or make_busybox_image(
            tmp_path, Env=["FROM_IMAGE=yes"], Cmd=["sh", "-c", "echo default"]
        )
        self.task_id = secrets.token_hex(16)
        self.driver = self.make_driver()
        self.handles: list[Handle] = []

    def make_driver(self) -> MicrovmDriver:
        return MicrovmDriver(
            platform_id=self.platform_id,
            guest_dir=REPO / "build" / "guest",
            state_dir=self.state,
            accelerator="tcg",
            clock=SystemClock(),
            use_templates=self.use_templates,
            warm=self.warm,
        )

    def spec(
        self, *containers: ContainerSpec, attachment: Attachment | None = None, **changes: object
    ) -> SandboxSpec:
        members: dict[str, object] = {
            "task_id": self.task_id, "cluster": "default", "arn": "arn", "family": "f", "revision": 1,
            "launch_type": "FARGATE", "cpu_units": 256, "memory_mib": 128, "ephemeral_gib": 2,
            "network_mode": "awsvpc", "containers": containers, **changes,
        }  # fmt: skip
        return SandboxSpec(
            task=TaskSpec(**members),  # type: ignore[arg-type]
            directory=str(self.directory),
            images={c.name: self.image for c in containers},
            attachment=attachment or Attachment(),
        )

    async def create(self, spec: SandboxSpec) -> Handle:
        handle = await self.driver.create(spec)
        self.handles.append(handle)
        return handle

    async def end(self) -> None:
        """Destroy the task and let go of the driver; nothing of either may be left."""
        await self.driver.destroy_leftovers(str(self.directory), self.task_id)
        await self.driver.close()
        assert not find_processes(f"hutch-{self.platform_id}-{self.task_id}")
        assert not find_processes(f"hutch-{self.platform_id}-template")
        assert not (self.directory / "vm").exists()

    def log_text(self, name: str) -> str:
        return joined_log(self.directory / "logs" / f"{name}.log")


def container(name: str, script: str, **changes: object) -> ContainerSpec:
    members: dict[str, object] = {
        "name": name, "container_id": name, "image": "busybox", "command": ("sh", "-c", script), **changes,
    }  # fmt: skip
    return ContainerSpec(**members)  # type: ignore[arg-type]


def joined_log(path: Path) -> str:
    """The log's text as the container wrote it."""
    text = ""
    for raw in path.read_bytes().splitlines():
        line = parse_line(raw)
        assert line is not None, raw
        text += line.text.decode() + ("" if line.partial else "\n")
    return text


async def next_event(events: AsyncIterator[SandboxEvent]) -> SandboxEvent:
    async with asyncio.timeout(EVENT_TIMEOUT_S):
        return await anext(events)


async def exit_of(events: AsyncIterator[SandboxEvent], name: str) -> ContainerExited:
    event = await next_event(events)
    assert isinstance(event, ContainerExited), event
    assert event.container == name
    return event
