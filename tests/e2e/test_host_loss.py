"""A platform of two hosts, one of which hangs, dies, stays away and comes back. The drivers only pretend; all processes
are real."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.event_stream import EventStream
from tests.support.looking import look_until
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root")
INSTANCE, TASK = "ECS Container Instance State Change", "ECS Task State Change"


class SecondHost:
    """Another machine's agent, as far as the platform can tell: a directory of its own, the same fleet."""

    def __init__(self, platform: Platform, directory: Path) -> None:
        self.data = directory / "second"
        self._environment = {**platform.environment, "HUTCH_DATA_DIR": str(self.data)}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hutch.apps.host"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    @property
    def host_id(self) -> str:
        return (self.data / "host" / "host-id").read_text().strip()

    def signal(self, number: int) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _directory(self, task_arn: str) -> Path:
        return self.data / "host" / "tasks" / task_arn.rpartition("/")[2]

    def has(self, task_arn: str) -> bool:
        return self._directory(task_arn).exists()

    def until_gone(self, task_arn: str) -> None:
        """Wait until nothing of a task is on the host but its logs. The task has stopped before, for all that are told."""
        look_until(lambda: not self.has(task_arn))


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    made = Platform(
        tmp_path, drivers="fake", host_silence_s="1", host_lost_after_s="3600", host_memory_mib="8192"
    )
    made.start()
    yield made
    made.stop()


@pytest.fixture
def second(platform: Platform, tmp_path: Path) -> Iterator[SecondHost]:
    made = SecondHost(platform, tmp_path)
    yield made
    made.kill()


def register(ecs: Any) -> None:
    ecs.register_task_definition(
        family="f", cpu="256", memory="512", containerDefinitions=[{"name": "main", "image": "x"}]
    )


class Watched:
    """What the platform tells of the second host and of tasks, in order."""

    def __init__(self, events: EventStream, host_id: str) -> None:
        self._events = events
        self._host_id = host_id
        self._told = 0

    def instance(self, connected: bool) -> str:
        """Wait until the host's connection has come or gone, after what was told before; the instance's ARN."""
        detail = self._events.next(
            INSTANCE,
            lambda d: (
                (d["ec2InstanceId"], d["agentConnected"]) == (self._host_id, connected)
                and d["version"] > self._told
            ),
        )
        self._told = detail["version"]
        return str(detail["containerInstanceArn"])

    def task(self, task_arn: str, status: str) -> Any:
        return self._events.next(TASK, lambda d: (d["taskArn"], d["lastStatus"]) == (task_arn, status))


def test_a_host_that_dies_hangs_stays_away_and_comes_back(platform: Platform, second: SecondHost) -> None:
    ecs = platform.client("ecs")
    ecs.create_cluster(clusterName="default")
    register(ecs)
    with EventStream(platform) as events:
        second.start()
        while not (second.data / "host" / "host-id").exists():
            events.next(INSTANCE)
        watched = Watched(events, second.host_id)
        arn = watched.instance(True)
        first = start_on(ecs, arn)
        watched.task(first, "RUNNING")

        # It dies, and is started again soon: nothing happens to its tasks.
        refused = platform.hutch("host", "lost", second.host_id, check=False)
        assert refused.returncode == 1 and "is connected" in refused.stderr
        second.kill()
        watched.instance(False)
        second.start()
        watched.instance(True)
        assert statuses(ecs, first) == ["RUNNING"]

        # It dies, and somebody knows that it does not come back. It does, with a task that nobody wants any more.
        second.kill()
        watched.instance(False)
        assert "with 1 tasks" in platform.hutch("host", "lost", second.host_id).stdout
        stopped = watched.task(first, "STOPPED")
        assert stopped["stopCode"] == "TerminationNotice"
        assert stopped["stoppedReason"] == f"Host EC2 (instance {second.host_id}) terminated."
        assert second.has(first)
        second.start()
        watched.instance(True)
        second.until_gone(first)

        # It hangs: what it has goes on as far as anybody knows, and it gets nothing new.
        hung = start_on(ecs, arn)
        watched.task(hung, "RUNNING")
        second.signal(signal.SIGSTOP)
        watched.instance(False)
        says_that_it_is_away(platform, ecs, arn, hung)
        elsewhere = [ecs.run_task(taskDefinition="f")["tasks"][0]["taskArn"] for _ in range(2)]
        for each in elsewhere:
            assert watched.task(each, "RUNNING")["containerInstanceArn"] != arn
            ecs.stop_task(task=each)
            watched.task(each, "STOPPED")

    # It stays away, and another control plane gives it up by itself.
    platform.hutch("down", "--keep-tasks")
    platform.environment["HUTCH_HOST_LOST_AFTER_S"] = "2"
    platform.start()
    with EventStream(platform) as events:
        watched = Watched(events, second.host_id)
        watched.task(hung, "STOPPED")
        (cause,) = json.loads(platform.hutch("why", "--json", hung.rpartition("/")[2]).stdout)["causes"]
        assert cause["kind"] == "HostLost" and cause["evidence"]["host_id"] == second.host_id
        assert cause["evidence"]["silent_s"] >= 2 and cause["fix"]
        assert second.has(hung)
        second.signal(signal.SIGCONT)
        second.until_gone(hung)
        watched.instance(True)
        again = start_on(ecs, arn)
        watched.task(again, "RUNNING")


def start_on(ecs: Any, instance: str) -> str:
    return str(ecs.start_task(taskDefinition="f", containerInstances=[instance])["tasks"][0]["taskArn"])


def statuses(ecs: Any, *tasks: str) -> list[str]:
    return [t["lastStatus"] for t in ecs.describe_tasks(tasks=tasks)["tasks"]]


def says_that_it_is_away(platform: Platform, ecs: Any, instance: str, task: str) -> None:
    (seen,) = ecs.describe_container_instances(containerInstances=[instance])["containerInstances"]
    assert seen["agentConnected"] is False and "last heard of at" in seen["statusReason"]
    why = platform.hutch("why", task.rpartition("/")[2]).stdout
    assert "is not connected, last heard of at" in why and "given up at" in why and "RUNNING" in why
    assert "away" in platform.hutch("host", "ls").stdout
    assert "RUNNING (host away)" in platform.hutch("ps").stdout
    assert ecs.describe_tasks(tasks=[task])["tasks"][0]["connectivity"] == "DISCONNECTED"
    failed = ecs.start_task(taskDefinition="f", containerInstances=[instance])["failures"]
    assert [f["reason"] for f in failed] == ["AGENT"]
