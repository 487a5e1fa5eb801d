"""What the fake driver's containers do, dialled by their environment:

HUTCH_FAKE_RUN_MS        ends by itself after so long (else it runs until it is signalled)
HUTCH_FAKE_EXIT          exit code of that end (0)
HUTCH_FAKE_OOM           1: that end is the OOM killer's work (code 137)
HUTCH_FAKE_STOP_MS       ends so long after a signal (0)
HUTCH_FAKE_IGNORE_TERM   1: only SIGKILL ends it
HUTCH_FAKE_START_MS      takes so long to start (0)
HUTCH_FAKE_START         fail: can't be started
HUTCH_FAKE_HEALTH        exit code of its health check (0)
HUTCH_FAKE_HEALTHY_MS    its health check fails until so long after its start
HUTCH_FAKE_PROBE_MS      its health check takes so long
HUTCH_FAKE_LOG           what it writes to stdout when it starts
HUTCH_FAKE_LOG_PER_S     lines that it writes each second
HUTCH_FAKE_MEMORY_MIB    what it seems to use (16)
HUTCH_FAKE_BOOT_MS       the sandbox takes so long to make; of the task's first container, as are:
HUTCH_FAKE_BOOT          fail: the sandbox can't be made
HUTCH_FAKE_VANISH_MS     the whole sandbox ends so long after it was made
"""

from hutch.base.units import MIB
from hutch.host.drivers.contract import DriverError
from hutch.wire.taskspec import ContainerSpec


def dial(container: ContainerSpec | None, name: str) -> str:
    """A dial without its prefix ("RUN_MS"); "" if it is not set, or there is no container."""
    return container.environment.get(f"HUTCH_FAKE_{name}", "") if container else ""


def number(container: ContainerSpec | None, name: str, default: float) -> float:
    """A dial that is a number. Raises `DriverError` if it is none."""
    text = dial(container, name)
    try:
        return float(text) if text else default
    except ValueError:
        raise DriverError("FakeDialInvalid", f"HUTCH_FAKE_{name}={text!r} is not a number") from None


def memory_bytes(container: ContainerSpec | None) -> int:
    """What the container seems to use."""
    return int(number(container, "MEMORY_MIB", 16) * MIB)
