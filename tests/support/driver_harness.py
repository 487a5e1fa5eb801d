"""What the driver contract suite needs to know of a driver: how to make it, and how to make it do things.

Another driver joins the suite by a class here and a line in `HARNESSES`.
"""

import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import pytest
from tests.conftest import REPO
from tests.support.busybox_image import make_busybox_directory, make_busybox_image
from tests.support.firecracker_bench import FirecrackerBench

from hutch.base.clock import SystemClock
from hutch.host.drivers.container.driver import ContainerDriver
from hutch.host.drivers.contract import Attachment, Driver, RootImage, SandboxSpec
from hutch.host.drivers.fake import FakeDriver
from hutch.host.drivers.fake_sandbox import STATE_FILE
from hutch.host.drivers.microvm.driver import MicrovmDriver
from hutch.host.kernel.process import find_processes
from hutch.wire.taskspec import ContainerSpec, TaskSpec


class DriverHarness(Protocol):
    """One driver under test, and one task's room on it."""

    task_id: str
    probe_that_fails: tuple[str, ...]
    probe_that_succeeds: tuple[str, ...]
    can_simulate_oom: bool
    has_files: bool
    """False: its containers only pretend to run, so nobody can look."""

    def new_driver(self) -> Driver:
        """An instance as another process would make it, over the same host."""
        ...

    def sandbox(self, *containers: ContainerSpec) -> SandboxSpec: ...

    def runs(self, name: str) -> ContainerSpec:
        """A container that runs until it is signalled."""
        ...

    def exits(self, name: str, code: int, *, text: str = "") -> ContainerSpec:
        """A container that writes a line and ends by itself, soon."""
        ...

    def exits_after(self, name: str, code: int, seconds: float) -> ContainerSpec: ...

    def ignores_sigterm(self, name: str) -> ContainerSpec: ...

    def cannot_start(self, name: str) -> ContainerSpec: ...

    def is_killed_for_memory(self, name: str) -> ContainerSpec: ...

    def remains(self) -> list[str]:
        """What the host still has of the task besides its directory and logs."""
        ...


def _container(name: str, **changes: object) -> ContainerSpec:
    members: dict[str, object] = {"name": name, "container_id": name, "image": "test", **changes}
    return ContainerSpec(**members)  # type: ignore[arg-type]


def _task(task_id: str, containers: tuple[ContainerSpec, ...]) -> TaskSpec:
    return TaskSpec(
        task_id=task_id,
        cluster="default",
        arn=f"arn:aws:ecs:us-east-1:000000000000:task/default/{task_id}",
        family="f",
        revision=1,
        launch_type="FARGATE",
        cpu_units=256,
        memory_mib=128,
        ephemeral_gib=1,
        network_mode="none",
        containers=containers,
    )


class FakeHarness:
    """The fake driver; its host is a directory."""

    can_simulate_oom = True
    has_files = False
    probe_that_fails = ("false",)
    probe_that_succeeds = ("true",)

    def __init__(self, tmp_path: Path) -> None:
        self.task_id = secrets.token_hex(16)
        self._directory = tmp_path / "sandbox"
        self._directory.mkdir()

    def new_driver(self) -> Driver:
        return FakeDriver(clock=SystemClock())

    def sandbox(self, *containers: ContainerSpec) -> SandboxSpec:
        image = RootImage(reference="test", digest="sha256:0", config={}, directory="/")
        return SandboxSpec(
            task=_task(self.task_id, containers),
            directory=str(self._directory),
            images={c.name: image for c in containers},
            attachment=Attachment(),
        )

    def runs(self, name: str) -> ContainerSpec:
        return _container(name)

    def exits(self, name: str, code: int, *, text: str = "") -> ContainerSpec:
        dials = {"HUTCH_FAKE_RUN_MS": "1", "HUTCH_FAKE_EXIT": str(code), "HUTCH_FAKE_LOG": text}
        return _container(name, environment=dials)

    def exits_after(self, name: str, code: int, seconds: float) -> ContainerSpec:
        dials = {"HUTCH_FAKE_RUN_MS": str(int(seconds * 1000)), "HUTCH_FAKE_EXIT": str(code)}
        return _container(name, environment=dials)

    def ignores_sigterm(self, name: str) -> ContainerSpec:
        return _container(name, environment={"HUTCH_FAKE_IGNORE_TERM": "1"})

    def cannot_start(self, name: str) -> ContainerSpec:
        return _container(name, environment={"HUTCH_FAKE_START": "fail"})

    def is_killed_for_memory(self, name: str) -> ContainerSpec:
        return _container(name, environment={"HUTCH_FAKE_RUN_MS": "1", "HUTCH_FAKE_OOM": "1"})

    def remains(self) -> list[str]:
        return [str(p) for p in self._directory.glob(f"{Path(STATE_FILE).stem}.*")]


class MicrovmHarness:
    """The microVM driver under emulation, with a busybox root disk; VMs are restored from a template."""

    use_templates = True

    can_simulate_oom = True
    has_files = True
    probe_that_fails = ("/bin/false",)
    probe_that_succeeds = ("/bin/true",)

    def __init__(self, tmp_path: Path) -> None:
        self.task_id = secrets.token_hex(16)
        self._platform_id = f"t{secrets.token_hex(3)}"
        self._directory = tmp_path / "sandbox"
        self._directory.mkdir(mode=0o700)
        # Of all tests in this run, so that they share a template.
        self._state = tmp_path.parent / "microvm-state"
        self._image = make_busybox_image(tmp_path)

    def new_driver(self) -> Driver:
        return MicrovmDriver(
            platform_id=self._platform_id,
            guest_dir=REPO / "build" / "guest",
            state_dir=self._state,
            accelerator="tcg",
            clock=SystemClock(),
            use_templates=self.use_templates,
        )

    def sandbox(self, *containers: ContainerSpec) -> SandboxSpec:
        return SandboxSpec(
            task=_task(self.task_id, containers),
            directory=str(self._directory),
            images={c.name: self._image for c in containers},
            attachment=Attachment(),
        )

    def runs(self, name: str) -> ContainerSpec:
        return self._script(name, "trap 'exit 143' TERM; sleep 100000 & wait")

    def exits(self, name: str, code: int, *, text: str = "") -> ContainerSpec:
        return self._script(name, f"echo '{text}'; exit {code}" if text else f"exit {code}")

    def exits_after(self, name: str, code: int, seconds: float) -> ContainerSpec:
        return self._script(name, f"sleep {seconds}; exit {code}")

    def ignores_sigterm(self, name: str) -> ContainerSpec:
        return self._script(name, "trap '' TERM; while :; do sleep 1; done")

    def cannot_start(self, name: str) -> ContainerSpec:
        return _container(name, command=("/no/such/program",))

    def is_killed_for_memory(self, name: str) -> ContainerSpec:
        return self._script(name, "x=a; while :; do x=$x$x; done", memory_mib=24)

    def remains(self) -> list[str]:
        left = [str(p) for p in (self._directory / "vm").glob("*")] if self._directory.exists() else []
        return left + [str(p) for p in find_processes(f"hutch-{self._platform_id}-{self.task_id}")]

    def _script(self, name: str, script: str, **changes: object) -> ContainerSpec:
        return _container(name, command=("/bin/sh", "-c", script), **changes)


class BootedMicrovmHarness(MicrovmHarness):
    """The same, without templates: every VM boots."""

    use_templates = False


class FirecrackerHarness(MicrovmHarness):
    """The Firecracker driver over a stand-in for Firecracker that runs the guest in emulation."""

    def __init__(self, tmp_path: Path) -> None:
        super().__init__(tmp_path)
        self._bench = FirecrackerBench(
            tmp_path, self._platform_id, state=tmp_path.parent / "firecracker-state"
        )

    def new_driver(self) -> Driver:
        return self._bench.driver()


class ContainerHarness(MicrovmHarness):
    """The container driver, with the same busybox as a directory."""

    runtime = "auto"

    def __init__(self, tmp_path: Path) -> None:
        self.task_id = secrets.token_hex(16)
        self.platform_id = f"t{secrets.token_hex(3)}"
        self._directory = tmp_path / "sandbox"
        self._directory.mkdir(mode=0o700)
        self._state = tmp_path / "driver"
        self._image = make_busybox_directory(tmp_path)

    def new_driver(self) -> ContainerDriver:
        return ContainerDriver(
            platform_id=self.platform_id,
            state_dir=self._state,
            runtime=self.runtime,
            clock=SystemClock(),
            toolbox=REPO / "build/guest/toolbox",
        )

    def remains(self) -> list[str]:
        left = [str(p) for p in self._directory.glob("box")]
        left += [str(p) for p in Path("/sys/fs/cgroup").glob(f"**/hutch-{self.platform_id}")]
        left += [
            line for line in Path("/proc/mounts").read_text().splitlines() if str(self._directory) in line
        ]
        return left + [str(p) for p in find_processes(str(self._directory / "box" / "runtime"))]


class GvisorHarness(ContainerHarness):
    """The same on gVisor's kernel; the host's OOM killer does not look into it."""

    runtime = "runsc"
    can_simulate_oom = False


HARNESSES: tuple[tuple[str, Callable[[Path], DriverHarness], tuple[pytest.MarkDecorator, ...]], ...] = (
    ("fake", FakeHarness, ()),
    ("microvm", MicrovmHarness, (pytest.mark.needs("root", "qemu", "guest_image", "skopeo"),)),
    ("microvm-booted", BootedMicrovmHarness, (pytest.mark.needs("root", "qemu", "guest_image", "skopeo"),)),
    ("firecracker", FirecrackerHarness, (pytest.mark.needs("root", "qemu", "guest_image", "skopeo"),)),
    ("container", ContainerHarness, (pytest.mark.needs("root", "runc"),)),
    ("gvisor", GvisorHarness, (pytest.mark.needs("root", "runc", "runsc"),)),
)
