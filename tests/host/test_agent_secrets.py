"""Values of secrets reach a container's environment and no disk; after a restart of the agent they come again."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.fleet_control import Host, make_container, make_task

from hutch.base.clock import SystemClock
from hutch.host.drivers.contract import Handle, SandboxSpec, StartedContainer
from hutch.host.drivers.fake import FakeDriver
from hutch.wire.taskspec import (
    ContainerSpec,
    DependencySpec,
    FilesSpec,
    RestartPolicySpec,
    TaskSpec,
    VolumeSpec,
)

ID = "0123456789abcdef0123456789abcdef"
VALUE = "hunter2-in-the-clear"


class SeeingDriver(FakeDriver):
    """Remembers what its containers were started with."""

    def __init__(self) -> None:
        super().__init__(clock=SystemClock())
        self.started: list[ContainerSpec] = []
        self.created: list[SandboxSpec] = []

    async def create(self, spec: SandboxSpec) -> Handle:
        self.created.append(spec)
        return await super().create(spec)

    async def start_container(self, handle: Handle, container: ContainerSpec) -> StartedContainer:
        self.started.append(container)
        return await super().start_container(handle, container)


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    await made.control.listen()
    yield made
    await made.close()


def task(value: str | None, **more: object) -> TaskSpec:
    secrets = {} if value is None else {"PASSWORD": value}
    container = make_container("app", secret_names=("PASSWORD",), secrets=secrets, **more)
    return make_task(ID, container)


def on_disk(host: Host, value: str) -> list[Path]:
    return [p for p in host.directory.rglob("*") if p.is_file() and value.encode() in p.read_bytes()]


async def test_a_secret_is_in_the_environment_and_on_no_disk(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    driver = SeeingDriver()
    await host.start_agent(driver)
    host.control.assign(task(VALUE))
    await host.control.until_status(ID, "RUNNING")
    assert [c.environment["PASSWORD"] for c in driver.started] == [VALUE]
    assert on_disk(host, VALUE) == [] and on_disk(host, ID) != []
    assert VALUE not in repr([r.__dict__ for r in caplog.records])
    assert VALUE not in repr(host.control.reports)


async def test_a_restarted_agent_waits_for_the_values(host: Host) -> None:
    """The container starts again by its policy while only the first agent ever knew the values."""
    await host.start_agent()
    policy = RestartPolicySpec(attempt_period_s=60)
    first = make_container("first", essential=False, RUN_MS=300, EXIT=0)
    later = make_container(
        "later",
        secret_names=("PASSWORD",),
        secrets={"PASSWORD": VALUE},
        depends_on=(DependencySpec(container="first", condition="SUCCESS"),),
        restart_policy=policy,
    )
    host.control.assign(make_task(ID, first, later))
    await host.control.until(lambda: ID in host.control.facts and host.control.facts[ID].pull_stopped_at)
    await host.control.until(
        lambda: any(c.name == "first" and c.status == "RUNNING" for c in host.control.facts[ID].containers)
    )
    await host.kill_agent()
    driver = SeeingDriver()
    await host.start_agent(driver)
    await host.control.until_status(ID, "RUNNING")
    assert [(c.name, c.environment.get("PASSWORD")) for c in driver.started] == [("later", VALUE)]


async def test_values_that_are_gone_end_the_task_with_their_cause(host: Host) -> None:
    await host.start_agent()
    host.control.assign(task(None))
    facts = await host.control.until_status(ID, "STOPPED")
    assert facts.stop_code == "TaskFailedToStart"
    assert facts.stopped_reason.startswith("ResourceInitializationError: secrets of container")
    assert facts.causes[0].kind == "SecretNotFound" and facts.causes[0].fix


def with_files(value: str | None) -> TaskSpec:
    secrets = {} if value is None else {"key": value}
    volume = VolumeSpec(name="keys", files=FilesSpec(secret_names=("key",), secrets=secrets))
    return make_task(ID, volumes=(volume,))


async def test_a_secret_that_is_a_file_is_on_no_disk(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    driver = SeeingDriver()
    await host.start_agent(driver)
    host.control.assign(with_files(VALUE))
    await host.control.until_status(ID, "RUNNING")
    assert [s.task for s in driver.created] == [with_files(VALUE)]
    assert on_disk(host, VALUE) == [] and on_disk(host, "keys") != []
    assert VALUE not in repr([r.__dict__ for r in caplog.records])
    assert VALUE not in repr(host.control.reports)


async def test_a_set_up_that_is_begun_anew_waits_for_what_is_in_the_files(host: Host) -> None:
    """The first agent was killed before there was a sandbox."""
    hanging = asyncio.Event()

    class Hanging(FakeDriver):
        async def create(self, spec: SandboxSpec) -> Handle:
            hanging.set()
            await asyncio.Event().wait()
            raise AssertionError

    await host.start_agent(Hanging(clock=SystemClock()))
    host.control.assign(with_files(VALUE))
    await hanging.wait()
    await host.kill_agent()
    driver = SeeingDriver()
    await host.start_agent(driver)
    await host.control.until_status(ID, "RUNNING")
    assert [s.task.volumes for s in driver.created] == [with_files(VALUE).volumes]


async def test_files_that_are_gone_end_the_task_with_their_cause(host: Host) -> None:
    await host.start_agent()
    host.control.assign(with_files(None))
    facts = await host.control.until_status(ID, "STOPPED")
    assert facts.stopped_reason.startswith('ResourceInitializationError: secrets of volume "keys"')
    assert facts.causes[0].kind == "SecretNotFound" and facts.causes[0].fix
