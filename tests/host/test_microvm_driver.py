"""The microVM driver with real VMs: QEMU, the real guest image, a busybox root disk."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.conftest import REPO
from tests.support.busybox_image import make_busybox_image

from hutch.base.clock import SystemClock
from hutch.host.criformat import parse_line
from hutch.host.drivers.contract import (
    Attachment,
    ContainerExited,
    Handle,
    SandboxEvent,
    SandboxSpec,
)
from hutch.host.drivers.microvm.driver import MicrovmDriver
from hutch.host.kernel.process import find_processes
from hutch.wire.fleet import ContainerSpec, TaskSpec

pytestmark = pytest.mark.needs("root", "qemu", "guest_image")
EVENT_TIMEOUT_S = 60


class Bench:
    """A driver with a random platform id, and one task's specification."""

    def __init__(self, tmp_path: Path) -> None:
        self.platform_id = f"t{secrets.token_hex(3)}"
        self.state = tmp_path / "state"
        self.directory = tmp_path / "sandbox"
        self.directory.mkdir(mode=0o700)
        self.image = make_busybox_image(tmp_path, Env=["FROM_IMAGE=yes"], Cmd=["sh", "-c", "echo default"])
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


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    try:
        yield bench
    finally:
        await bench.driver.destroy_leftovers(str(bench.directory), bench.task_id)
        await bench.driver.close()
        assert not find_processes(f"hutch-{bench.platform_id}-{bench.task_id}")
        assert not (bench.directory / "vm").exists()


async def test_a_container_runs_and_its_output_and_exit_code_arrive(bench: Bench) -> None:
    one = container("one", "echo out $FROM_IMAGE $GIVEN; echo err >&2; exit 3", environment={"GIVEN": "too"})
    handle = await bench.create(bench.spec(one))
    events = bench.driver.events(handle)
    started = await bench.driver.start_container(handle, one)
    assert len(started.runtime_id) == 64
    exited = await exit_of(events, "one")
    assert exited.status.exit_code == 3
    assert exited.runtime_id == started.runtime_id
    assert sorted(bench.log_text("one").splitlines()) == ["err", "out yes too"]
    assert (bench.directory / "logs" / "one.log").stat().st_mode & 0o777 == 0o600
