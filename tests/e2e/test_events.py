"""Events, deliveries and deadlines of a real platform whose control plane is killed again and again.

The driver only pretends; everything else is real, in processes of its own.
"""

import json
import os
import queue
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.support.looking import LIMIT_S, look_until
from tests.support.platform import Platform

pytestmark = pytest.mark.needs("root")

DEFINITION = {
    "family": "job",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": "256",
    "memory": "512",
    "containerDefinitions": [{"name": "main", "image": "x"}],
}
STATES = [
    "PROVISIONING",
    "PENDING",
    "ACTIVATING",
    "RUNNING",
    "DEACTIVATING",
    "STOPPING",
    "DEPROVISIONING",
    "STOPPED",
]


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    made = Platform(tmp_path, drivers="fake", host_memory_mib=str(2**30), cpu_overcommit="100000")
    made.start()
    yield made
    made.stop()


@pytest.fixture
def hook() -> Iterator[tuple[str, "queue.Queue[dict[str, Any]]"]]:
    calls: queue.Queue[dict[str, Any]] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/", calls
    server.shutdown()


def kill_control(platform: Platform) -> None:
    (pid,) = platform.pids("hutch.apps.control")
    os.kill(pid, signal.SIGKILL)


def test_no_change_of_state_is_lost_when_the_control_plane_is_killed(
    platform: Platform, hook: tuple[str, "queue.Queue[dict[str, Any]]"]
) -> None:
    url, calls = hook
    ecs, events = platform.client("ecs"), platform.client("events")
    ecs.create_cluster(clusterName="default")
    ecs.register_task_definition(**DEFINITION)
    events.put_rule(Name="all", EventPattern='{"detail-type": ["ECS Task State Change"]}')
    events.put_targets(Rule="all", Targets=[{"Id": "1", "Arn": url, "InputPath": "$.detail"}])
    tasks: list[str] = []
    for _ in range(2):
        for _ in range(10):
            answer = ecs.run_task(taskDefinition="job", launchType="FARGATE")
            tasks.append(answer["tasks"][0]["taskArn"])
        kill_control(platform)
        for arn in tasks[-5:]:
            ecs.stop_task(task=arn, reason="enough")
    for arn in tasks:
        ecs.stop_task(task=arn, reason="enough")
    told: dict[str, dict[int, str]] = {arn: {} for arn in tasks}
    while not all("STOPPED" in seen.values() for seen in told.values()):
        event = calls.get(timeout=LIMIT_S)
        told[event["taskArn"]][event["version"]] = event["lastStatus"]
    log = [
        json.loads(line) for line in platform.hutch("events", "--json", "--limit", "1000").stdout.splitlines()
    ]
    assert len({e["id"] for e in log}) == len(log), "the log has each event once"
    while sum(map(len, told.values())) < len([e for e in log if "taskArn" in e["detail"]]):
        event = calls.get(timeout=LIMIT_S)
        told[event["taskArn"]][event["version"]] = event["lastStatus"]
    for arn in tasks:
        logged = [e["detail"] for e in log if e["detail"].get("taskArn") == arn]
        assert [e["version"] for e in logged] == list(range(1, len(logged) + 1))
        states = list(dict.fromkeys(e["lastStatus"] for e in logged))
        assert states == [s for s in STATES if s in states]
        assert (states[0], states[-1]) == ("PROVISIONING", "STOPPED")
        assert told[arn] == {e["version"]: e["lastStatus"] for e in logged}, "what is logged was delivered"


def test_commands_show_schedules(platform: Platform) -> None:
    platform.client("events").put_rule(Name="often", ScheduleExpression="rate(1 second)")
    platform.client("scheduler").create_schedule(
        Name="yearly",
        ScheduleExpression="cron(0 0 1 1 ? *)",
        FlexibleTimeWindow={"Mode": "OFF"},
        Target={"Arn": "http://127.0.0.1:9/", "RoleArn": "arn:aws:iam::000000000000:role/r"},
    )
    shown = {s["owner"]: s for s in json.loads(platform.hutch("schedule", "ls", "--json").stdout)}
    assert shown.keys() == {"rule/default/often", "schedule/default/yearly"}

    def runs() -> list[Any]:
        shown = platform.hutch("schedule", "runs", "rule/default/often", "--json").stdout
        return list(json.loads(shown)["runs"])

    look_until(runs)
    assert "the rule has no targets" in platform.hutch("schedule", "runs", "rule/default/often").stdout
    assert "cron(0 0 1 1 ? *)" in platform.hutch("schedule", "ls").stdout
    assert platform.hutch("schedule", "runs", "nothing", check=False).returncode == 1


def test_a_deadline_outlives_the_control_plane(platform: Platform) -> None:
    ecs = platform.client("ecs")
    ecs.create_cluster(clusterName="default")
    ecs.register_task_definition(**DEFINITION)
    answer = ecs.run_task(
        taskDefinition="job", launchType="FARGATE", tags=[{"key": "hutch:maxRuntime", "value": "1s"}]
    )
    task = answer["tasks"][0]["taskArn"].rpartition("/")[2]
    kill_control(platform)
    ecs.describe_clusters()
    kill_control(platform)
    seen = platform.until("STOPPED", task)
    assert seen["causes"][0]["kind"] == "MaxRuntimeExceeded"
    assert "longest time of 1 s" in seen["stopped_reason"]
    assert 1.0 <= seen["stopped_at"] - seen["started_at"] < 60.0
