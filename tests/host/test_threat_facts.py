"""What a real guest tells of its processes when it is asked to watch them, and that no container can keep it from that."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from msgspec.structs import replace
from tests.support.busybox_image import make_busybox_image
from tests.support.microvm_bench import Bench, container

from hutch.host.drivers.contract import ContainerExited, ProcessFacts, SandboxSpec, WatchSpec
from hutch.wire.guest_facts import RuntimeFact

pytestmark = pytest.mark.needs("root", "qemu", "guest_image")
TIMEOUT_S = 60
WATCH = WatchSpec(sources=("exec", "connect", "open", "setuid", "chmod"), directories=("/usr/bin", "/etc"))

SILENCER = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <linux/audit.h>
#include <linux/netlink.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>
#include <fcntl.h>
/* Another program, in memory, under the name of the container runtime. */
static int hide(void) {
    int m = memfd_create("runtime", 0), b = open("/bin/busybox", O_RDONLY);
    while (sendfile(m, b, 0, 1 << 20) > 0) {}
    char *a[] = {"busybox", "sh", "-c", "echo > /usr/bin/hidden; (echo > /usr/bin/deeper); true", 0}, *e[] = {0};
    return fexecve(m, a, e);
}
/* What a container could try: turn the kernel's audit off, take its place, become another container. */
int main(int n_arguments, char **arguments) {
    if (n_arguments > 1) return hide();
    struct { struct nlmsghdr h; struct audit_status s; } m = {0};
    m.h.nlmsg_len = sizeof m; m.h.nlmsg_type = AUDIT_SET; m.h.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
    m.s.mask = AUDIT_STATUS_ENABLED | AUDIT_STATUS_PID; m.s.enabled = 0; m.s.pid = 0;
    int s = socket(AF_NETLINK, SOCK_RAW, NETLINK_AUDIT);
    char answer[512] = {0};
    send(s, &m, sizeof m, 0);
    int n = recv(s, answer, sizeof answer, 0);
    printf("audit off: %d\n", n > 0 ? ((struct nlmsgerr *)NLMSG_DATA(answer))->error : -errno);
    m.h.nlmsg_type = AUDIT_FIRST_USER_MSG + 5; m.h.nlmsg_flags = NLM_F_REQUEST;
    for (int i = 0; i < 20000; i++) send(s, &m, sizeof m, MSG_DONTWAIT);
    int f = open("/proc/self/loginuid", O_WRONLY);
    printf("login: %d\n", write(f, "5", 1) < 0 ? -errno : 0);
    return 0;
}
"""


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    (tmp_path / "silence.c").write_text(SILENCER)
    silencer = tmp_path / "silence"
    subprocess.run(["cc", "-static", "-o", silencer, tmp_path / "silence.c"], check=True)
    bench = Bench(tmp_path, image=make_busybox_image(tmp_path, files=[silencer]))
    bench.silencer = str(silencer)  # type: ignore[attr-defined]
    try:
        yield bench
    finally:
        await bench.end()


async def told(bench: Bench, spec: SandboxSpec) -> tuple[list[RuntimeFact], int]:
    """All facts of a task whose only container runs to its end, and how many were dropped."""
    handle = await bench.create(spec)
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, spec.task.containers[0])
    facts: list[RuntimeFact] = []
    dropped = 0
    async with asyncio.timeout(TIMEOUT_S):
        async for event in events:
            if isinstance(event, ProcessFacts):
                facts += event.facts
                dropped = event.dropped
            if isinstance(event, ContainerExited):
                break
    return facts, dropped


async def test_what_processes_do_is_told_with_whose_they_are(bench: Bench) -> None:
    script = """
        sh -c 'exit 0'
        cp /bin/busybox /tmp/tool; chmod 4755 /tmp/tool
        echo x > /usr/bin/evil; cd /usr/bin; mv evil worse; echo x > /tmp/harmless
        su app -c '/tmp/tool id'
        nc -w 1 127.0.0.1 3333
        exec sleep 1
    """
    one = container("one", script)
    facts, dropped = await told(bench, replace(bench.spec(one), watch=WATCH))
    assert dropped == 0 and {f.container for f in facts} == {"one"}
    first = facts[0]
    assert (first.kind, first.name, first.ancestors) == ("exec", "sh", ()), (
        "the runtime's own doing is not told"
    )
    shell = next(f for f in facts if f.command_line == "sh -c exit 0")
    assert (shell.name, shell.ancestors, shell.uid, shell.by_exec) == ("sh", ("sh",), 0, False)
    (chmod,) = [f for f in facts if f.kind == "chmod"]
    assert (chmod.path, chmod.mode) == ("/tmp/tool", 0o4755)
    written = [(f.syscall, f.path) for f in facts if f.kind == "open" and f.path.startswith("/usr")]
    assert written == [("openat", "/usr/bin/evil"), ("rename", "/usr/bin/worse")]
    assert not any("harmless" in f.path for f in facts)
    tool = next(f for f in facts if f.exe == "/tmp/tool")
    assert tool.is_new_file and tool.gained_root and (tool.uid, tool.euid) == (1000, 0)
    assert not shell.is_new_file and not shell.gained_root
    (connect,) = [f for f in facts if f.kind == "connect"]
    assert (connect.address, connect.port, connect.name) == ("127.0.0.1", 3333, "nc")


@pytest.mark.parametrize("privileged", [False, True])
async def test_no_container_can_silence_it(bench: Bench, privileged: bool) -> None:
    tool = bench.silencer  # type: ignore[attr-defined]
    script = f"{tool}; {tool} hide; mount -o remount,ro /usr 2>/dev/null; mount -t tmpfs x /tmp; sh -c 'exit 5'; exec sleep 1"
    one = container("one", script, privileged=privileged)
    facts, dropped = await told(bench, replace(bench.spec(one), watch=WATCH))
    assert bench.log_text("one").splitlines()[:2] == ["audit off: -1", "login: -1"]
    assert any(f.command_line == "sh -c exit 5" for f in facts), "what comes after is still told"
    hidden = {f.path for f in facts if f.kind == "open" and f.is_memory_file}
    assert hidden == {"/usr/bin/hidden", "/usr/bin/deeper"}, "also under the runtime's name"
    assert dropped == 0


async def test_a_flood_is_cut_short_and_counted_and_hides_nothing_else(bench: Bench) -> None:
    script = """
        i=0; while test $i -lt 3000; do echo > /usr/bin/f; i=$((i+1)); done
        sh -c 'exit 6'; exec sleep 2
    """
    one = container("one", script)
    facts, dropped = await told(bench, replace(bench.spec(one), watch=WATCH))
    writes = [f for f in facts if f.kind == "open"]
    assert 400 <= len(writes) < 3000 and dropped >= 3000 - len(writes)
    assert any(f.command_line == "sh -c exit 6" for f in facts)


async def test_a_program_that_takes_a_whole_cpu_is_told(bench: Bench) -> None:
    one = container("one", "cp /bin/busybox /tmp/busybox; /tmp/busybox yes >/dev/null")
    handle = await bench.create(replace(bench.spec(one), watch=WatchSpec(sources=("load",), load_s=6)))
    events = bench.driver.events(handle)
    await bench.driver.start_container(handle, one)
    async with asyncio.timeout(TIMEOUT_S):
        event = await anext(events)
    assert isinstance(event, ProcessFacts)
    (load,) = event.facts
    assert (load.kind, load.exe, load.is_new_file) == ("load", "/tmp/busybox", True)
    assert load.cpu_percent >= 90 and load.cpu_s >= 5


async def test_a_container_that_starts_again_is_watched_again(bench: Bench) -> None:
    one = container("one", "echo x > /usr/bin/evil; sleep 0.3")
    spec = replace(bench.spec(one), watch=WATCH)
    handle = await bench.create(spec)
    events = bench.driver.events(handle)
    seen: set[int] = set()
    async with asyncio.timeout(TIMEOUT_S):
        for _ in range(3):
            await bench.driver.start_container(handle, one)
            async for event in events:
                if isinstance(event, ProcessFacts):
                    seen |= {f.number for f in event.facts if f.path == "/usr/bin/evil"}
                if isinstance(event, ContainerExited):
                    break
    assert len(seen) == 3


async def test_nothing_of_it_is_there_when_it_is_not_asked_for(bench: Bench) -> None:
    one = container("one", "cat /proc/self/loginuid; echo; echo x > /usr/bin/evil; sleep 0.2")
    assert await told(bench, bench.spec(one)) == ([], 0)
    assert bench.log_text("one").splitlines()[0] == str(2**32 - 1)
