"""A task's states move as ECS's do, whatever facts come, in whatever order and however often (reference B.3, B.4)."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hutch.base.errors import Invalid
from hutch.model.notes import TaskNote
from hutch.model.task import CauseLink, Container, NetworkInterface, Phase, Task
from hutch.rules.events.task_changes import snapshots
from hutch.rules.facts import ObservedContainer, ObservedTask
from hutch.rules.lifecycle import (
    ORDER,
    can_move,
    host_lost,
    never_ran,
    observed,
    placed,
    stop_requested,
    task_health,
)

AFTER_RUNNING = ("DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED")


def task(**more: object) -> Task:
    given = {
        "task_id": "t",
        "cluster": "c",
        "family": "f",
        "revision": 1,
        "launch_type": "FARGATE",
        "cpu": 256,
        "memory_mib": 512,
        "created_at": 1.0,
        "containers": (
            Container(name="main", container_id="1", image="x"),
            Container(name="side", container_id="2", image="x", essential=False),
        ),
        "network": NetworkInterface(
            attachment_id="a",
            eni_id="e",
            subnet_id="s",
            security_group_ids=(),
            mac="",
            private_ipv4="10.0.0.4",
        ),
        **more,
    }
    return Task(**given)  # type: ignore[arg-type]


_times = st.one_of(st.none(), st.floats(2, 100))
_containers = st.lists(
    st.builds(
        ObservedContainer,
        name=st.sampled_from(["main", "side", "unknown"]),
        status=st.sampled_from(["PENDING", "RUNNING", "STOPPED"]),
        exit_code=st.one_of(st.none(), st.integers(0, 255)),
        health=st.sampled_from(["HEALTHY", "UNHEALTHY", "UNKNOWN"]),
    ),
    max_size=3,
).map(tuple)
_facts = st.builds(
    ObservedTask,
    status=st.sampled_from(ORDER),
    containers=_containers,
    stop_code=st.sampled_from(["", "EssentialContainerExited", "TaskFailedToStart"]),
    stopped_reason=st.sampled_from(["", "why"]),
    causes=st.lists(st.builds(CauseLink, kind=st.just("K"), text=st.text(max_size=2)), max_size=2).map(tuple),
    network_ready_at=_times,
    pull_started_at=_times,
    started_at=_times,
    stopping_at=_times,
    stopped_at=_times,
)
_steps = st.lists(st.one_of(_facts, st.sampled_from(["stop", "never"])), max_size=12)


def step(before: Task, what: object) -> Task:
    if what == "stop":
        return stop_requested(before, "UserInitiated", "Task stopped by user", "me", 50.0)
    if what == "never":
        return before if before.is_stopped else never_ran(before, "no", (), 50.0)
    assert isinstance(what, ObservedTask)
    return observed(before, what)


@pytest.mark.parametrize(("old", "new"), list(itertools.product(ORDER, ORDER)))
def test_a_state_is_only_ever_left_forwards(old: str, new: str) -> None:
    assert can_move(old, new) == (ORDER.index(new) > ORDER.index(old))


def test_an_unknown_state_is_refused() -> None:
    with pytest.raises(Invalid):
        can_move("RUNNING", "SLEEPING")


@given(_steps, st.booleans())
def test_whatever_comes_states_go_forwards_and_times_stay(steps: list[object], is_placed: bool) -> None:
    now = placed(task(), "h", 2.0) if is_placed else task()
    for what in steps:
        before, now = now, step(now, what)
        assert ORDER.index(now.last_status) >= ORDER.index(before.last_status)
        assert now.event_version >= before.event_version
        if now.last_status != before.last_status:
            assert now.event_version > before.event_version, "AWS raises `version` with each change of state"
        if before.desired_status == "STOPPED":
            assert now.desired_status == "STOPPED", "a stop is never taken back"
        if now.last_status in AFTER_RUNNING:
            assert now.desired_status == "STOPPED"
        if before.is_stopped:
            assert now == before, "STOPPED is final"
        for name in ("started_at", "stopping_at", "stopped_at", "pull_started_at", "connectivity_at"):
            old = getattr(before, name)
            assert old is None or getattr(now, name) == old, f"{name} is set once"
        for name in ("stop_code", "stopped_reason", "stop_requested_by"):
            old = getattr(before, name)
            assert not old or getattr(now, name) == old, f"the first {name} stays"
        assert [c.name for c in now.containers] == ["main", "side"]
        assert (now.stopped_at is not None) <= now.is_stopped


@given(_facts, _facts)
def test_facts_that_come_twice_or_late_change_nothing(first: ObservedTask, second: ObservedTask) -> None:
    once = observed(placed(task(), "h", 2.0), first)
    assert observed(once, first) is once or observed(once, first) == once
    later = observed(once, second)
    assert observed(later, second) == later
    if ORDER.index(second.status) > ORDER.index(first.status):
        assert observed(later, first).last_status == later.last_status


def test_the_way_of_a_task_that_is_stopped_by_its_user() -> None:
    now = placed(task(), "h", 2.0)
    assert (now.last_status, now.desired_status, now.host_id, now.placed_at) == (
        "PENDING",
        "RUNNING",
        "h",
        2.0,
    )
    now = observed(now, ObservedTask(status="ACTIVATING", pull_started_at=3.0))
    now = observed(now, ObservedTask(status="RUNNING", started_at=4.0, network_ready_at=3.5))
    assert (now.last_status, now.started_at, now.connectivity) == ("RUNNING", 4.0, "CONNECTED")
    assert now.network is not None and now.network.status == "ATTACHED"
    now = stop_requested(now, "UserInitiated", "Task stopped by user", "me", 5.0)
    assert (now.last_status, now.desired_status) == ("RUNNING", "STOPPED")
    again = stop_requested(now, "ServiceSchedulerInitiated", "other", "you", 6.0)
    assert again is now, "the first to ask gives the reason"
    for status in ("DEACTIVATING", "STOPPING", "DEPROVISIONING"):
        now = observed(now, ObservedTask(status=status, stopping_at=6.0))
        assert now.last_status == status and now.stopped_at is None
    ended = (
        ObservedContainer(name="main", status="STOPPED", exit_code=143),
        ObservedContainer(name="side", status="STOPPED"),
    )
    now = observed(
        now,
        ObservedTask(
            status="STOPPED",
            containers=ended,
            stopped_at=7.0,
            stop_code="EssentialContainerExited",
            stopped_reason="Essential container in task exited",
        ),
    )
    assert (now.stop_code, now.stopped_reason, now.stopped_at) == (
        "UserInitiated",
        "Task stopped by user",
        7.0,
    )
    assert [c.exit_code for c in now.containers] == [143, None]
    assert now.causes[0].kind == "StopRequested" and now.causes[0].evidence == {"by": "me"}
    assert now.network is not None and now.network.status == "DELETED"


def test_a_task_that_no_host_has_is_stopped_at_once() -> None:
    now = stop_requested(task(), "UserInitiated", "r", "me", 5.0)
    assert (now.last_status, now.stopped_at, now.stopping_at) == ("STOPPED", 5.0, 5.0)
    assert all(c.last_status == "STOPPED" and c.exit_code is None for c in now.containers)
    failed = never_ran(task(), "RESOURCE:CPU", (CauseLink(kind="NoRoom", text="x"),), 5.0)
    assert (failed.stop_code, failed.stopped_reason, failed.last_status) == (
        "TaskFailedToStart",
        "RESOURCE:CPU",
        "STOPPED",
    )


def test_only_a_change_of_state_or_container_raises_the_version() -> None:
    now = observed(placed(task(), "h", 2.0), ObservedTask(status="ACTIVATING"))
    with_phase = observed(
        now, ObservedTask(status="ACTIVATING", phases=(Phase(name="pull", started_at=3.0),))
    )
    assert with_phase != now and with_phase.event_version == now.event_version
    assert [p.name for p in with_phase.phases] == ["placement", "pull"]


@pytest.mark.parametrize(
    ("states", "wanted"),
    [
        ([], "UNKNOWN"),
        (["HEALTHY"], "HEALTHY"),
        (["HEALTHY", "UNKNOWN"], "UNKNOWN"),
        (["UNKNOWN", "UNHEALTHY"], "UNHEALTHY"),
        (["HEALTHY", "HEALTHY"], "HEALTHY"),
    ],
)
def test_health_of_a_task(states: list[str], wanted: str) -> None:
    checked = [
        Container(name=f"c{i}", container_id="", image="", has_health_check=True, health_status=s)
        for i, s in enumerate(states)
    ]
    ignored = Container(
        name="x", container_id="", image="", essential=False, has_health_check=True, health_status="UNHEALTHY"
    )
    unchecked = Container(name="y", container_id="", image="", health_status="UNHEALTHY")
    assert task_health((*checked, ignored, unchecked)) == wanted


LOST = CauseLink(kind="HostLost", text="gone", evidence={"host_id": "i-1"})


@given(st.lists(_facts, max_size=6), st.booleans(), st.booleans())
def test_on_a_lost_host_every_task_ends_whatever_was_known_of_it(
    facts: list[ObservedTask], asked: bool, asleep: bool
) -> None:
    """Its end is told once, with a version for each state on the way, and nothing that the host says later counts."""
    before = placed(task(), "i-1", 5.0)
    for fact in facts:
        before = observed(before, fact)
    if before.is_stopped:
        return
    if asked:
        before = stop_requested(before, "UserInitiated", "enough", "me", 60.0)
    if asleep:
        before = replace(before, suspended_at=70.0)
    after = host_lost(before, LOST, 90.0)
    assert (after.last_status, after.desired_status, after.stopped_at) == ("STOPPED", "STOPPED", 90.0)
    assert after.suspended_at is None and after.causes[-1] == LOST
    if not before.stopped_reason:
        assert after.stopped_reason == "Host EC2 (instance i-1) terminated."
    if not before.stop_code:
        assert after.stop_code == "TerminationNotice"
    assert after.network is not None and after.network.status == "DELETED"
    assert {c.last_status for c in after.containers} == {"STOPPED"}
    versions = [t.event_version for t, _ in snapshots(TaskNote(before.last_status, after))]
    assert versions == list(range(before.event_version + 1, after.event_version + 1))
    assert all(observed(after, f) is after for f in facts)
