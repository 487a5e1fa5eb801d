"""The host agent's real process, killed with SIGKILL at any moment: no task is lost, run twice, or left behind."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.fleet_control import ControlEnd, make_container, make_task


class AgentProcess:
    """`python -m hutch.apps.host` with the fake driver, and the control plane's end of its socket."""

    def __init__(self, directory: Path) -> None:
        self.data = directory / "data"
        (directory / "run").mkdir()
        self.control = ControlEnd(directory / "run" / "fleet.sock")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HUTCH_DATA_DIR": str(self.data),
            "HUTCH_RUN_DIR": str(directory / "run"),
            "HUTCH_DRIVERS": "fake",
            "HUTCH_LOG_LEVEL": "WARNING",
        }
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it has said hello."""
        hellos = len(self.control.hellos)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "hutch.apps.host", env=self._environment
        )
        await self.control.until(lambda: len(self.control.hellos) > hellos)

    async def end(self, signum: int) -> int:
        """Send it a signal; its exit code."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signum)
        return await self._process.wait()


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[AgentProcess]:
    made = AgentProcess(tmp_path)
    await made.control.listen()
    yield made
    await made.end(signal.SIGKILL)
    await made.control.close()


@pytest.mark.parametrize("kill_at", ["ACTIVATING", "RUNNING", "STOPPING"])
async def test_killed_while_a_task_is(agent: AgentProcess, kill_at: str) -> None:
    control, task_id = agent.control, "a" * 32
    await agent.start()
    control.assign(make_task(task_id, make_container(BOOT_MS=300, STOP_MS=300)))
    if kill_at == "STOPPING":
        await control.until_status(task_id, "RUNNING")
        control.stop(task_id)
    await control.until_status(task_id, kill_at)
    await agent.end(signal.SIGKILL)
    before = control.facts.pop(task_id)
    await agent.start()
    if kill_at != "STOPPING":
        after = await control.until_status(task_id, "RUNNING")
        if kill_at == "RUNNING":
            assert after.containers[0].runtime_id == before.containers[0].runtime_id
        control.stop(task_id)
    stopped = await control.until_status(task_id, "STOPPED")
    assert stopped.stop_code == "UserInitiated" and stopped.containers[0].exit_code == 143
    assert not (agent.data / "host" / "tasks" / task_id / "fake.json").exists()


async def test_killed_again_and_again_under_load(agent: AgentProcess) -> None:
    control = agent.control
    await agent.start()
    ids = [f"{n:032x}" for n in range(40)]
    for round_, task_id in enumerate(ids):
        control.assign(make_task(task_id, make_container(RUN_MS=200, EXIT=round_ % 5)))
        if round_ % 8 == 7:
            await control.until_status(ids[round_ - 7], "RUNNING")
            await agent.end(signal.SIGKILL)
            await agent.start()
    for number, task_id in enumerate(ids):
        facts = await control.until_status(task_id, "STOPPED")
        assert facts.containers[0].exit_code == number % 5, "an exit was lost"
        assert facts.stop_code == "EssentialContainerExited"


async def test_sigterm_leaves_the_tasks_and_sigint_ends_them(agent: AgentProcess) -> None:
    control, task_id = agent.control, "b" * 32
    await agent.start()
    control.assign(make_task(task_id))
    await control.until_status(task_id, "RUNNING")
    assert await agent.end(signal.SIGTERM) == 0
    file = agent.data / "host" / "tasks" / task_id / "fake.json"
    assert file.exists()
    await agent.start()
    assert await agent.end(signal.SIGINT) == 0
    assert control.facts[task_id].status == "STOPPED" and not file.exists()
