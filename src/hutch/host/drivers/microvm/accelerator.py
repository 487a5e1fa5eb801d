"""How this host can run VMs: by trust in nothing but a probe guest that boots within its time limit.

`/dev/kvm` may exist, open, and even create a VM, and yet never run a guest. So KVM is used only if the CPU
shows the feature *and* a guest answered under it. The answer is remembered for one kernel, one QEMU, one
guest image.
"""

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from hutch.base.log import get_logger
from hutch.host.drivers.contract import DriverError

log = get_logger(__name__)
PROBE_LIMIT_S = 10.0
"""Ten times what a boot takes under a KVM that works."""
_FLAGS = re.compile(r"^flags\s*:.*\b(vmx|svm)\b", re.MULTILINE)


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a probe found. `boot_s` is the time from QEMU's start to the guest's greeting."""

    works: bool
    reason: str = ""
    boot_s: float = 0.0


Probe = Callable[[str, float], Awaitable[float]]
"""Boots a guest under an accelerator within a time limit (seconds); its boot time. Raises `DriverError`."""


def kvm_obstacle(cpuinfo: str) -> str:
    """Why KVM can't be used, as far as one can see without trying; "" if nothing speaks against it."""
    if not _FLAGS.search(cpuinfo):
        return "the CPU shows neither vmx nor svm"
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm can't be opened: {error.strerror}"
    return ""


class AcceleratorChoice:
    """Chooses between KVM and emulation, once per process; side-by-side callers share the probe."""

    def __init__(
        self,
        wanted: str,
        memory: Path,
        probe: Probe,
        obstacle: Callable[[str], str] = kvm_obstacle,
        *,
        probe_limit_s: float = PROBE_LIMIT_S,
    ) -> None:
        """`wanted`: auto, kvm or tcg; `memory`: the file that verdicts are kept in; `obstacle`: why KVM can't be used, given
        /proc/cpuinfo."""
        self._obstacle = obstacle
        self._probe_limit_s = probe_limit_s
        self._wanted = wanted
        self._memory = memory
        self._probe = probe
        self._lock = asyncio.Lock()
        self._chosen: tuple[str, Verdict] | None = None

    async def choose(self, key: str) -> tuple[str, Verdict]:
        """The accelerator and the verdict on it; `key` names kernel, QEMU and guest image. Raises
        `DriverError` if none works."""
        async with self._lock:
            if self._chosen is None:
                self._chosen = await self._choose(key)
            return self._chosen

    async def _choose(self, key: str) -> tuple[str, Verdict]:
        reasons = []
        for accelerator in ("kvm", "tcg") if self._wanted == "auto" else (self._wanted,):
            verdict = await self._verdict(accelerator, key)
            if verdict.works:
                return accelerator, verdict
            reasons.append(f"{accelerator}: {verdict.reason}")
        raise DriverError("NoAccelerator", f"no VM can be run here ({'; '.join(reasons)})")

    async def _verdict(self, accelerator: str, key: str) -> Verdict:
        if accelerator == "tcg":
            # Emulation runs wherever QEMU does; a guest that does not boot is told by the first task's own boot.
            return Verdict(works=True)
        cpuinfo = await asyncio.to_thread(Path("/proc/cpuinfo").read_text)
        if obstacle := self._obstacle(cpuinfo):
            return Verdict(works=False, reason=obstacle)
        known = await asyncio.to_thread(self._recall)
        full_key = f"{accelerator} {key}"
        if full_key in known:
            return known[full_key]
        try:
            verdict = Verdict(works=True, boot_s=await self._probe(accelerator, self._probe_limit_s))
        except DriverError as error:
            verdict = Verdict(works=False, reason=error.message[:500])
        log.info("accelerator probed", accelerator=accelerator, works=verdict.works, reason=verdict.reason)
        await asyncio.to_thread(self._remember, {**known, full_key: verdict})
        return verdict

    def _recall(self) -> dict[str, Verdict]:
        try:
            return msgspec.json.decode(self._memory.read_bytes(), type=dict[str, Verdict])
        except (OSError, msgspec.MsgspecError):
            return {}

    def _remember(self, verdicts: dict[str, Verdict]) -> None:
        self._memory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = self._memory.with_name(self._memory.name + ".new")
        draft.write_bytes(msgspec.json.encode(verdicts))
        os.replace(draft, self._memory)
