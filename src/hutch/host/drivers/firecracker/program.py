"""Firecracker on this host: where it is, which version, and what it can do. It is never downloaded."""

import re

import msgspec

from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.firecracker.config import (
    API_SOCKET,
    INITRD,
    KERNEL,
    MAX_DISKS,
    RUN,
    SNAPSHOT,
    disk_place,
)
from hutch.host.drivers.microvm.jail import MonitorProgram
from hutch.host.drivers.microvm.programs import ProgramVersion
from hutch.host.kernel.run import CommandFailed

OLDEST = (1, 8, 0)
"""The first that describes its devices by ACPI. The guest's kernel, Debian's own, knows no other way to find them."""
OLDEST_WITH_NETWORK_OVERRIDES = (1, 12, 0)
"""The first that restores a VM with another tap than the one it was saved with."""
HOW_TO_GET = (
    "get a release from github.com/firecracker-microvm/firecracker and put `firecracker` on the PATH, or say where it is "
    "with --firecracker-program"
)
_VERSION = re.compile(r"^Firecracker v(\d+)\.(\d+)\.(\d+)", re.MULTILINE)


class Firecracker(msgspec.Struct, frozen=True, kw_only=True):
    """A Firecracker that can be used."""

    version: tuple[int, int, int]

    @property
    def version_text(self) -> str:
        """As "1.12.0"."""
        return ".".join(map(str, self.version))

    @property
    def restores_with_other_taps(self) -> bool:
        """Whether one template fits all tasks."""
        return self.version >= OLDEST_WITH_NETWORK_OVERRIDES


def parse_version(output: str) -> Firecracker:
    """What `firecracker --version` says. Raises `DriverError` for what can't be used."""
    found = _VERSION.search(output)
    if found is None:
        raise DriverError(
            "FirecrackerUnknown", f"not a Firecracker: it says {output[:200]!r} of itself", fix=HOW_TO_GET
        )
    made = Firecracker(version=(int(found[1]), int(found[2]), int(found[3])))
    if made.version < OLDEST:
        raise DriverError(
            "FirecrackerTooOld",
            f"Firecracker {made.version_text} does not tell the guest of its devices by ACPI, as Debian's kernel needs it; "
            f"{'.'.join(map(str, OLDEST))} is the first that does",
            fix=HOW_TO_GET,
        )
    return made


async def find_firecracker(version: ProgramVersion) -> Firecracker:
    """The Firecracker that says this of itself. Raises `DriverError` if there is none, or one that can't be used."""
    try:
        text = await version.text()
    except CommandFailed as error:
        raise DriverError(
            "VmMonitorMissing", f"Firecracker can't be run: {error.message}", fix=HOW_TO_GET
        ) from None
    return parse_version(text)


def monitor_program(program: str) -> MonitorProgram:
    """What Firecracker's jail looks like: all that it opens, it opens by a path in there."""
    return MonitorProgram(
        title="Firecracker",
        program=program,
        fix=HOW_TO_GET,
        version_arguments=lambda name: ("--id", name, "--version"),
        devices={"kvm": ("/dev/kvm", "/dev/net/tun", "/dev/urandom")},
        files=(KERNEL, INITRD, *(disk_place(i) for i in range(MAX_DISKS))),
        directories=(RUN, SNAPSHOT),
        host_network=True,
    )


def arguments(program: str, name: str) -> list[str]:
    """The command line; by `name` the process is found again."""
    return [program, "--id", name, "--api-sock", API_SOCKET, "--level", "Warning"]
