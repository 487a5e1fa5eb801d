"""How a container, or the whole sandbox, ended: from the traces to one tested cause. Pure."""

import re

from hutch.host.drivers import start_faults
from hutch.host.drivers.contract import DriverError, ExitStatus, SandboxExited
from hutch.host.drivers.start_faults import kind_of, runtime_words
from hutch.wire.taskspec import ContainerSpec

_VICTIM = re.compile(r"Killed process (\d+) \((.{1,64})\).*?anon-rss:(\d+)kB")


def exit_status(code: int, oom_kills: int, oom_record: str | None, fallback_name: str) -> ExitStatus:
    """conmon's exit code (128+n for signal n) with what the kernel counted and wrote in its log."""
    signal = code - 128 if 128 < code <= 192 else 0
    if not oom_kills or code != 137:
        return ExitStatus(exit_code=code, signal=signal)
    victim = _VICTIM.search(oom_record or "")
    # Of gVisor the host knows one process, which is the container: runsc, started anew by way of /proc/self/exe.
    name = victim[2] if victim and victim[2] != "exe" else fallback_name
    return ExitStatus(
        exit_code=code,
        signal=signal,
        oom=True,
        oom_process=name,
        oom_rss_bytes=int(victim[3]) * 1024 if victim else 0,
    )


def shim_ended(container: str, returncode: int | None, oom_record: str | None, at: float) -> SandboxExited:
    """conmon is gone and has not told how its container ended, so the container was ended too.

    `returncode` as in `subprocess`; None if it was not our child (an earlier agent's).
    """
    what = f'the process that stands by container "{container}" (conmon)'
    evidence: dict[str, object] = {"container": container}
    if oom_record:
        evidence["host_kernel"] = oom_record
        return SandboxExited(
            at=at,
            kind="HostOutOfMemory",
            text=f"the host ran out of memory and its kernel killed {what}",
            evidence=evidence,
            fix="run fewer tasks on this host, or raise --memory-reserve-mib",
        )
    if returncode is None:
        text = f"{what} ended, and nobody was there to see why; the task's containers were ended"
        return SandboxExited(at=at, kind="ShimEnded", text=text, evidence=evidence)
    evidence["conmon_exit_code"] = returncode
    if returncode < 0:
        text = f"{what} was killed by signal {-returncode}; the task's containers were ended"
        return SandboxExited(at=at, kind="ShimKilled", text=text, evidence=evidence)
    text = f"{what} ended with exit code {returncode}; the task's containers were ended"
    return SandboxExited(at=at, kind="ShimFailed", text=text, evidence=evidence)


def start_fault(container: ContainerSpec, message: str) -> DriverError:
    """What the runtime said on failing to start a container, as an error with a fix."""
    words = runtime_words(message)
    kind, text, fix = start_faults.start_fault(container, kind_of(words), words)
    command = [*(container.entry_point or ()), *(container.command or ())]
    return DriverError(
        "ContainerRuntimeFailed" if kind == "RuntimeError" else kind,
        f'container "{container.name}" can\'t be started: {text[:1000]}',
        fix=fix,
        aws_prefix="CannotStartContainerError",
        evidence={"container": container.name, "command": [w[:200] for w in command[:10]]},
    )
