"""How a jailed child comes to be, and what is left of it when its starter, or bubblewrap, ends in the middle."""

import asyncio
import ctypes
import os
import resource
import secrets
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import REPO

from hutch.host.kernel import bubblewrap
from hutch.host.kernel.bubblewrap import NotMade, held_child
from hutch.host.kernel.process import (
    ProcessRef,
    find_processes,
    is_alive,
    kill_and_wait,
    limit_process,
    process_ref,
    wait_gone,
)
from hutch.host.kernel.syscall_filter import monitor_filter

pytestmark = pytest.mark.needs("root", "qemu")
OPTIONS = ("--unshare-pid", "--as-pid-1", "--ro-bind", "/", "/")
FILTER = monitor_filter(os.uname().machine)
STARTER = """
import os, sys
from hutch.host.kernel.bubblewrap import held_child
from hutch.host.kernel.syscall_filter import monitor_filter
stage, output, *words = sys.argv[1:]
options, command = words[:words.index("--")], words[words.index("--") + 1:]
with held_child(options, command, output_path=output, pass_fds=()) as child:
    print(child.pid, flush=True)
    if stage != "begun":
        child.adopt()
    if stage == "released":
        child.release(monitor_filter(os.uname().machine))
    os.kill(os.getpid(), 9)
"""


def child_of_killed_starter(stage: str, output: Path, name: str) -> ProcessRef | None:
    """A child whose starter was killed at that stage; None if it has ended already."""
    command = ["/usr/bin/python3", "-c", "import signal; signal.pause()", name]
    argv = [sys.executable, "-c", STARTER, stage, str(output), *OPTIONS, "--", *command]
    done = subprocess.run(argv, stdout=subprocess.PIPE, env={"PYTHONPATH": str(REPO / "src")})
    assert done.returncode == -signal.SIGKILL
    return process_ref(int(done.stdout))


@pytest.mark.parametrize("stage", ["begun", "adopted"])
async def test_what_was_held_ends_with_its_starter(tmp_path: Path, stage: str) -> None:
    name = f"jail-{secrets.token_hex(4)}"
    child_of_killed_starter(stage, tmp_path / "out", name)
    async with asyncio.timeout(20):
        for ref in find_processes(name):
            await wait_gone(ref)
    assert find_processes(name) == ()


async def test_what_runs_outlives_its_starter_and_nothing_waits_for_it(tmp_path: Path) -> None:
    name = f"jail-{secrets.token_hex(4)}"
    ref = child_of_killed_starter("released", tmp_path / "out", name)
    assert ref is not None and is_alive(ref)
    try:
        assert find_processes(name) == (ref,), "no process of bubblewrap's stays"
    finally:
        await kill_and_wait(ref)


async def test_many_at_once_are_all_our_own_children(tmp_path: Path) -> None:
    def start(number: int) -> ProcessRef:
        command = ["/bin/sh", "-c", f"exit {number}"]
        with held_child(OPTIONS, command, output_path=str(tmp_path / f"{number}"), pass_fds=()) as child:
            ref = child.adopt()
            child.release(FILTER)
        return ref

    refs = await asyncio.gather(*(asyncio.to_thread(start, number) for number in range(12)))
    assert [await wait_gone(ref) for ref in refs] == list(range(12))
    flag = ctypes.c_int(1)
    assert ctypes.CDLL(None).prctl(37, ctypes.byref(flag), 0, 0, 0) == 0
    assert flag.value == 0, "who else detaches itself is not ours to reap"


def test_limits_are_set_from_outside_and_never_raised(tmp_path: Path) -> None:
    held = held_child(OPTIONS, ["/bin/true"], output_path=str(tmp_path / "out"), pass_fds=())
    with pytest.raises(ZeroDivisionError), held as child:
        child.adopt()
        limit_process(child.pid, {"nofile": 256, "fsize": 1 << 20})
        limit_process(child.pid, {"nofile": 1 << 20})
        assert resource.prlimit(child.pid, resource.RLIMIT_NOFILE) == (256, 256)
        assert resource.prlimit(child.pid, resource.RLIMIT_FSIZE) == (1 << 20, 1 << 20)
        child.pid // 0


def test_a_failure_within_leaves_no_child(tmp_path: Path) -> None:
    name = f"jail-{secrets.token_hex(4)}"
    held = held_child(OPTIONS, ["/bin/sleep", "600", name], output_path=str(tmp_path / "out"), pass_fds=())
    with pytest.raises(ZeroDivisionError), held as child:
        assert find_processes(name) != ()
        child.pid // 0
    assert find_processes(name) == ()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--no-such-option",), "Unknown option --no-such-option"),
        ((*OPTIONS, "--ro-bind", "/no/such/file", "/x"), "/no/such/file: No such file"),
    ],
)
def test_bubblewrap_says_what_it_can_not_do(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    (tmp_path / "out").write_text("what was said earlier\n")
    held = held_child(options, ["/bin/true"], output_path=str(tmp_path / "out"), pass_fds=())
    with pytest.raises(NotMade, match=f"^bwrap: .*{words}"), held as child:
        child.adopt()


def test_a_host_without_bubblewrap_is_told_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bubblewrap, "PROGRAM", "bwrap-is-not-here")
    held = held_child(OPTIONS, ["/bin/true"], output_path=str(tmp_path / "out"), pass_fds=())
    with pytest.raises(NotMade, match="install bubblewrap"), held:
        pass
