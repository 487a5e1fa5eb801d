"""`aws ecs execute-command` with AWS's own session-manager-plugin, on a terminal. `tools/build-session-manager-plugin`
builds the plugin from a clone of AWS's repository."""

from collections.abc import Iterator

import pytest
from tests.conftest import REPO
from tests.e2e.test_exec import running_task
from tests.support.platform import BIN, Platform
from tests.support.terminal import Terminal

pytestmark = pytest.mark.needs("session_manager_plugin")


@pytest.fixture(scope="module")
def task(fake_platform: Platform) -> str:
    return running_task(fake_platform)


@pytest.fixture
def execute(fake_platform: Platform, task: str) -> Iterator[type]:
    opened: list[Terminal] = []

    def start(command: str) -> Terminal:
        environment = fake_platform.aws_environment()
        environment["PATH"] = f"{REPO / 'build' / 'plugin'}:{environment['PATH']}"
        argv = [
            str(BIN / "aws"),
            "ecs",
            "execute-command",
            "--task",
            task,
            "--interactive",
            "--command",
            command,
        ]
        opened.append(Terminal(argv, {**environment, "TERM": "xterm"}))
        return opened[-1]

    yield start  # type: ignore[misc]
    for terminal in opened:
        terminal.close()


def test_input_output_and_control_c(execute: type) -> None:
    terminal = execute("cat ready")
    terminal.until(b"Starting session with SessionId: ecs-execute-command-")
    terminal.until(b"ready")
    terminal.type(b"hello there\n")
    terminal.until(b"hello there")
    terminal.type(b"\x03")
    terminal.until(b"^C")
    terminal.until(b"The command ended with exit code 130.")
    assert terminal.exit_code() == 0


def test_the_size_of_the_terminal(execute: type) -> None:
    terminal = execute("size")
    terminal.until(b"30 100")
    terminal.resize(41, 77)
    terminal.until(b"41 77")


def test_long_output_arrives_whole(execute: type) -> None:
    terminal = execute("flood 300000")
    assert terminal.exit_code() == 0
    assert terminal.seen.count(b"x") >= 300_000
    assert b"Exiting session with sessionId" in terminal.seen
