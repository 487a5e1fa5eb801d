"""The host's end of the guest channel under a coverage-guided fuzzer, for a bounded time: each run goes on a little."""

import importlib.util
import json
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

FUZZER = Path(__file__).parent / "fuzz_guestlink.py"
SECONDS = 6
CONTAINER = {
    "name": "web",
    "number": 1,
    "status": "exited",
    "exit_code": 137,
    "signal": 9,
    "oom": True,
    "log_seq": 4,
}
DOCUMENTS = (
    {"id": 1, "ok": {}},
    {"id": 2, "error": {"kind": "ExecNotFound", "message": "no such file"}},
    {"id": 3, "ok": {"version": 1, "agent": "0.1", "kernel": "6.1", "boot_ns": 7, "containers": [CONTAINER]}},
    {"id": 4, "ok": {"exit_code": 3, "timed_out": True, "output": "\u00e9"}},
    {"id": 5, "ok": {"memory_used_bytes": 1, "containers": {"web": {"cpu_ns": 1, "pids": 2}}}},
    {"event": "container_exited", "seq": 1, "name": "web", "number": 1, "exit_code": 0, "time_ns": 5},
    {"event": "container_exited", "seq": 2, "name": "web", "number": 1, "exit_code": 0, "oom_rss_bytes": 9},
    {
        "event": "runtime_facts",
        "seq": 1,
        "dropped": 3,
        "facts": [
            {
                "kind": "exec",
                "container": "web",
                "name": "sh",
                "exe": "/bin/sh",
                "ancestors": ["nginx"],
                "pid": 7,
            },
            {"kind": "connect", "container": "web", "address": "192.0.2.1", "port": 3333, "ports": [3333]},
            {"kind": "open", "container": "web", "path": "/usr/bin/x", "syscall": "openat", "mode": 2541},
        ],
    },
    {"event": "agent_error", "seq": 3, "message": "x"},
)


def piece(kind: int, payload: bytes) -> bytes:
    return struct.pack(">HB", len(payload), kind) + payload


def seeds() -> list[bytes]:
    """What an honest guest says, and bytes that are no frames."""
    log = struct.pack(">QQB", 1, 1_700_000_000_000_000_000, 2) + b"a line\nhalf a line"
    told = [piece(0, json.dumps(d).encode()) for d in DOCUMENTS]
    return [*told, b"".join(told), piece(1, log), piece(2, b"\x07payload"), piece(3, b"\x02a\0\x03\0\0\xff")]


@pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None, reason="there is no atheris for this machine"
)
def test_whatever_a_guest_sends_is_taken(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    argv = [sys.executable, str(FUZZER), f"-max_total_time={SECONDS}", "-timeout=5", "-rss_limit_mb=1024"]
    argv += [f"-artifact_prefix={tmp_path}/found-", "-print_final_stats=1", str(corpus)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    found = {p.name: p.read_bytes() for p in tmp_path.glob("found-*")}
    assert done.returncode == 0 and not found, f"{found}\n{done.stderr[-4000:]}"
    runs = re.search(r"stat::number_of_executed_units: (\d+)", done.stderr)
    assert runs and int(runs[1]) > 1000, done.stderr[-1000:]
    grown = len(list(corpus.iterdir()))
    assert grown > len(seeds()), "coverage guides it: inputs that reach new code are kept"
