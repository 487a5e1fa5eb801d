"""What differs between the OCI runtimes, as far as it is decided without them."""

from pathlib import Path

import pytest
from tests.support.fleet_control import make_container, make_task

from hutch.host.drivers.container import runtime as runtimes
from hutch.host.drivers.container.ending import exit_status
from hutch.host.drivers.container.further import descendants
from hutch.host.drivers.container.plan import check_gvisor
from hutch.host.drivers.contract import Attachment, DriverError, SandboxSpec
from hutch.wire.taskspec import DeviceSpec, TaskSpec

TABLE = """UID       PID       PPID      PGID      C         TTY       STIME     TIME      CMD
0         1         0         1         0         ?         15:04     0s        init
0         7         0         7         0         ?         15:04     0s        sh
0         8         7         7         0         ?         15:04     0s        sleep
0         9         1         7         0         ?         15:04     0s        orphan of the group
0         10        8         10        0         ?         15:04     0s        group of its own
0         11        1         11        0         ?         15:04     0s        a stranger
0         x         7
"""


def test_a_process_is_ended_with_its_group_and_all_that_came_of_it() -> None:
    assert descendants(TABLE, 7) == (7, 8, 9, 10)
    assert descendants(TABLE, 11) == (11,)
    assert descendants(TABLE, 99) == descendants("", 7) == descendants("PID CMD\n7 sh", 7) == ()


NETWORK = Attachment(netns_path="/run/netns/x")


def _spec(attachment: Attachment, task: TaskSpec) -> SandboxSpec:
    return SandboxSpec(task=task, directory="/nowhere", images={}, attachment=attachment)


@pytest.mark.parametrize(
    ("attachment", "task", "word"),
    [
        (NETWORK, make_task("t", pid_mode="task"), "pidMode"),
        (NETWORK, make_task("t", ipc_mode="host"), "ipcMode"),
        (Attachment(host_network=True), make_task("t"), "network mode host"),
        (NETWORK, make_task("t", make_container("a"), make_container("b")), "several containers"),
        (
            NETWORK,
            make_task(
                "t", make_container(devices=(DeviceSpec(host_path="/dev/x", container_path="/dev/x"),))
            ),
            "devices",
        ),
    ],
)
def test_gvisor_refuses_what_it_would_not_do(attachment: Attachment, task: TaskSpec, word: str) -> None:
    with pytest.raises(DriverError, match=word) as caught:
        check_gvisor(_spec(attachment, task))
    assert caught.value.kind == "NotUnderGvisor" and "FARGATE" in caught.value.fix


def test_gvisor_takes_the_rest() -> None:
    check_gvisor(_spec(NETWORK, make_task("t", ipc_mode="none")))
    apart = make_task("t", make_container("a"), make_container("b", disable_network=True))
    check_gvisor(_spec(NETWORK, apart))
    check_gvisor(_spec(Attachment(), make_task("t", make_container("a"), make_container("b"))))


def test_the_sandbox_that_the_oom_killer_took_is_called_by_its_containers_name() -> None:
    record = "Memory cgroup out of memory: Killed process 7 (exe) total-vm:1kB, anon-rss:2048kB, file-rss:0kB"
    status = exit_status(137, 1, record, "web")
    assert (status.oom_process, status.oom_rss_bytes) == ("web", 2 * 1024 * 1024)
    assert exit_status(137, 1, record.replace("exe", "java"), "web").oom_process == "java"


async def test_a_gvisor_that_is_too_old_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "runsc"
    program.write_text("#!/bin/sh\necho 'flag provided but not defined: -overlay2' >&2; exit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(runtimes, "CLEAN_ENVIRONMENT", {"PATH": str(tmp_path)})
    with pytest.raises(DriverError) as caught:
        await runtimes.find_runtime("runsc", 2)
    assert caught.value.kind == "RuntimeTooOld" and "-overlay2" in caught.value.message
