"""System calls that no VM monitor needs, refused by the kernel: a seccomp program, as bytes. Pure.

QEMU has a filter of its own, which it puts in place when it has parsed its command line; this one is there from before
its first instruction, and whatever its options are. What is refused: ways to a bigger kernel surface (user namespaces,
BPF, io_uring, keys, foreign sockets), ways to other processes, and what only root may do anyway.
"""

import errno
import struct
from collections.abc import Collection, Mapping

import msgspec

REFUSED: Mapping[str, tuple[int, int]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
"""Numbers on x86-64 and on aarch64."""

NEW_NAMESPACES = 0x7E02_0000
"""Flags of clone(2): mount, cgroup, UTS, IPC, user, PID and network namespaces."""
OTHER_NUMBERS = 0x4000_0000
"""x86-64 has a second set of numbers for the same calls (x32)."""
AF_UNIX = 1
ALLOW, KILL = 0x7FFF_0000, 0x8000_0000


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """How the kernel names an architecture (AUDIT_ARCH_*), and its numbers of the calls that are looked at closely."""

    column: int
    audit: int
    clone: int
    clone3: int
    socket: int


ARCHITECTURES: Mapping[str, Architecture] = {
    "x86_64": Architecture(column=0, audit=0xC000_003E, clone=56, clone3=435, socket=41),
    "aarch64": Architecture(column=1, audit=0xC000_00B7, clone=220, clone3=435, socket=198),
}

# Offsets in `struct seccomp_data`; arguments are read by their lower half (both architectures are little-endian).
_NUMBER, _ARCH, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def monitor_filter(machine: str, allowed: Collection[str] = ()) -> bytes:
    """The filter for a machine as `os.uname` names it, without the calls that are `allowed`; of unshare(2) only what makes
    no namespaces can be. Raises `ValueError` for a machine that it is not known for.

    The number of the call is in the accumulator, except between a test of it and the end of its case.
    """
    if machine not in ARCHITECTURES:
        raise ValueError(f"there is no system call filter for {machine}, only for {', '.join(ARCHITECTURES)}")
    known = ARCHITECTURES[machine]
    steps = [
        _step(_LOAD, _ARCH),
        struct.pack("=HBBI", _EQUAL, 1, 0, known.audit),
        _step(_RETURN, KILL),
        _step(_LOAD, _NUMBER),
        _test(_AT_LEAST, OTHER_NUMBERS, 1),
        _step(_RETURN, _refuse(errno.ENOSYS)),
        # The C library falls back to clone, whose flags can be seen.
        _test(_EQUAL, known.clone3, 1),
        _step(_RETURN, _refuse(errno.ENOSYS)),
        _test(_EQUAL, known.clone, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _test(_ANY_BIT, NEW_NAMESPACES, 1),
        _step(_RETURN, _refuse(errno.EPERM)),
        _step(_RETURN, ALLOW),
        # Sockets are given, not made; unix ones lead nowhere in there.
        _test(_EQUAL, known.socket, 4),
        _step(_LOAD, _FIRST_ARGUMENT),
        _test(_EQUAL, AF_UNIX, 1),
        _step(_RETURN, ALLOW),
        _step(_RETURN, _refuse(errno.EAFNOSUPPORT)),
    ]
    if "unshare" in allowed:
        number = REFUSED["unshare"][known.column]
        steps += [
            _test(_EQUAL, number, 4),
            _step(_LOAD, _FIRST_ARGUMENT),
            _test(_ANY_BIT, NEW_NAMESPACES, 1),
            _step(_RETURN, _refuse(errno.EPERM)),
            _step(_RETURN, ALLOW),
        ]
    for numbers in (n for name, n in REFUSED.items() if name not in allowed):
        steps += [_test(_EQUAL, numbers[known.column], 1), _step(_RETURN, _refuse(errno.EPERM))]
    return b"".join([*steps, _step(_RETURN, ALLOW)])


def _step(code: int, value: int) -> bytes:
    return _test(code, value, 0)


def _test(code: int, value: int, over: int) -> bytes:
    """A test that goes on with the next instruction if it is true, and jumps over `over` of them if not."""
    return struct.pack("=HBBI", code, 0, over, value)


def _refuse(number: int) -> int:
    return 0x0005_0000 | number
