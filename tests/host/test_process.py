"""Other processes, as the host sees them."""

import os
import subprocess
import sys

from tests.support.looking import look_until_async

from hutch.host.kernel.process import is_alive, kill_and_wait, process_ref

ENDING = """
import ctypes, platform, sys, threading
threading.Thread(target=lambda: (print("there", flush=True), sys.stdin.read())).start()
ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[platform.machine()], 0)  # the first thread alone
"""


async def test_a_process_is_alive_as_long_as_a_thread_of_it_is_because_it_holds_its_files() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", ENDING], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == b"there\n"
        # The kernel does not tell of a thread's end.
        await look_until_async(lambda: b"(zombie)" in _status(child.pid))
        ref = process_ref(child.pid)
        assert ref is not None and is_alive(ref)
        await kill_and_wait(ref)
        assert process_ref(child.pid) is None
        # Nothing has its end of the pipe open any more.
        assert child.stdout.read() == b""


async def test_a_process_that_has_ended_is_gone_though_nobody_has_reaped_it() -> None:
    with subprocess.Popen(["true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert process_ref(child.pid) is None


def _status(pid: int) -> bytes:
    with open(f"/proc/{pid}/status", "rb") as f:
        return f.read()
