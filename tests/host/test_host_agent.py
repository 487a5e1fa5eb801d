"""The host agent on the fake driver, against a control plane's end of the connection."""

import asyncio
import contextlib
import errno
import platform
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.support.fleet_control import Host, make_container, make_task

from hutch.base.clock import SystemClock
from hutch.host.agent.taskbook import TaskBook
from hutch.host.agent.taskfile import TaskFile
from hutch.host.drivers.contract import DriverError, Handle, HostFault, SandboxEvent
from hutch.host.drivers.fake import FakeDriver
from hutch.host.images.contract import ImageFault
from hutch.wire import fleet as wire
from hutch.wire.image_requests import PreflightSeen
from hutch.wire.taskspec import DependencySpec, HealthCheckSpec, LogSpec, PublishSpec, RestartPolicySpec

ID = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32
AWSLOGS = LogSpec(driver="awslogs", options={"awslogs-group": "/g", "awslogs-region": "r"}, stream="s/app/t")


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    made = Host(tmp_path)
    await made.control.listen()
    yield made
    await made.close()


async def test_the_whole_life_of_a_task(host: Host) -> None:
    await host.start_agent()
    control = host.control
    publish = (PublishSpec(name="web", host_port=20000, container_port=80),)
    control.assign(
        make_task(ID, make_container("app"), make_container("side", essential=False), publish=publish)
    )
    running = await control.until_status(ID, "RUNNING")
    assert {c.name: c.status for c in running.containers} == {"app": "RUNNING", "side": "RUNNING"}
    assert all(c.image_digest.startswith("sha256:") and c.runtime_id for c in running.containers)
    names = {p.name for p in running.phases}
    assert {"network", "pull", "boot", "publish", "start"} <= names
    assert all(p.ended_at is not None and p.ended_at >= p.started_at for p in running.phases)
    assert running.network_ready_at and running.pull_stopped_at and running.started_at
    assert ID in host.ingress.published and ID in host.network.ports
    control.stop(ID)
    stopped = await control.until_status(ID, "STOPPED")
    assert (stopped.stop_code, stopped.stopped_reason) == ("UserInitiated", "Task stopped by user")
    assert {c.exit_code for c in stopped.containers} == {143}
    assert stopped.stopping_at <= stopped.execution_stopped_at <= stopped.stopped_at
    order = control.statuses(ID)
    assert order == sorted(order, key=_rank)
    assert host.remains(ID) == []
    assert (host.directory / "tasks" / ID).exists()
    control.forget(ID)
    await _gone(host, ID)


def _rank(status: str) -> int:
    return ["ACTIVATING", "RUNNING", "DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED"].index(status)


async def _gone(host: Host, task_id: str) -> None:
    """A request and its answer pass; then the forgotten task's directory goes at once."""
    directory = host.directory / "tasks" / task_id
    async with asyncio.timeout(20):
        while directory.exists():
            await host.control.request("image.remove", name="none")


async def test_an_essential_exit_ends_the_task_with_its_cause(host: Host) -> None:
    await host.start_agent()
    host.control.assign(make_task(ID, make_container("app", RUN_MS=1, EXIT=3), make_container("side")))
    facts = await host.control.until_status(ID, "STOPPED")
    assert (facts.stop_code, facts.stopped_reason) == (
        "EssentialContainerExited",
        "Essential container in task exited",
    )
    assert facts.causes[0].text == 'essential container "app" exited with code 3'
    assert facts.causes[0].evidence == {"container": "app", "exit_code": 3}
    assert host.remains(ID) == []


async def test_an_oom_kill_is_told_with_evidence_and_fix(host: Host) -> None:
    await host.start_agent()
    host.control.assign(make_task(ID, make_container("app", RUN_MS=1, OOM=1, MEMORY_MIB=500)))
    facts = await host.control.until_status(ID, "STOPPED")
    assert facts.causes[0].kind == "OutOfMemory" and facts.causes[0].fix == "set memory to 768"
    assert facts.containers[0].reason == "OutOfMemoryError: Container killed due to memory usage"


@pytest.mark.parametrize(
    ("image", "kind"),
    [("fake/not-found:1", "ImageNotFound"), ("fake/denied:1", "ImageAccessDenied")],
)
async def test_an_image_that_cannot_be_had(host: Host, image: str, kind: str) -> None:
    await host.start_agent()
    host.control.assign(make_task(ID, make_container("app"), make_container("bad", image=image)))
    facts = await host.control.until_status(ID, "STOPPED")
    assert facts.stop_code == "TaskFailedToStart"
    assert facts.stopped_reason.startswith(f"CannotPullContainerError: {image}")
    assert facts.causes[0].kind == kind and facts.causes[0].fix
    reasons = {c.name: c.reason for c in facts.containers}
    assert reasons["app"] == "" and reasons["bad"].startswith("CannotPullContainerError: ")
    assert host.remains(ID) == []


async def test_a_fault_that_passes_is_tried_again(host: Host) -> None:
    calls = 0
    prepare = host.images.prepare

    async def flaky(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 3:
            raise ImageFault("RegistryUnreachable", "no answer", retryable=True)
        return await prepare(*args, **kwargs)

    host.images.prepare = flaky  # type: ignore[method-assign]
    await host.start_agent()
    host.control.assign(make_task(ID))
    await host.control.until_status(ID, "RUNNING")
    assert calls == 3


async def test_a_container_that_cannot_start(host: Host) -> None:
    await host.start_agent()
    host.control.assign(make_task(ID, make_container("app", START="fail"), make_container("side")))
    facts = await host.control.until_status(ID, "STOPPED")
    assert facts.stop_code == "TaskFailedToStart"
    assert facts.stopped_reason == 'CannotStartContainerError: container "app" was dialled to fail'
    assert facts.causes[0].kind == "ExecNotFound"


async def test_evidence_of_any_kind_and_size_is_told(host: Host) -> None:
    await host.start_agent()
    evidence = {"error": ZeroDivisionError("x"), "log": "y" * 100_000}
    _break(host, "driver.create", DriverError("Broken", "z" * 10_000, evidence=evidence))
    host.control.assign(make_task(ID))
    cause = (await host.control.until_status(ID, "STOPPED")).causes[0]
    assert cause.kind == "Broken" and len(cause.text) == 2000
    assert "ZeroDivisionError" in cause.evidence["shortened"]


async def test_no_driver_for_the_launch_type_says_why(host: Host) -> None:
    await host.start_agent(FakeDriver(clock=SystemClock(), healthy=False))
    host.control.assign(make_task(ID))
    facts = await host.control.until_status(ID, "STOPPED")
    assert "fake: it was told to be unhealthy" in facts.stopped_reason
    assert facts.causes[0].kind == "NoDriver"
    assert host.remains(ID) == []


async def test_dependencies_and_health(host: Host) -> None:
    check = HealthCheckSpec(command=("true",), interval_s=5)
    await host.start_agent()
    host.control.assign(
        make_task(
            ID,
            make_container("init", essential=False, RUN_MS=20),
            make_container("db", health_check=check),
            make_container(
                "app",
                depends_on=(
                    DependencySpec(container="init", condition="SUCCESS"),
                    DependencySpec(container="db", condition="HEALTHY"),
                ),
            ),
        )
    )
    facts = await host.control.until_status(ID, "RUNNING")
    by_name = {c.name: c for c in facts.containers}
    assert by_name["db"].health == "HEALTHY" and by_name["init"].exit_code == 0
    assert by_name["app"].started_at >= by_name["init"].finished_at


async def test_a_restart_policy_restarts_in_place(host: Host) -> None:
    policy = RestartPolicySpec(attempt_period_s=0)
    await host.start_agent()
    host.control.assign(make_task(ID, make_container("app", RUN_MS=30, EXIT=1, restart_policy=policy)))
    control = host.control
    await control.until(lambda: ID in control.facts and control.facts[ID].containers[0].restart_count >= 2)
    assert control.facts[ID].status == "RUNNING"
    control.stop(ID)
    await control.until_status(ID, "STOPPED")


async def test_a_stop_during_the_set_up(host: Host) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID, make_container(BOOT_MS=60_000)))
    await control.until_status(ID, "ACTIVATING")
    control.stop(ID)
    facts = await control.until_status(ID, "STOPPED")
    assert facts.stop_code == "UserInitiated" and facts.containers[0].exit_code is None
    assert host.remains(ID) == []


async def test_what_ignores_its_signal_is_killed_and_that_is_told(host: Host) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID, make_container(IGNORE_TERM=1, stop_timeout_s=0)))
    await control.until_status(ID, "RUNNING")
    control.stop(ID)
    facts = await control.until_status(ID, "STOPPED")
    assert facts.containers[0].exit_code == 137
    assert [c.kind for c in facts.causes] == ["StopTimeout"]


@pytest.mark.parametrize("at", [0.0, 1e18])
async def test_a_guest_that_lies_about_the_time_is_not_believed(host: Host, at: float) -> None:
    driver = FakeDriver(clock=SystemClock())
    events = driver.events

    async def lying(handle: Handle) -> AsyncIterator[SandboxEvent]:
        async for event in events(handle):
            yield msgspec.structs.replace(event, at=at)

    driver.events = lying  # type: ignore[method-assign]
    await host.start_agent(driver)
    host.control.assign(make_task(ID, make_container(RUN_MS=20)))
    facts = await host.control.until_status(ID, "STOPPED")
    container = facts.containers[0]
    assert container.started_at <= container.finished_at <= facts.stopped_at


async def test_a_sandbox_that_vanishes(host: Host) -> None:
    await host.start_agent()
    host.control.assign(make_task(ID, make_container(VANISH_MS=50)))
    facts = await host.control.until_status(ID, "STOPPED")
    assert facts.causes[0].kind == "SandboxVanished"
    assert host.remains(ID) == []


async def test_after_a_crash_tasks_are_adopted_and_missed_exits_told(host: Host) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID, make_container("app"), make_container("side", essential=False)))
    control.assign(make_task(OTHER, make_container("app", RUN_MS=1000, EXIT=9)))
    before = await control.until_status(ID, "RUNNING")
    other = await control.until_status(OTHER, "RUNNING")
    assert other.containers[0].started_at is not None
    await control.close()
    await host.kill_agent()
    await asyncio.sleep(max(0.0, other.containers[0].started_at + 1.0 - SystemClock().now()))
    await host.start_agent()
    control.facts.clear()
    await control.listen()
    missed = await control.until_status(OTHER, "STOPPED")
    assert missed.containers[0].exit_code == 9
    after = await control.until_status(ID, "RUNNING")
    assert [c.runtime_id for c in after.containers] == [c.runtime_id for c in before.containers]
    assert after.started_at == before.started_at
    assert set(control.hellos[-1].task_ids) == {ID, OTHER}
    control.stop(ID)
    await control.until_status(ID, "STOPPED")
    assert host.remains(ID) == [] and host.remains(OTHER) == []


async def test_a_stop_is_carried_out_after_a_crash_in_the_middle_of_it(host: Host) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID, make_container(IGNORE_TERM=1, stop_timeout_s=1)))
    await control.until_status(ID, "RUNNING")
    control.stop(ID, "first reason")
    await control.until_status(ID, "STOPPING")
    await host.kill_agent()
    control.stops.clear()
    await host.start_agent()
    facts = await control.until_status(ID, "STOPPED")
    assert facts.stopped_reason == "first reason" and facts.containers[0].exit_code == 137


async def test_a_crash_during_the_set_up_leaves_nothing_and_the_task_starts_anew(host: Host) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID, make_container(BOOT_MS=300)))
    await control.until_status(ID, "ACTIVATING")
    await control.close()
    await host.kill_agent()
    (host.directory / "tasks" / ID / "fake.json").write_text("{}")
    await host.start_agent()
    assert host.remains(ID) == []
    await control.listen()
    await control.until_status(ID, "RUNNING")


async def test_reports_are_sent_again_until_they_are_acknowledged(host: Host) -> None:
    control = host.control
    control.withheld = frozenset({"STOPPED"})
    await host.start_agent()
    control.assign(make_task(ID, make_container(RUN_MS=1)))
    await control.until_status(ID, "STOPPED")
    for restart in (False, True):
        await control.close()
        if restart:
            await host.kill_agent()
            await host.start_agent()
        control.facts.clear()
        await control.listen()
        facts = await control.until_status(ID, "STOPPED")
        assert facts.containers[0].exit_code == 0
    control.withheld = frozenset()
    control.acked_seq = control.reports[-1].seq
    await control.close()
    reported, count = len(control.reports), len(control.hellos)
    await control.listen()
    await control.until(lambda: len(control.hellos) > count)
    await control.request("image.remove", name="none")
    assert len(control.reports) == reported, "what was acknowledged is not sent again"


async def test_what_is_no_longer_assigned_is_stopped(host: Host) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID))
    await control.until_status(ID, "RUNNING")
    del control.tasks[ID]
    control.send(wire.Assignments(tasks=()))
    facts = await control.until_status(ID, "STOPPED")
    assert facts.causes[0].kind == "NotAssigned"
    assert host.remains(ID) == []


async def test_registry_credentials_never_reach_the_disk(host: Host) -> None:
    await host.start_agent()
    host.control.assign(make_task(ID, make_container(registry_credentials=("user", "s3cret-word"))))
    await host.control.until_status(ID, "RUNNING")
    directory = host.directory / "tasks" / ID
    assert all(b"s3cret-word" not in p.read_bytes() for p in host.directory.rglob("*") if p.is_file())
    assert (directory / "fake.json").exists()


async def test_what_has_no_record_is_cleared_away(host: Host) -> None:
    directory = host.directory / "tasks" / ID
    directory.mkdir(parents=True)
    (directory / "fake.json").write_text("{}")
    await host.start_agent()
    assert not directory.exists()


@pytest.mark.parametrize("damage", ["file", "record"])
async def test_damaged_records_are_put_aside(host: Host, damage: str) -> None:
    path = host.directory / "tasks.db"
    (host.directory / "tasks" / ID).mkdir(parents=True)
    if damage == "file":
        path.write_bytes(b"this is not a database, whatever its name says" * 100)
    else:
        book = TaskBook(path)
        book.open()
        await book.save(ID, lambda: TaskFile(spec=make_task(ID)))
        await book.close()
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE specs SET body=?", (b"{not json",))
    await host.start_agent()
    assert not (host.directory / "tasks" / ID).exists()
    assert path.with_suffix(".damaged").exists() == (damage == "file")
    host.control.assign(make_task(ID))
    await host.control.until_status(ID, "RUNNING")


async def test_logs_are_shipped_kept_and_readable(host: Host) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID, make_container(LOG="hello out there", RUN_MS=30, log=AWSLOGS)))
    await control.until_status(ID, "STOPPED")
    await control.until(lambda: bool(control.batches))
    batch = control.batches[0]
    assert (batch.group, batch.stream, batch.container) == ("/g", "s/app/t", "app")
    assert [e.message for e in batch.events] == ["hello out there"]
    for forgotten in (False, True):
        if forgotten:
            control.forget(ID)
            await _gone(host, ID)
        reply = await control.request("task.logs", task_id=ID, container="app", tail=10)
        assert [line["text"] for line in reply.result["lines"]] == ["hello out there"]
    bad = await control.request("task.logs", task_id=ID, container="../../host/seq", tail=10)
    assert bad.error


async def test_logs_that_were_not_acknowledged_are_shipped_by_the_next_agent(host: Host) -> None:
    control = host.control
    control.log_acks = False
    await host.start_agent()
    control.assign(make_task(ID, make_container(LOG="only once", log=AWSLOGS)))
    await control.until(lambda: bool(control.batches))
    await host.kill_agent()
    control.batches.clear()
    control.log_acks = True
    await host.start_agent()
    await control.until(lambda: bool(control.batches))
    assert [e.message for b in control.batches for e in b.events] == ["only once"]


async def test_stats_and_unknown_requests(host: Host) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID))
    await control.until_status(ID, "RUNNING")
    stats = await control.request("task.stats", task_id=ID)
    assert stats.result["containers"]["app"]["memory_bytes"] > 0
    assert (await control.request("task.stats", task_id=OTHER)).error_kind == "NotFound"
    assert (await control.request("no.such.verb")).error


async def test_shut_down_ends_all_tasks_in_order_and_tears_the_network_down(host: Host) -> None:
    await host.start_agent()
    host.control.assign(make_task(ID))
    await host.control.until_status(ID, "RUNNING")
    await host.shut_down(keep_tasks=False)
    facts = host.control.facts[ID]
    assert facts.status == "STOPPED" and facts.causes[0].kind == "PlatformStopped"
    assert host.remains(ID) == [] and not host.network.is_up


async def test_shut_down_can_leave_the_tasks(host: Host) -> None:
    await host.start_agent()
    host.control.assign(make_task(ID))
    await host.control.until_status(ID, "RUNNING")
    await host.shut_down(keep_tasks=True)
    assert (host.directory / "tasks" / ID / "fake.json").exists() and ID in host.network.ports


STEPS = ("network.attach", "images.prepare", "ingress.publish", "driver.create", "driver.start_container")
CLEAN_UP = ("ingress.withdraw", "driver.destroy", "network.detach", "images.release")


@pytest.mark.parametrize("unexpected", [False, True])
@pytest.mark.parametrize("step", STEPS)
async def test_a_set_up_step_that_fails_leaves_nothing(host: Host, step: str, unexpected: bool) -> None:
    await host.start_agent()
    error: Exception = ZeroDivisionError("a bug") if unexpected else DriverError("Broken", "it is broken")
    _break(host, step, error)
    host.control.assign(make_task(ID, publish=(PublishSpec(name="w", host_port=1, container_port=80),)))
    facts = await host.control.until_status(ID, "STOPPED")
    assert facts.stop_code == "TaskFailedToStart"
    assert facts.causes[0].kind == ("InternalError" if unexpected else "Broken")
    assert host.remains(ID) == []


@pytest.mark.parametrize(
    ("number", "kind", "text"),
    [
        (errno.ENOSPC, "HostDiskFull", "the host's disk is full (/d/f)"),
        (errno.EROFS, "HostDiskReadOnly", "the host's disk is read-only (/d/f)"),
    ],
)
async def test_a_disk_that_takes_nothing_is_the_cause(host: Host, number: int, kind: str, text: str) -> None:
    await host.start_agent()
    _break(host, "driver.create", OSError(number, "refused", "/d/f"))
    host.control.assign(make_task(ID))
    (cause, *_) = (await host.control.until_status(ID, "STOPPED")).causes
    assert (cause.kind, cause.text) == (kind, text) and cause.fix
    assert host.remains(ID) == []


@pytest.mark.parametrize("step", CLEAN_UP)
async def test_a_clean_up_step_that_fails_does_not_keep_the_others(host: Host, step: str) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID, publish=(PublishSpec(name="w", host_port=1, container_port=80),)))
    await control.until_status(ID, "RUNNING")
    _break(host, step, HostFault("Broken", "it is broken"))
    control.stop(ID)
    facts = await control.until_status(ID, "STOPPED")
    assert [c.kind for c in facts.causes] == ["CleanUpFailed"]
    assert len(host.remains(ID)) == 1


def _break(host: Host, step: str, error: Exception) -> None:
    owner, _, verb = step.partition(".")

    async def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    def fail_now(*args: Any, **kwargs: Any) -> None:
        raise error

    setattr(getattr(host, owner), verb, fail_now if verb == "release" else fail)


async def test_many_tasks_at_once(host: Host) -> None:
    await host.start_agent()
    control = host.control
    ids = [f"{n:032x}" for n in range(300)]
    for task_id in ids:
        control.assign(make_task(task_id, make_container(RUN_MS=50)))
    for task_id in ids:
        await control.until_status(task_id, "STOPPED")
    assert all(host.remains(t) == [] for t in ids)


async def test_images_are_made_ready_ahead_for_the_drivers_that_would_run_them(host: Host) -> None:
    await host.start_agent()
    await host.control.until(lambda: bool(host.control.hellos))
    images = [{"reference": "good:1"}, {"reference": "denied:1"}]
    wanted = {"images": images, "architecture": platform.machine(), "max_bytes": 1 << 30}
    reply = await host.control.request("image.prefetch", launch_types=["FARGATE", "EC2"], **wanted)
    ready, denied = reply.result["images"]
    assert ready["digest"].startswith("sha256:") and "error" not in ready
    assert denied["error_kind"] == "ImageAccessDenied" and denied["fix"]
    host.driver.capabilities = msgspec.structs.replace(host.driver.capabilities, launch_types=("EC2",))
    for changes in ({"launch_types": ["FARGATE"]}, {"launch_types": ["EC2"], "architecture": "sparc"}):
        reply = await host.control.request("image.prefetch", **{**wanted, **changes})
        assert reply.result == {"images": []}, "nothing that this host would not run"
    assert (await host.control.request("image.prefetch", images="all")).error


async def test_the_agent_says_that_it_is_alive_as_often_as_it_is_asked_to(host: Host) -> None:
    control = host.control
    control.alive_every_s = 0.01
    await host.start_agent()
    await control.until(lambda: control.alive >= 3)
    await control.close()
    control.alive_every_s, control.alive = 0.0, 0
    await control.listen()
    await control.until(lambda: len(control.hellos) == 2)
    control.assign(make_task(ID))
    await control.until_status(ID, "RUNNING")
    assert control.alive == 0, "an earlier connection's beat is over"


async def test_a_task_is_looked_at_before_it_is_there(host: Host) -> None:
    await host.start_agent()
    await host.control.until(lambda: bool(host.control.hellos))
    images = [{"reference": r} for r in ("good:1", "repo/not-found:1", "repo/40g:1")]
    reply = await host.control.request(
        "task.preflight", images=images, architecture="x86_64", host_ports=[80]
    )
    seen = msgspec.convert(reply.result, PreflightSeen)
    good, missing, large = seen.images
    assert good.is_here and good.digest and not good.error_kind
    assert (missing.error_kind, missing.fix) == ("ImageNotFound", "use another image")
    assert large.size_bytes == 40 * 1024**3 and large.unpacked_bytes is None and not large.is_here
    assert seen.free_bytes > 0 and seen.busy_ports == {}
    for wrong in ({"images": "all"}, {"images": images * 4}, {"host_ports": list(range(1, 1002))}):
        given = {"images": images, "architecture": "x86_64", **wrong}
        assert (await host.control.request("task.preflight", **given)).error, wrong


async def test_an_ended_task_that_was_to_be_forgotten_over_a_broken_connection_goes_with_the_next(
    host: Host,
) -> None:
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID))
    await control.until_status(ID, "RUNNING")
    control.stop(ID)
    await control.until_status(ID, "STOPPED")
    await control.close()
    del control.tasks[ID], control.stops[ID]
    await control.listen()
    await control.until(lambda: len(control.hellos) == 2)
    await _gone(host, ID)


async def test_tasks_that_are_assigned_later_stay(host: Host) -> None:
    """The whole list does not fit into one message."""
    await host.start_agent()
    control = host.control
    control.assign(make_task(ID))
    await control.until_status(ID, "RUNNING")
    control.send(wire.Assignments(tasks=(make_task(OTHER),), later=(ID,)))
    await control.until_status(OTHER, "RUNNING")
    assert control.statuses(ID)[-1] == "RUNNING"
    control.send(wire.Assignments(tasks=(make_task(OTHER),)))
    await control.until_status(ID, "STOPPED")
    assert control.statuses(OTHER)[-1] == "RUNNING"
