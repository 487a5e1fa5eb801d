"""The filter of system calls, run as the kernel would run it, and its numbers against the kernel's own headers."""

import errno
import hashlib
import platform
import re
import struct
from pathlib import Path

import pytest

from hutch.host.kernel.syscall_filter import (
    ALLOW,
    ARCHITECTURES,
    KILL,
    NEW_NAMESPACES,
    OTHER_NUMBERS,
    REFUSED,
    monitor_filter,
)

LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
GOLDEN = {"x86_64": "d9b3b38157cd56a1", "aarch64": "e0cba5b0897a828d"}
"""Of the programs that were run against a kernel. What changes them is a decision, not an accident."""


def refuse(number: int) -> int:
    return 0x0005_0000 | number


def answer(machine: str, number: int, first: int = 0, *, audit: int | None = None) -> int:
    """What the kernel does with a call."""
    program = list(struct.iter_unpack("=HBBI", monitor_filter(machine)))
    data = {0: number, 4: ARCHITECTURES[machine].audit if audit is None else audit, 16: first}
    accumulator = at = 0
    while True:
        code, if_true, if_false, value = program[at]
        at += 1
        if code == RETURN:
            return int(value)
        if code == LOAD:
            accumulator = data[value]
            continue
        holds = {
            EQUAL: accumulator == value,
            AT_LEAST: accumulator >= value,
            ANY_BIT: bool(accumulator & value),
        }
        at += if_true if holds[code] else if_false


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_a_monitor_can_work(machine: str) -> None:
    known = ARCHITECTURES[machine]
    everyday = {"x86_64": (0, 1, 9, 16, 59, 157, 202), "aarch64": (29, 63, 64, 98, 167, 221, 222)}[machine]
    for number in everyday:
        assert answer(machine, number) == ALLOW
    thread = 0x0000_0F00  # CLONE_VM, FS, FILES, SIGHAND
    assert answer(machine, known.clone, thread) == ALLOW
    assert answer(machine, known.socket, 1) == ALLOW


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_the_rest_is_refused(machine: str) -> None:
    known = ARCHITECTURES[machine]
    for name, numbers in REFUSED.items():
        assert answer(machine, numbers[known.column]) == refuse(errno.EPERM), name
    for family in (0, 2, 16, 17, 40):
        assert answer(machine, known.socket, family) == refuse(errno.EAFNOSUPPORT)
    flags = [1 << bit for bit in range(32) if NEW_NAMESPACES >> bit & 1]
    assert len(flags) == 7
    for flag in flags:
        assert answer(machine, known.clone, flag) == refuse(errno.EPERM)
    assert answer(machine, known.clone3) == refuse(errno.ENOSYS)
    assert answer(machine, OTHER_NUMBERS | 1) == refuse(errno.ENOSYS)
    assert answer(machine, 1, audit=0x4000_0003) == KILL, "32-bit calls have other numbers"


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_the_program_is_the_one_that_was_tried(machine: str) -> None:
    assert hashlib.sha256(monitor_filter(machine)).hexdigest()[:16] == GOLDEN[machine]


@pytest.mark.parametrize("machine", sorted(ARCHITECTURES))
def test_numbers_are_the_kernel_s(machine: str) -> None:
    header = HEADERS[machine]
    if not header.exists():
        pytest.skip(f"no {header} on {platform.machine()}")
    found = re.findall(r"^#define __NR_(\w+)\s+(\d+)\b", header.read_text(), re.MULTILINE)
    kernel = {name: int(number) for name, number in found}
    known = ARCHITECTURES[machine]
    ours = {name: numbers[known.column] for name, numbers in REFUSED.items()}
    ours |= {"clone": known.clone, "clone3": known.clone3, "socket": known.socket}
    assert ours == {name: kernel[name] for name in ours}


def test_another_machine_is_told() -> None:
    with pytest.raises(ValueError, match="no system call filter for riscv64"):
        monitor_filter("riscv64")
