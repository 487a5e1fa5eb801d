"""Exec into real tasks: a microVM and a shared-kernel container, each with two containers, one on a read-only root."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import pytest
from tests.support.busybox_archive import NAME
from tests.support.looking import LIMIT_S, next_line
from tests.support.platform import BIN, Platform
from tests.support.ssm_client import SsmClient
from tests.support.terminal import Terminal

pytestmark = pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft", "runc")


@pytest.fixture(scope="module")
def platform(vm_platform: Platform) -> Platform:
    return vm_platform


@pytest.fixture(scope="module", params=["FARGATE", "EC2"])
def task(request: pytest.FixtureRequest, platform: Platform) -> Iterator[str]:
    """A running task's ARN. One of its containers is not healthy and never will be."""
    ecs = platform.client("ecs")
    sleeper = {
        "image": NAME,
        "entryPoint": ["/bin/busybox", "sh", "-c"],
        "command": ["trap 'exit 0' TERM; busybox sleep 100000 & wait"],
        "memory": 128,
    }
    family = f"exec-{request.param.lower()}"
    ecs.register_task_definition(
        family=family,
        networkMode="awsvpc",
        requiresCompatibilities=[request.param],
        cpu="256",
        memory="256",
        containerDefinitions=[
            {"name": "frozen", "readonlyRootFilesystem": True, **sleeper},
            {
                "name": "sick",
                "healthCheck": {"command": ["CMD", "/bin/false"], "startPeriod": 300},
                "environment": [{"name": "GREETING", "value": "hello"}],
                **sleeper,
            },
        ],
    )
    answer = ecs.run_task(taskDefinition=family, launchType=request.param, enableExecuteCommand=True)
    arn: str = answer["tasks"][0]["taskArn"]
    platform.until("RUNNING", arn)
    yield arn
    ecs.stop_task(task=arn)
    platform.until("STOPPED", arn)


def _sh(platform: Platform, task: str, script: str, *options: str) -> subprocess.CompletedProcess[str]:
    return platform.hutch("exec", *options, task, "--", "/bin/busybox", "sh", "-c", script, check=False)


def test_every_container_can_be_entered(platform: Platform, task: str) -> None:
    done = _sh(platform, task, "echo $GREETING; pwd; exit 5", "-c", "sick")
    assert (done.returncode, done.stdout) == (5, "hello\n/\n"), done.stderr
    frozen = _sh(platform, task, "echo x > /tmp-file || echo read-only", "-c", "frozen")
    assert frozen.stdout == "read-only\n"
    other = _sh(platform, task, "id -u; id -g", "-c", "sick", "-u", "33:44")
    assert other.stdout == "33\n44\n"


def test_files_come_and_go_through_pipes(platform: Platform, task: str, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    hutch = [str(BIN / "hutch"), "exec"]
    shell = ["-c", "sick", task, "--", "/bin/busybox", "sh", "-c"]
    put = subprocess.run(
        [*hutch, "-i", *shell, "cat > /copy"], env=platform.environment, input=data, timeout=60
    )
    got = subprocess.run(
        [*hutch, *shell, "cat /copy"], env=platform.environment, capture_output=True, timeout=60
    )
    assert put.returncode == 0 and got.stdout == data


def test_a_shell_on_a_terminal(platform: Platform, task: str) -> None:
    argv = [str(BIN / "hutch"), "exec", "-it", "-c", "sick", task, "--", "/bin/busybox", "sh"]
    shell = Terminal(argv, platform.environment, rows=33, cols=99)
    try:
        shell.until(b"# ")
        shell.type(b"busybox stty size; busybox tty\n")
        shell.until(b"33 99")
        shell.until(b"/dev/pts/")
        shell.until(b"# ")
        shell.resize(44, 55)
        shell.type(b"busybox sh -c 'echo be''gun; exec busybox sleep 1000'\n")
        shell.until(b"begun")
        shell.type(b"\x03")
        shell.until(b"# ")
        shell.type(b"busybox stty size\n")
        shell.until(b"44 55")
        shell.type(b"exit 9\n")
        assert shell.exit_code() == 9
    finally:
        shell.close()


def test_the_session_protocol(platform: Platform, task: str) -> None:
    session = platform.client("ecs").execute_command(
        task=task,
        container="frozen",
        interactive=True,
        command="/bin/busybox sh -c 'busybox stty size; exit 3'",
    )["session"]
    client = SsmClient(session)
    client.shake_hands(rows=40, cols=120)
    assert b"40 120" in client.read_to_end()
    assert client.closed_text == "The command ended with exit code 3."


def test_who_hangs_up_leaves_nothing_running(platform: Platform, task: str) -> None:
    """A process has a pipe of its container open for writing. Who reads it there is told by the kernel when it is gone."""
    assert _sh(platform, task, "busybox mkfifo /pipe", "-c", "sick").returncode == 0
    shell = [str(BIN / "hutch"), "exec", "-i", "-c", "sick", task, "--", "/bin/busybox", "sh", "-c"]
    with (
        subprocess.Popen([*shell, "cat /pipe; rm /pipe"], env=platform.environment, stdin=PIPE) as reader,
        subprocess.Popen(
            [*shell, "exec 3>/pipe; echo begun; exec busybox sleep 54321"],
            env=platform.environment,
            stdin=PIPE,
            stdout=PIPE,
        ) as sleeper,
    ):
        try:
            assert next_line(sleeper) == b"begun\n"
            assert reader.poll() is None
            sleeper.kill()
            assert reader.wait(LIMIT_S) == 0
        finally:
            reader.kill()
            sleeper.kill()
    left = _sh(platform, task, "busybox ps | busybox grep -c '[s]leep 54321'", "-c", "sick")
    assert left.stdout == "0\n"
