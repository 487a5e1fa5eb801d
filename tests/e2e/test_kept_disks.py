"""Exec into tasks that have stopped: microVMs of an image with one program and no shell."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.support.archives import make_archive
from tests.support.looking import LIMIT_S, look_until, next_line, wait_for_end
from tests.support.platform import BIN, Platform
from tests.support.ssm_client import SsmClient
from tests.support.terminal import Terminal

pytestmark = pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft", "runc", "toolbox")

IMAGE = "localhost/shell-less:latest"
APP = "/app/busybox"
"""The image's only program. Nothing in the image is called `sh`, nor is it on the PATH."""
KEPT_MIB = 24


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    made = Platform(
        tmp_path_factory.mktemp("kept"), drivers="microvm,container", kept_disks_mib=str(KEPT_MIB)
    )
    made.start()
    try:
        directory = tmp_path_factory.mktemp("image")
        root = directory / "root"
        for part in ("app", "etc", "dev", "proc", "sys", "tmp"):
            (root / part).mkdir(parents=True)
        shutil.copy(str(shutil.which("busybox")), root / APP.lstrip("/"))
        (root / "etc/passwd").write_text("root:x:0:0::/:/bin/false\napp:x:1000:1000::/:/bin/false\n")
        archive = make_archive(root, directory / "image.tar", IMAGE, Env=["PATH=/app", "COLOUR=green"])
        made.hutch("image", "import", str(archive), IMAGE)
        yield made
    finally:
        made.stop()
    assert made.leftovers() == []


def _stopped(
    platform: Platform, family: str, script: str, launch_type: str = "FARGATE", **changes: Any
) -> str:
    """The ARN of a task that has run a script to its end."""
    ecs = platform.client("ecs")
    container = {
        "name": "app",
        "image": IMAGE,
        "user": "1000",
        "workingDirectory": "/work",
        "entryPoint": [APP, "sh", "-c"],
        "command": [script],
        "environment": [{"name": "GREETING", "value": "hello"}],
        "mountPoints": [{"sourceVolume": "data", "containerPath": "/data"}],
        **changes,
    }
    ecs.register_task_definition(
        family=family,
        networkMode="awsvpc",
        requiresCompatibilities=[launch_type],
        cpu="256",
        memory="512",
        volumes=[{"name": "data"}],
        containerDefinitions=[container],
    )
    answer = ecs.run_task(taskDefinition=family, launchType=launch_type, enableExecuteCommand=True)
    arn: str = answer["tasks"][0]["taskArn"]
    platform.until("STOPPED", arn)
    return arn


LEAVE = "busybox chmod 777 /work; busybox echo evidence > /tmp/left; busybox echo shared > /data/left; exit 1"


@pytest.fixture(scope="module")
def task(platform: Platform) -> str:
    return _stopped(platform, "fails", LEAVE, user="0")


def _sh(platform: Platform, task: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return platform.hutch("exec", *options, task, "--", "sh", "-c", script, check=False)


def test_what_a_dead_task_has_left(platform: Platform, task: str) -> None:
    """With a shell, though its image has none; as the task saw it, without its command and without a network."""
    seen = _sh(platform, task, "cat /tmp/left /data/left; echo $GREETING $COLOUR; pwd; id -u; exit 5")
    assert (seen.returncode, seen.stdout) == (5, "evidence\nshared\nhello green\n/work\n0\n"), seen.stderr
    room = _sh(platform, task, "ls /sys/class/net; ps | grep -c evidenc[e]; echo $PATH")
    assert room.stdout == "lo\n0\n/app:/.hutch/toolbox\n", room.stderr
    assert _sh(platform, task, "id -u; id -g", "-u", "app").stdout == "1000\n1000\n"
    assert "kept until" in platform.hutch("why", task.rpartition("/")[2]).stdout


def test_what_a_container_on_the_shared_kernel_has_left(platform: Platform) -> None:
    container = _stopped(platform, "fails-ec2", LEAVE, "EC2", user="0")
    for _ in range(2):
        seen = _sh(platform, container, "cat /tmp/left /data/left; echo $GREETING; rm -r /tmp /data/left")
        assert seen.stdout == "evidence\nshared\nhello\n", seen.stderr
    room = _sh(platform, container, "ls /sys/class/net; ps | grep -c evidenc[e]; echo $PATH")
    assert room.stdout == "lo\n0\n/app:/.hutch/toolbox\n", room.stderr
    platform.hutch("disk", "rm", container.rpartition("/")[2])


def test_it_stays_as_it_is_and_nobody_stays_behind(platform: Platform, task: str) -> None:
    terminal = Terminal([str(BIN / "hutch"), "exec", "-it", task, "--", "sh"], platform.environment)
    try:
        terminal.until(b"# ")
        terminal.type(b"rm /tmp/left; touch /tmp/mine; echo do''ne\n")
        terminal.until(b"done")
        # Who comes meanwhile is in the same room.
        assert _sh(platform, task, "ls /tmp").stdout == "mine\n"
        terminal.type(b"exit\n")
        assert terminal.exit_code() == 0
    finally:
        terminal.close()
    assert _sh(platform, task, "ls /tmp").stdout == "left\n"
    for left in platform.pids("-look"):
        wait_for_end(left)


def test_execute_command(platform: Platform, task: str) -> None:
    session = platform.client("ecs").execute_command(task=task, interactive=True, command="cat /tmp/left")
    client = SsmClient(session["session"])
    client.shake_hands(rows=40, cols=120)
    assert b"evidence" in client.read_to_end()


def test_a_host_agent_that_is_killed_leaves_nobody_behind(platform: Platform, task: str) -> None:
    argv = [str(BIN / "hutch"), "exec", "-i", task, "--", "cat"]
    process = subprocess.Popen(argv, env=platform.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdin is not None
        process.stdin.write(b"ready\n")
        process.stdin.flush()
        assert next_line(process) == b"ready\n"
        (left,) = platform.pids("-look")
        (agent,) = platform.pids("hutch.apps.host")
        os.kill(agent, signal.SIGKILL)
        assert process.wait(LIMIT_S) != 0
    finally:
        process.kill()
        process.communicate()
    wait_for_end(left)
    # Nobody tells when the next agent has found the disk.
    look_until(lambda: _sh(platform, task, "cat /tmp/left").stdout == "evidence\n")


def test_the_oldest_makes_room(platform: Platform, task: str) -> None:
    fill = f"busybox dd if=/dev/urandom of=/tmp/fill bs=1M count={KEPT_MIB // 2}; exit 1"
    first = _stopped(platform, "fills", fill, user="0")
    second = _stopped(platform, "fills", fill, user="0")
    seen = _sh(platform, second, "cat /tmp/fill | wc -c")
    assert seen.stdout == f"{KEPT_MIB // 2 * 2**20}\n", seen.stderr
    for gone in (task, first):
        refused = _sh(platform, gone, "true")
        assert refused.returncode == 1 and "made room for the disks of other" in refused.stderr
    listed = platform.hutch("disk", "ls").stdout
    assert second.rpartition("/")[2][:12] in listed and first.rpartition("/")[2][:12] not in listed
    platform.hutch("disk", "rm", second.rpartition("/")[2])
    with pytest.raises(ClientError, match=r"not running.*removed on request") as caught:
        platform.client("ecs").execute_command(task=second, interactive=True, command="true")
    assert caught.value.response["Error"]["Code"] == "InvalidParameterException"
