"""Firecracker VMs from templates, over the stand-in: what is asked of Firecracker, and what happens if it can't."""

import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.support.driver_harness import FirecrackerHarness
from tests.support.firecracker_bench import FirecrackerBench

from hutch.host.drivers.contract import Attachment, Handle, SandboxSpec
from hutch.host.drivers.firecracker.driver import FirecrackerDriver
from hutch.host.kernel.process import find_processes
from hutch.host.kernel.tap import make_tap, remove_tap

pytestmark = pytest.mark.needs("root", "qemu", "guest_image", "skopeo")


class Room:
    """One task's room, and drivers with templates."""

    def __init__(self, tmp_path: Path) -> None:
        self.harness = FirecrackerHarness(tmp_path)
        self.bench: FirecrackerBench = self.harness._bench
        self.bench.state = tmp_path / "state"
        self.bench.trust_kvm("1.11.0", "1.12.0")
        self.driver: FirecrackerDriver = self.bench.driver(use_templates=True)

    def spec(self, tap: str = "") -> SandboxSpec:
        made = self.harness.sandbox(self.harness.exits("a", 3))
        return msgspec.structs.replace(made, attachment=Attachment(tap=tap))

    async def run(self, spec: SandboxSpec) -> Handle:
        """A task's life: its container's exit code comes from a program on its own disks."""
        handle = await self.driver.create(spec)
        await self.driver.start_container(handle, spec.task.containers[0])
        event = await anext(self.driver.events(handle))
        assert event.status.exit_code == 3  # type: ignore[union-attr]
        await self.driver.destroy(handle)
        return handle


@pytest.fixture
async def room(tmp_path: Path) -> AsyncIterator[Room]:
    made = Room(tmp_path)
    yield made
    await made.driver.close()
    assert made.harness.remains() == []
    assert find_processes(f"hutch-{made.bench.platform_id}-fctemplate") == ()
    assert list(Path("/sys/class/net").glob(f"h{made.bench.platform_id[:4]}fc*")) == []


@pytest.fixture
def tap() -> Iterator[str]:
    name = f"ht{secrets.token_hex(4)}"
    make_tap(name, 0)
    yield name
    remove_tap(name)


async def test_a_template_is_made_once_and_fits_any_tap_and_disks(room: Room, tap: str) -> None:
    first = await room.run(room.spec(tap))
    assert [p.name for p in first.phases] == ["template", "restore", "set up"], [
        p.detail for p in first.phases
    ]
    await room.driver.close()
    room.driver = room.bench.driver(use_templates=True)
    second = await room.run(room.spec(tap))
    assert [p.name for p in second.phases] == ["template", "restore", "set up"], [
        p.detail for p in second.phases
    ]
    assert second.phases[0].ended_at - second.phases[0].started_at < 1, "it was read from the disk"


@pytest.mark.parametrize(
    ("request_", "words"),
    [("PUT /snapshot/load", "not restored"), ("PUT /snapshot/create", "no template could be made")],
)
async def test_a_vm_boots_if_it_can_not_be_restored(room: Room, request_: str, words: str) -> None:
    room.bench.set(fail={request_: "Invalid snapshot state"})
    handle = await room.run(room.spec())
    boot = next(p for p in handle.phases if p.name == "cold boot")
    assert words in boot.detail and "Invalid snapshot state" in boot.detail


async def test_an_old_version_can_not_restore_with_another_tap(room: Room, tap: str) -> None:
    room.bench.set(version="1.11.0")
    handle = await room.run(room.spec(tap))
    assert [p.name for p in handle.phases] == ["cold boot", "set up"]
    assert "1.11.0 can't restore a VM with another tap" in handle.phases[0].detail
