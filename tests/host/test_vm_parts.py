"""The parts that a VM is made with, whatever its monitor: each alone, without a VM."""

import asyncio
import os
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from hutch.base.clock import SystemClock
from hutch.host.drivers.contract import ContainerExited, DriverError, ExitStatus, SandboxEvent, SandboxExited
from hutch.host.drivers.microvm.event_queue import MAX_FACT_BATCHES, EventQueue
from hutch.host.drivers.microvm.jail import JailRequest, MonitorJail
from hutch.host.drivers.microvm.making import Once, Phases
from hutch.host.drivers.microvm.programs import ProgramVersion
from hutch.host.drivers.microvm.qemu_process import VmRequest, launch
from hutch.host.drivers.microvm.slots import LaunchSlots
from hutch.host.drivers.microvm.template_launch import TemplateLaunches
from hutch.host.drivers.microvm.templates import (
    Template,
    TemplateKey,
    TemplateStore,
    TemplateUnavailable,
)
from hutch.host.drivers.microvm.vm import GuestImage, VmFiles
from hutch.host.kernel.jail_root import JailRoot
from hutch.host.kernel.process import ProcessRef, process_ref
from hutch.host.kernel.run import CommandFailed
from hutch.wire.guest_facts import RuntimeFactsEvent

KEY = TemplateKey(origin="o", machine="m", accelerator="tcg", vcpus=1, memory_mib=64, disk_slots=4)


def _program(path: Path, version: str) -> None:
    draft = path.with_suffix(".new")
    draft.write_text(f"#!/bin/sh\necho . >> {path}.asked\necho version {version}\n")
    draft.chmod(0o755)
    os.replace(draft, path)


async def test_a_program_is_asked_for_its_version_once_and_again_when_it_is_another(tmp_path: Path) -> None:
    program = tmp_path / "monitor"
    version = ProgramVersion(str(program))
    with pytest.raises(CommandFailed):
        await version.text()
    _program(program, "1")
    assert [await version.text() for _ in range(3)] == ["version 1\n"] * 3
    _program(program, "2")
    assert await version.text() == "version 2\n"
    assert (tmp_path / "monitor.asked").read_text() == ".\n.\n"
    program.unlink()
    with pytest.raises(CommandFailed):
        await version.text()


async def test_work_that_is_done_once_is_tried_again_only_if_it_failed() -> None:
    once, done = Once(), []

    async def work() -> None:
        done.append("tried")
        await asyncio.sleep(0)
        if len(done) == 1:
            raise DriverError("Failed", "the first time")

    outcomes = await asyncio.gather(*(once.do(work) for _ in range(4)), return_exceptions=True)
    assert [type(o) for o in outcomes] == [DriverError, type(None), type(None), type(None)]
    assert done == ["tried"] * 2


class Store:
    """In the place of templates on the disk."""

    def __init__(self, *, loaded: bool = False, refusal: str = "", fails: bool = False) -> None:
        self._template = cast(Template, object())
        self._loaded, self._refusal, self._fails = loaded, refusal, fails
        self.rejected = ""

    def loaded(self, key: TemplateKey) -> Template | None:
        return self._template if self._loaded else None

    def refusal(self, key: TemplateKey) -> str:
        return self._refusal

    async def get(self, key: TemplateKey) -> Template:
        if self._fails:
            raise TemplateUnavailable("none could be made")
        return self._template

    def reject(self, template: Template, reason: str) -> None:
        self.rejected = reason


async def _launch(
    store: Store, *, fault: DriverError | None = None, enabled: bool = True, obstacle: str = ""
) -> tuple[list[str], list[tuple[str, str]]]:
    """What was done, and the phases with their details."""
    done: list[str] = []
    phases = Phases(SystemClock())

    async def restore(template: Template) -> str:
        done.append("restore")
        if fault is not None:
            raise fault
        return "restored"

    async def boot() -> str:
        done.append("boot")
        return "booted"

    async def undo() -> None:
        done.append("undo")

    launches = TemplateLaunches(cast(TemplateStore, store), enabled=enabled)
    async with LaunchSlots(1).one() as slot:
        made = await launches.launch(
            KEY, "task", phases, slot, restore=restore, boot=boot, undo=undo, obstacle=obstacle
        )
    assert made == ("booted" if done[-1] == "boot" else "restored")
    return done, [(p.name, p.detail) for p in phases.told]


async def test_a_vm_is_restored_if_there_is_a_template_or_one_can_be_had() -> None:
    assert await _launch(Store(loaded=True)) == (["restore"], [])
    assert await _launch(Store()) == (["restore"], [("template", "")])


async def test_a_vm_boots_if_there_is_no_template_and_the_phase_says_why() -> None:
    booted = ["boot"]
    off = "templates are switched off"
    assert await _launch(Store(loaded=True), enabled=False) == (booted, [("cold boot", off)])
    assert await _launch(Store(loaded=True), obstacle="too old") == (booted, [("cold boot", "too old")])
    assert await _launch(Store(refusal="failed lately")) == (booted, [("cold boot", "failed lately")])
    failing = [("template", ""), ("cold boot", "none could be made")]
    assert await _launch(Store(fails=True)) == (booted, failing)


async def test_a_template_that_restores_nothing_is_rejected_and_what_it_left_goes_before_the_boot() -> None:
    store = Store(loaded=True)
    told = "not restored: the state is damaged"
    fault = DriverError("VmNotRestored", "the state is damaged")
    assert await _launch(store, fault=fault) == (["restore", "undo", "boot"], [("cold boot", told)])
    assert store.rejected == told


@pytest.mark.parametrize("kind", ["VolumeInUse", "ScratchDiskFailed"])
async def test_a_fault_of_the_tasks_disks_is_not_the_templates(kind: str) -> None:
    store = Store(loaded=True)
    with pytest.raises(DriverError, match="no room"):
        await _launch(store, fault=DriverError(kind, "no room"))
    assert not store.rejected


class SlowJail:
    """In the place of a jail, whose start takes as long as the test wants."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Event(), threading.Event()
        self.started = False

    async def root(self) -> JailRoot:
        return JailRoot(directory=Path("/"), program="")

    def start(self, request: JailRequest, root: JailRoot) -> ProcessRef:
        self.begun.set()
        assert self.may_end.wait(60)
        self.started = True
        ref = process_ref(os.getpid())
        assert ref is not None
        return ref


async def test_a_launch_that_is_cancelled_starts_nothing_afterwards(tmp_path: Path) -> None:
    files, jail = VmFiles(tmp_path), SlowJail()
    files.vm.mkdir()
    image = GuestImage(kernel=tmp_path, initrd=tmp_path, key="", kernel_version="")
    request = VmRequest(name="vm", accelerator="tcg", vcpus=1, memory_mib=64, incoming=True)
    launching = asyncio.create_task(launch(request, files, image, cast(MonitorJail, jail)))
    assert await asyncio.to_thread(jail.begun.wait, 60)
    launching.cancel()
    try:
        await asyncio.wait({launching}, timeout=0.05)
        # Whoever removes the VM now would find nothing, a moment before it is there.
        assert not launching.done()
    finally:
        jail.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await launching
    assert jail.started


def _exit(name: str) -> ContainerExited:
    return ContainerExited(container=name, runtime_id=name, status=ExitStatus(exit_code=0), at=1.0)


def _facts(seq: int) -> RuntimeFactsEvent:
    return RuntimeFactsEvent(seq=seq, facts=(), dropped=0)


END = SandboxExited(at=2.0, kind="GuestPoweredOff", text="off", evidence={}, fix="")


async def _all_events(queue: EventQueue) -> list[SandboxEvent]:
    async with asyncio.timeout(10):
        return [event async for event in queue]


async def test_an_exit_that_may_not_be_told_yet_holds_up_what_comes_after_it() -> None:
    settled: set[str] = set()
    acknowledged: list[int] = []
    queue = EventQueue(lambda e: e.container in settled, lambda _, seq: acknowledged.append(seq))
    queue.tell(_exit("a"), 7)
    queue.tell(END, 0)
    listening = asyncio.create_task(_all_events(queue))
    await asyncio.sleep(0)
    assert not listening.done() and not acknowledged
    settled.add("a")
    queue.look_again()
    assert await listening == [_exit("a"), END]
    assert acknowledged == [7]


async def test_an_event_is_acknowledged_when_the_next_is_asked_for() -> None:
    acknowledged: list[int] = []
    queue = EventQueue(lambda _: True, lambda _, seq: acknowledged.append(seq))
    queue.tell(_exit("a"), 1)
    queue.tell(_exit("b"), 2)
    events: Any = aiter(queue)
    assert await anext(events) == _exit("a") and acknowledged == []
    assert await anext(events) == _exit("b") and acknowledged == [1]
    queue.close()
    with pytest.raises(StopAsyncIteration):
        await anext(events)
    assert acknowledged == [1, 2]


async def test_a_guest_that_tells_more_than_it_may_is_not_listened_to() -> None:
    acknowledged: list[int] = []
    queue = EventQueue(lambda _: True, lambda _, seq: acknowledged.append(seq))
    for seq in range(1, 3 * MAX_FACT_BATCHES):
        queue.take_facts(_facts(seq))
        queue.take_facts(_facts(seq))
    queue.tell(END, 0)
    assert len(await _all_events(queue)) == MAX_FACT_BATCHES + 1
    assert acknowledged == list(range(1, MAX_FACT_BATCHES + 1))
    # What was dealt with makes room again.
    queue.take_facts(_facts(100))
    queue.tell(END, 0)
    assert len(await _all_events(queue)) == 2
