"""Which OCI runtime this host's containers run under: runc, crun or (for a second wall) gVisor's runsc."""

import shutil
from pathlib import Path

import msgspec

from hutch.host.drivers.contract import DriverError
from hutch.host.kernel.run import CLEAN_ENVIRONMENT, CommandFailed, run

RUNTIMES = ("runc", "crun", "runsc")
_VERSION_TIMEOUT_S = 10.0


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that is installed here. All three have the same verbs: create, start, exec, kill."""

    name: str
    path: str
    version: str

    def arguments(self, state: Path) -> tuple[str, ...]:
        """What comes before each verb; `state` is where it keeps its containers."""
        common = ("--root", str(state))
        # The task's network namespace is ready-made; gVisor's own network stack takes its interface over.
        return (*common, "--network=sandbox", "--ignore-cgroups=false") if self.name == "runsc" else common

    def command(self, state: Path, *words: str) -> list[str]:
        """A command line."""
        return [self.path, *self.arguments(state), *words]


async def find_runtime(wanted: str, cgroup_version: int) -> Runtime:
    """The runtime that a setting asks for: one of `RUNTIMES`, or "auto".

    auto: crun on a host with cgroups of version 2 (it is smaller and starts faster), else and without it runc: crun
    refuses the hybrid layout. runsc only if it is named. Raises `DriverError`.
    """
    if wanted != "auto":
        names: tuple[str, ...] = (wanted,)
    else:
        names = ("crun", "runc") if cgroup_version == 2 else ("runc",)
    for name in names:
        path = shutil.which(name, path=CLEAN_ENVIRONMENT["PATH"])
        if path is not None:
            return Runtime(name=name, path=path, version=await _version(path))
    raise DriverError(
        "RuntimeMissing",
        f"{names[-1]} is not installed",
        fix=f"install {names[-1]}, or choose another --container-runtime",
    )


def find_conmon() -> str:
    """The path of conmon. Raises `DriverError`."""
    path = shutil.which("conmon", path=CLEAN_ENVIRONMENT["PATH"])
    if path is None:
        raise DriverError("ShimMissing", "conmon is not installed", fix="install conmon")
    return path


async def _version(path: str) -> str:
    try:
        text = (await run([path, "--version"], timeout_s=_VERSION_TIMEOUT_S)).decode("utf-8", "replace")
    except CommandFailed as failure:
        raise DriverError("RuntimeBroken", f"{failure.command_line}: {failure.message}") from None
    return text.partition("\n")[0].rpartition(" ")[2]
