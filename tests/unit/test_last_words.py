"""What programs say last, and what OCI runtimes say of containers that they can't start."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.host.drivers.start_faults import kind_of, runtime_words, start_fault
from hutch.rules.last_words import MAX_LINE_CHARACTERS, MAX_LINES, fix_from, last_lines
from hutch.wire.taskspec import ContainerSpec, MountSpec

CONTAINER = ContainerSpec(
    name="main", container_id="c", image="i", command=("/run/me", "x"), mounts=(MountSpec(volume="data", path="/d"),)
)  # fmt: skip


@given(st.lists(st.text()))
def test_few_lines_and_none_too_long(lines: list[str]) -> None:
    kept = last_lines(lines)
    assert len(kept) == min(MAX_LINES, len(lines)) and all(len(k) <= MAX_LINE_CHARACTERS for k in kept)
    assert all(line.startswith(k) for line, k in zip(lines[-MAX_LINES:], kept, strict=True))


@pytest.mark.parametrize(
    "lines, fix",
    [
        (["ok"], ""),
        ([], ""),
        (["OSError: [Errno 28] No space left on device", "giving up"], "raise ephemeralStorage"),
        (["exec /app: exec format error"], "the task's architecture"),
        (["./app: error while loading shared libraries: libx.so.1: cannot open"], "a library"),
        (["[emerg] bind() to 0.0.0.0:80 failed (98: Address already in use)"], "one port"),
        (["No space left on device", "Read-only file system"], "mount a volume"),
    ],
)
def test_what_is_plain_has_a_fix(lines: list[str], fix: str) -> None:
    assert fix in fix_from(lines) and bool(fix) == bool(fix_from(lines))


@pytest.mark.parametrize(
    "words, kind, text",
    [
        ("chdir `/w`: No such file or directory", "WorkingDirectoryInvalid", "working directory /w can't be entered"),
        ("mount `/disk/scratch/volumes/data` to `etc/x`: Not a directory", "MountFailed", "mounted at /etc/x: Not a"),
        ("mount `proc` to `proc`: Operation not permitted", "RuntimeError", "mount `proc`"),
        ("something else", "RuntimeError", "something else"),
    ],
)  # fmt: skip
def test_a_runtime_s_words_are_told_in_the_user_s_terms(words: str, kind: str, text: str) -> None:
    found, said, fix = start_fault(CONTAINER, "RuntimeError", words)
    assert found == kind and text in said and fix
    assert "/disk/scratch" not in said


STAGE = "unable to start container process: "
MOUNTING = """error mounting "/var/t/box/volumes/data" to rootfs at "/etc/x": mount /var/t/box/volumes/data:/etc/x \
(via /proc/self/fd/6), flags: 0x5000: not a directory"""


@pytest.mark.parametrize(
    "message, kind, text",
    [
        (
            STAGE + 'exec: "/nope": stat /nope: no such file or directory',
            "ExecNotFound",
            'exec: "/nope": stat',
        ),
        (STAGE + 'exec: "/run/me": permission denied', "ExecNotExecutable", "may not be executed"),
        (
            STAGE + "error during container init: mkdir /x: not a directory",
            "WorkingDirectoryInvalid",
            "directory /x",
        ),
        (STAGE + "error during container init: " + MOUNTING, "MountFailed", "at /etc/x: not a directory"),
    ],
)
def test_runc_s_log_lines_are_read(message: str, kind: str, text: str) -> None:
    escaped = message.replace('"', '\\"')
    words = runtime_words(f'time="2026-01-01T00:00:00Z" level=error msg="runc create failed: {escaped}"\n')
    found, said, fix = start_fault(CONTAINER, kind_of(words), words)
    assert (found, bool(fix)) == (kind, True) and text in said
    assert "level=error" not in said and "/box/" not in said
