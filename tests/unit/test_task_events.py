"""What changes of a task tell: every state once, in order, with versions that rise."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hutch.base.errors import Invalid
from hutch.model.notes import TaskNote, decode_task_note, task_journal
from hutch.model.task import Container, Task
from hutch.rules import lifecycle
from hutch.rules.deadline import max_runtime_s
from hutch.rules.events.inputs import at_path, check_transformer, transformed
from hutch.rules.events.task_changes import snapshots
from hutch.rules.facts import ObservedContainer, ObservedTask


def new_task() -> Task:
    container = Container(name="main", container_id="c", image="x")
    return Task(task_id="0" * 32, cluster="default", family="f", revision=1, launch_type="FARGATE", cpu=256,
                memory_mib=512, containers=(container,), created_at=100.0)  # fmt: skip


def stopped() -> ObservedTask:
    main = ObservedContainer(name="main", status="STOPPED", exit_code=3, started_at=110.0, finished_at=120.0)
    return ObservedTask(status="STOPPED", containers=(main,), stop_code="EssentialContainerExited",
                        stopped_reason="Essential container in task exited", pull_started_at=102.0,
                        pull_stopped_at=105.0, started_at=110.0, stopping_at=120.0, execution_stopped_at=121.0,
                        stopped_at=122.0)  # fmt: skip


def told(note: bytes) -> list[tuple[str, int, float | None]]:
    return [(t.last_status, t.event_version, at) for t, at in snapshots(decode_task_note(note))]


def test_a_task_that_is_placed_at_once_was_provisioning_before() -> None:
    placed = lifecycle.placed(new_task(), "host", 101.0)
    assert told(task_journal(None, placed)) == [("PROVISIONING", 1, 100.0), ("PENDING", 2, 101.0)]


def test_a_change_that_raises_no_version_tells_nothing() -> None:
    waiting = new_task()
    assert task_journal(waiting, replace(waiting, waiting_reason="no host")) == b""
    assert task_journal(waiting, None) == b""


def test_a_report_that_jumps_to_the_end_tells_every_state() -> None:
    placed = lifecycle.placed(new_task(), "host", 101.0)
    ended = lifecycle.observed(placed, stopped())
    events = snapshots(TaskNote(placed.last_status, ended))
    assert [t.last_status for t, _ in events] == list(lifecycle.ORDER[2:])
    assert [t.event_version for t, _ in events] == [3, 4, 5, 6, 7, 8]
    assert [at for _, at in events] == [102.0, 110.0, 120.0, 120.0, 121.0, 122.0]
    running = events[1][0]
    assert (running.desired_status, running.stop_code, running.stopped_at) == ("RUNNING", "", None)
    assert (running.containers[0].last_status, running.containers[0].exit_code) == ("RUNNING", None)
    assert events[-1][0] == ended


def test_a_task_that_never_ran_was_never_running() -> None:
    placed = lifecycle.placed(new_task(), "host", 101.0)
    facts = replace(stopped(), started_at=None, pull_started_at=102.0)
    states = [t.last_status for t, _ in snapshots(TaskNote("PENDING", lifecycle.observed(placed, facts)))]
    assert states == ["ACTIVATING", "DEACTIVATING", "STOPPING", "DEPROVISIONING", "STOPPED"]
    unplaced = lifecycle.stop_requested(new_task(), "UserInitiated", "x", "me", 105.0)
    assert told(task_journal(new_task(), unplaced)) == [("STOPPED", 2, 105.0)]


@given(st.lists(st.sampled_from(lifecycle.ORDER[2:]), max_size=8))
def test_no_state_is_told_twice_and_versions_rise(statuses: list[str]) -> None:
    task = lifecycle.placed(new_task(), "host", 101.0)
    notes = [task_journal(None, task)]
    for status in statuses:
        facts = ObservedTask(
            status=status, pull_started_at=102.0, started_at=110.0, stopping_at=120.0, stopped_at=122.0
        )
        after = lifecycle.observed(task, facts)
        notes.append(task_journal(task, after) if after is not task else b"")
        task = after
    events = [t for n in notes if n for t, _ in snapshots(decode_task_note(n))]
    versions = [t.event_version for t in events]
    assert versions == sorted(set(versions))
    states = [t.last_status for t in events]
    assert states == [s for s in lifecycle.ORDER if s in states], "in order, each once"
    assert states[-1] == task.last_status


EVENT: dict[str, Any] = {"source": "s", "detail": {"name": 'a "b"', "n": [1, {"k": None}], "o": {"x": 1}}}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ('{"a": <name>, "b": <o>}', {"a": 'a "b"', "b": {"x": 1}}),
        ('{"a": "is <name>!"}', {"a": 'is a "b"!'}),
        ('"<name> and <o>"', 'a "b" and {"x":1}'),
        ('{"gone": <gone>, "text": "<gone>"}', {"gone": None, "text": ""}),
        ('{"rule": "<aws.events.rule-name>"}', {"rule": "r"}),
        ("<aws.events.event.json>", EVENT),
    ],
)
def test_templates(template: str, expected: Any) -> None:
    paths = {"name": "$.detail.name", "o": "$.detail.o", "gone": "$.detail.gone"}
    check_transformer(paths, template)
    assert json.loads(transformed(EVENT, paths, template, {"aws.events.rule-name": "r"})) == expected


def test_paths() -> None:
    assert at_path(EVENT, "$.detail.n[1]") == {"k": None}
    assert at_path(EVENT, "$['detail']['o'].x") == 1
    assert at_path(EVENT, "$.detail.n[9]") is None
    assert at_path(EVENT, "$") == EVENT
    for bad in ("detail", "$.", "$..x", "$.a b", "$[x]"):
        with pytest.raises(Invalid):
            at_path(EVENT, bad)


@pytest.mark.parametrize(
    ("paths", "template"), [({}, "<x>"), ({"x": "y"}, "<x>"), ({"x": "$.a"}, '{"a": <x>')]
)
def test_templates_that_can_never_be_filled_are_refused(paths: dict[str, str], template: str) -> None:
    with pytest.raises(Invalid):
        check_transformer(paths, template)


def test_durations() -> None:
    wanted = {"90": 90, "90s": 90, "15m": 900, "1h30m": 5400, "2d": 172800, "1d2h3m4s": 93784}
    assert {t: max_runtime_s({"hutch:maxRuntime": t}) for t in wanted} == wanted
    assert max_runtime_s({}) == 0
    for bad in ("", "0", "-1", "m", "1.5h", "400d", "1m1h", "forever"):
        with pytest.raises(Invalid):
            max_runtime_s({"hutch:maxRuntime": bad})
