"""The warm pool: restored VMs that have no task yet. Which sizes, how many, and when; how one is made and taken is the
launcher's business."""

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.microvm.qemu_sandbox import QemuSandbox
from hutch.host.drivers.microvm.templates import TemplateKey
from hutch.host.drivers.microvm.vm import VmFiles

log = get_logger(__name__)
DEMAND_S = 3600.0
"""Sizes that were launched within this time are in use."""
MAX_REMEMBERED = 256
QUIET_S = 1.0
"""A VM is made when nothing was launched for this long: launches shall have the CPUs for themselves."""
RETRY_S = 60.0


class WarmLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How much the pool may hold at most; `count` 0: it is off."""

    count: int = 0
    memory_mib: int = 0
    """Sum of the VMs' memory sizes (of which an idle one uses a part)."""


class WarmSize(msgspec.Struct, frozen=True, kw_only=True):
    """What must fit for a VM to be given to a task: all that can't be changed while it runs."""

    key: TemplateKey
    cpu_units: int
    disk_bytes: int
    """Of the writable disk: the VM's files can't grow beyond it."""


class Spare(msgspec.Struct, kw_only=True):
    """A VM in the pool."""

    size: WarmSize
    name: str
    files: VmFiles
    sandbox: QemuSandbox
    tap_name: str
    tap_fd: int
    """Attached to a link that leads nowhere; QEMU has a copy of it, which follows where this one is attached to."""


def wanted_spares(launched: Iterable[WarmSize], limits: WarmLimits) -> Counter[WarmSize]:
    """How many spares of each size there should be, given recent launches. Pure.

    Places go one by one to the size with the most launches for each spare that it has, never more than were launched,
    and only while memory lasts.
    """
    counts = Counter(launched)
    wanted: Counter[WarmSize] = Counter()
    memory_mib = limits.memory_mib
    while wanted.total() < limits.count:
        fitting = [s for s, n in counts.items() if wanted[s] < n and s.key.memory_mib <= memory_mib]
        if not fitting:
            break
        best = max(fitting, key=lambda s: counts[s] / (wanted[s] + 1))
        wanted[best] += 1
        memory_mib -= best.key.memory_mib
    return wanted


class WarmPool:
    """Keeps spares ready. All verbs from one event loop."""

    def __init__(
        self,
        limits: WarmLimits,
        make: Callable[[WarmSize], Awaitable[Spare]],
        end: Callable[[Spare], Awaitable[None]],
        clock: Clock,
    ) -> None:
        self._limits = limits
        self._make = make
        self._end = end
        self._clock = clock
        self._spares: list[Spare] = []
        self._launched: deque[tuple[float, WarmSize]] = deque(maxlen=MAX_REMEMBERED)
        self._news = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    def take(self, size: WarmSize) -> Spare | None:
        """A spare of exactly this size, now the caller's; None if there is none. It counts as a launch."""
        if self._limits.count <= 0:
            return None
        self._launched.append((self._clock.monotonic(), size))
        self._news.set()
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep(), name="warm-pool")
        for spare in self._spares:
            if spare.size == size and spare.sandbox.ended is None:
                self._spares.remove(spare)
                return spare
        return None

    def __len__(self) -> int:
        return len(self._spares)

    async def _keep(self) -> None:
        while True:
            await self._quiet()
            now = self._clock.monotonic()
            while self._launched and self._launched[0][0] < now - DEMAND_S:
                self._launched.popleft()
            wanted = wanted_spares((size for _, size in self._launched), self._limits)
            await self._end_surplus(wanted)
            missing = wanted - Counter(s.size for s in self._spares)
            if not missing:
                await self._wait(DEMAND_S / 4)
                continue
            try:
                self._spares.append(await self._make(next(iter(missing))))
            except DriverError as error:
                log.warning("no spare microVM made", reason=error.message)
                await self._wait(RETRY_S)

    async def _quiet(self) -> None:
        """Return when nothing was launched for a while."""
        while await self._wait(QUIET_S):
            self._news.clear()

    async def _wait(self, timeout_s: float) -> bool:
        """Until there is a launch, or the time is up (False)."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
            return True
        except TimeoutError:
            return False

    async def _end_surplus(self, wanted: Counter[WarmSize]) -> None:
        kept: Counter[WarmSize] = Counter()
        for spare in list(self._spares):
            kept[spare.size] += 1
            if spare.sandbox.ended is not None or kept[spare.size] > wanted[spare.size]:
                kept[spare.size] -= 1
                self._spares.remove(spare)
                await self._end(spare)

    async def close(self) -> None:
        """End all spares."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        spares, self._spares = self._spares, []
        for spare in spares:
            await self._end(spare)
