"""Suspend, resume and fork through the whole platform, with real microVMs and with the fake driver."""

import json
import os
import signal
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.platform import Platform, running

microvms = pytest.mark.needs("root", "qemu", "guest_image", "haproxy", "skopeo")


def document(platform: Platform, *arguments: str) -> Any:
    return json.loads(platform.hutch(*arguments, "--json").stdout)


def fetch(url: str, timeout_s: float = 30.0) -> tuple[int, str]:
    port = url.rstrip("/").rpartition(":")[2]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=timeout_s) as answer:
        return answer.status, answer.read().decode()


def described(platform: Platform, task_id: str) -> Any:
    answer = platform.client("ecs").describe_tasks(cluster="default", tasks=[task_id])
    return answer["tasks"][0]


@microvms
def test_a_suspended_task_comes_back_with_address_and_processes(real_platform: Platform) -> None:
    ran = document(real_platform, "run", "localhost/web:latest", "-p", "80", "--name", "sleeper")
    task_id, url = ran["task_id"], ran["endpoints"][0]
    assert fetch(url)[0] == 200
    before = described(real_platform, task_id)
    assert document(real_platform, "suspend", task_id)["suspended_at"]
    shown = described(real_platform, task_id)
    assert (shown["lastStatus"], shown["healthStatus"]) == ("RUNNING", "UNKNOWN")
    assert [a["status"] for a in shown["attachments"] if a["type"] == "HutchSuspension"] == ["SUSPENDED"]
    assert "SUSPENDED" in real_platform.hutch("ps").stdout
    assert real_platform.pids("qemu-system") == []
    with pytest.raises(OSError) as refused:
        fetch(url)
    assert not isinstance(getattr(refused.value, "reason", refused.value), TimeoutError), "it does not hang"
    # Its host agent is killed while it is away; the supervisor starts another.
    (agent,) = real_platform.pids("hutch.apps.host")
    os.kill(agent, signal.SIGKILL)
    resumed = document(real_platform, "resume", task_id)
    assert fetch(url)[0] == 200
    after = described(real_platform, task_id)
    assert resumed["address"] == ran["address"] and resumed["suspended_at"] is None
    assert [c["runtimeId"] for c in after["containers"]] == [c["runtimeId"] for c in before["containers"]]
    assert not [a for a in after["attachments"] if a["type"] == "HutchSuspension"]
    # Suspended once more, and stopped as it is.
    document(real_platform, "suspend", task_id)
    stopped = document(real_platform, "stop", task_id, "--reason", "enough")
    assert (stopped["last_status"], stopped["stopped_reason"]) == ("STOPPED", "enough")
    assert not list((real_platform.data_dir / "host" / "tasks").glob("*/suspended"))


@microvms
def test_forks_are_tasks_of_their_own(real_platform: Platform) -> None:
    ran = document(real_platform, "run", "localhost/web:latest", "-p", "80", "--name", "original")
    task_id = ran["task_id"]
    assert fetch(ran["endpoints"][0])[0] == 200
    forks = document(real_platform, "fork", task_id, "-n", "2")
    assert {f["last_status"] for f in forks} == {"RUNNING"} and {f["fork_of"] for f in forks} == {task_id}
    everyone = [ran, *forks]
    assert len({t["address"] for t in everyone}) == 3 and len({t["endpoints"][0] for t in everyone}) == 3
    for each in everyone:
        assert fetch(each["endpoints"][0])[0] == 200
    shown = described(real_platform, forks[0]["task_id"])
    assert shown["startedBy"] == f"hutch-fork/{task_id}"
    for each in everyone:
        document(real_platform, "stop", each["task_id"])


@pytest.fixture
def small_platform(tmp_path: Path) -> Any:
    """With room for one task of 512 MiB."""
    platform = Platform(tmp_path, drivers="fake", host_memory_mib="800", memory_reserve_mib="0")
    platform.start()
    yield platform
    platform.stop()


@pytest.mark.needs("root")
def test_memory_is_given_back_and_must_be_had_again(small_platform: Platform) -> None:
    first = document(small_platform, "run", "x", "--name", "first")["task_id"]
    document(small_platform, "suspend", first)
    assert document(small_platform, "suspend", first)["suspended_at"], "suspending it again changes nothing"
    second = document(small_platform, "run", "x", "--name", "second")
    assert second["last_status"] == "RUNNING"
    refused = small_platform.hutch("resume", first, check=False)
    assert refused.returncode == 1 and "has 288 MiB of memory left, and 512 are needed" in refused.stderr
    refused = small_platform.hutch("fork", second["task_id"], check=False)
    assert refused.returncode == 1 and "can't be forked now" in refused.stderr
    document(small_platform, "stop", second["task_id"])
    assert document(small_platform, "resume", first)["suspended_at"] is None
    third = document(small_platform, "run", "x", "--name", "third", "--no-wait")
    assert third["last_status"] == "PROVISIONING", "what was taken again is taken"


@pytest.fixture(scope="module")
def fake_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Its own: it goes down and comes up."""
    with running(tmp_path_factory.mktemp("suspend"), drivers="fake") as platform:
        yield platform


@pytest.mark.needs("root")
def test_what_cannot_be_done_says_why(fake_platform: Platform) -> None:
    task_id = document(fake_platform, "run", "x", "--name", "odd")["task_id"]
    done = fake_platform.hutch("fork", task_id, "-n", "11", check=False)
    assert done.returncode == 1 and "between 1 and 10 copies" in done.stderr
    (fork,) = document(fake_platform, "fork", task_id)
    assert fork["last_status"] == "RUNNING"
    document(fake_platform, "suspend", task_id)
    done = fake_platform.hutch("fork", task_id, check=False)
    assert done.returncode == 1 and "resume it first" in done.stderr
    # A platform that goes down and comes up finds it as it was.
    fake_platform.hutch("down", "--keep-tasks")
    fake_platform.start()
    assert document(fake_platform, "resume", task_id)["suspended_at"] is None
    document(fake_platform, "stop", task_id)
    done = fake_platform.hutch("suspend", task_id, check=False)
    assert done.returncode == 1 and "is STOPPED" in done.stderr
    document(fake_platform, "stop", fork["task_id"])
