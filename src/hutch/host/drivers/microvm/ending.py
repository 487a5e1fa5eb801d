"""Why a VM ended: from the traces to one tested cause with its evidence and fix. Pure."""

import re

import msgspec

from hutch.host.drivers.contract import SandboxExited

TAIL_BYTES = 4000
_PANIC = re.compile(r"Kernel panic - not syncing: (.{1,200})")
_FATAL = re.compile(r"hutch-agent: fatal: (.{1,300})")


class Traces(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a VM that has ended."""

    shutdown_reason: str = ""
    """QEMU's word for it, if it told before it ended."""
    exit_code: int | None = None
    """QEMU's, negative for a signal; None if it was not our child."""
    console: str = ""
    qemu_output: str = ""
    lost_server: bool = False
    """What served its file systems had ended, so it was ended too."""
    oom_record: str | None = None
    """The host kernel's own words on having killed QEMU."""


def explain(traces: Traces, *, at: float, memory_mib: int) -> SandboxExited:
    """The event for a VM that ended; `memory_mib` is the task's."""
    evidence = {
        name: value
        for name, value in (
            ("shutdown_reason", traces.shutdown_reason),
            ("qemu_exit_code", traces.exit_code),
            ("console", traces.console[-TAIL_BYTES:]),
            ("qemu_output", traces.qemu_output[-TAIL_BYTES:]),
            ("host_kernel", traces.oom_record),
        )
        if value not in (None, "")
    }
    kind, text, fix = _cause(traces, memory_mib)
    return SandboxExited(at=at, kind=kind, text=text, evidence=evidence, fix=fix)


def _cause(traces: Traces, memory_mib: int) -> tuple[str, str, str]:
    if fatal := _FATAL.search(traces.console):
        return "GuestAgentFailed", f"the guest agent could not go on: {fatal[1].strip()}", ""
    if panic := _PANIC.search(traces.console):
        fix = f"set the task's memory to {memory_mib * 2}" if "ut of memory" in panic[1] else ""
        fix = (
            fix
            or "see the console in the evidence; only a privileged container, or a flaw of the kernel, does this"
        )
        return "GuestKernelPanicked", f"the guest's kernel panicked: {panic[1].strip()}", fix
    if traces.shutdown_reason == "guest-shutdown":
        return "GuestPoweredOff", "the guest powered its machine off", ""
    if traces.shutdown_reason:
        return "GuestReset", f"the guest restarted its machine ({traces.shutdown_reason})", ""
    if traces.lost_server:
        text = "the program that served the task's file systems ended, and nothing there could be reached any more"
        return "FileServerEnded", text, "look for its end in the host's kernel log"
    if traces.oom_record and "emory cgroup out of memory" in traces.oom_record:
        text = "the VM's monitor took more of the host's memory than a VM of this size may, and was killed"
        return "VmOverMemoryLimit", text, ""
    if traces.oom_record:
        fix = "run fewer tasks on this host, or raise --memory-reserve-mib"
        return "HostOutOfMemory", "the host ran out of memory and its kernel killed the VM", fix
    if traces.exit_code is None:
        return "VmEnded", "the VM ended while no host agent was watching it", ""
    if traces.exit_code < 0:
        return (
            "VmKilled",
            f"the VM's process was killed by signal {-traces.exit_code}",
            "find out who on the host ended it",
        )
    lines = traces.qemu_output.strip().splitlines()
    last = lines[-1][:500] if lines else "no output"
    return "VmFailed", f"the VM monitor ended with exit code {traces.exit_code}: {last}", ""
