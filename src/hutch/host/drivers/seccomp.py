"""The system calls that a container on the shared kernel may make: an allow list, `syscalls.json`. Pure but for reading
that file once.

What is on the list follows Docker's default profile: calls that reach only what is the container's own; some more come
with a capability. All else is "not permitted"; of calls that are newer than the list the runtimes say that they do not
exist, so that programs fall back to an older one. Kept short, since a runtime compiles it at each start: 3 ms for each
kind of programs, twice that for a list of refusals, so there is none.
"""

import json
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from typing import Any

_EPERM, _ENOSYS = 1, 38
_NAMESPACE_FLAGS = 0x7E02_0000
"""Of clone(2): new mount, cgroup, UTS, IPC, user, PID and network namespaces."""
_AF_VSOCK = 40
"""Sockets to the hypervisor, which no namespace confines."""
_PERSONALITIES = (0x0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux on 32 and 64 bits, with and without the old uname; and the question which it is."""


def seccomp_profile(capabilities: Collection[str]) -> dict[str, Any]:
    """The `linux.seccomp` object for a container with these capabilities (without "CAP_")."""
    calls = _calls()
    allowed = set(calls["allowed"])
    for capability, names in calls["with_capability"].items():
        if capability in capabilities:
            allowed |= set(names)
    rules: list[dict[str, Any]] = [{"names": sorted(allowed), "action": "SCMP_ACT_ALLOW"}]
    if "clone" not in allowed:
        # Threads and processes, but no namespaces. clone3 hides its flags in memory that no filter can read: it does
        # not exist, and the C library takes clone.
        rules.append(_when("clone", 0, "SCMP_CMP_MASKED_EQ", _NAMESPACE_FLAGS, 0))
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS})
    rules += [_when("personality", 0, "SCMP_CMP_EQ", value) for value in _PERSONALITIES]
    rules.append(_when("socket", 0, "SCMP_CMP_NE", _AF_VSOCK))
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": _EPERM,
        # Programs of 64 and of 32 bits; the third kind, x32, hardly exists.
        "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
        "syscalls": rules,
    }


def _when(name: str, index: int, operator: str, value: int, second: int = 0) -> dict[str, Any]:
    argument = {"index": index, "value": value, "valueTwo": second, "op": operator}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}


@cache
def _calls() -> dict[str, Any]:
    calls: dict[str, Any] = json.loads((files("hutch.host.drivers") / "syscalls.json").read_text())
    return calls
