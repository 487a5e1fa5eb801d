"""The allow list of system calls for containers on the shared kernel."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.host.drivers.oci_config import ALL_CAPABILITIES, DEFAULT_CAPABILITIES
from hutch.host.drivers.seccomp import seccomp_profile

NAMESPACES = 0x7E020000


def always(profile: dict[str, Any], action: str) -> set[str]:
    """Names under an action whatever their arguments."""
    return {n for r in profile["syscalls"] if r["action"] == action and "args" not in r for n in r["names"]}


@given(st.sets(st.sampled_from(ALL_CAPABILITIES)))
def test_what_reaches_the_kernel_itself_comes_with_no_capability(capabilities: set[str]) -> None:
    profile = seccomp_profile(capabilities)
    allowed = always(profile, "SCMP_ACT_ALLOW")
    assert {"read", "execve", "futex", "openat"} <= allowed
    assert not {"kexec_load", "keyctl", "io_uring_setup", "userfaultfd"} & allowed
    assert (profile["defaultAction"], profile["defaultErrnoRet"]) == ("SCMP_ACT_ERRNO", 1)


@given(st.sets(st.sampled_from(ALL_CAPABILITIES)), st.sampled_from(ALL_CAPABILITIES))
def test_a_capability_never_takes_a_call_away(capabilities: set[str], more: str) -> None:
    before = always(seccomp_profile(capabilities), "SCMP_ACT_ALLOW")
    assert before <= always(seccomp_profile({*capabilities, more}), "SCMP_ACT_ALLOW")


@pytest.mark.parametrize(
    "name", ["mount", "unshare", "setns", "bpf", "init_module", "reboot", "settimeofday"]
)
def test_dockers_default_capabilities_do_not_bring(name: str) -> None:
    assert name not in always(seccomp_profile(DEFAULT_CAPABILITIES), "SCMP_ACT_ALLOW")
    assert name in always(seccomp_profile(ALL_CAPABILITIES), "SCMP_ACT_ALLOW")


def test_clone_makes_no_namespaces() -> None:
    rules = [r for r in seccomp_profile(DEFAULT_CAPABILITIES)["syscalls"] if "clone" in r["names"]]
    (rule,) = rules
    assert rule["args"][0] | {"index": 0, "value": NAMESPACES, "valueTwo": 0} == rule["args"][0]
    assert rule["args"][0]["op"] == "SCMP_CMP_MASKED_EQ"
