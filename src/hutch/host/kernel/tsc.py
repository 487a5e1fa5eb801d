"""The frequency of this host's time stamp counter, measured.

An emulated guest's TSC is the host's. The guest's kernel would measure it against an emulated timer chip, which fails
when the host is busy, and then it has no clock at all and hangs in its first second. So it is told instead.
"""

import asyncio
import ctypes
import mmap
import platform
from collections.abc import Callable

from hutch.base.clock import Clock

# rdtsc; shl rdx, 32; or rax, rdx; ret
_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")
_TRIES = 20
_INTERVAL_S = 0.2


async def host_tsc_khz(clock: Clock) -> int | None:
    """Kilohertz, right to some parts in a million; None if this machine's counter can't be read. Takes 0.2 s."""
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    code.write(_READ_TSC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)
    first_ticks, first_s = _sample(read, clock)
    await asyncio.sleep(_INTERVAL_S)
    last_ticks, last_s = _sample(read, clock)
    return round((last_ticks - first_ticks) / (last_s - first_s) / 1000)


def _sample(read: Callable[[], int], clock: Clock) -> tuple[int, float]:
    """Counter and clock at the same moment: of several tries the one that took the least time."""
    best = (float("inf"), 0, 0.0)
    for _ in range(_TRIES):
        before = clock.monotonic()
        ticks = read()
        after = clock.monotonic()
        best = min(best, (after - before, ticks, (before + after) / 2))
    return best[1], best[2]
