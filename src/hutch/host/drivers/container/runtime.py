"""Which OCI runtime this host's containers run under: runc, crun or (for a second wall) gVisor's runsc."""

import shutil
from pathlib import Path

import msgspec

from hutch.host.drivers.contract import DriverError
from hutch.host.kernel.run import CLEAN_ENVIRONMENT, CommandFailed, run

GVISOR = "runsc"
RUNTIMES = ("runc", "crun", GVISOR)
_GVISOR_FLAGS = ("--network=sandbox", "--ignore-cgroups=false", "--overlay2=none")
"""The task's network namespace is ready-made: gVisor's network stack takes its interface over. What containers write goes
to their root, where it stays through restarts and can be kept, not to an overlay inside the sandbox."""
_VERSION_TIMEOUT_S = 10.0


class Runtime(msgspec.Struct, frozen=True, kw_only=True):
    """A runtime that is installed here. All three have the same verbs: create, start, exec, kill."""

    name: str
    path: str
    version: str

    @property
    def is_gvisor(self) -> bool:
        """Whether its containers have a kernel of their own, which only the runtime can reach."""
        return self.name == GVISOR

    def arguments(self, state: Path) -> tuple[str, ...]:
        """What comes before each verb; `state` is where it keeps its containers."""
        return ("--root", str(state), *(_GVISOR_FLAGS if self.is_gvisor else ()))

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
            flags = _GVISOR_FLAGS if name == GVISOR else ()
            return Runtime(name=name, path=path, version=await _version(path, flags))
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


async def _version(path: str, flags: tuple[str, ...]) -> str:
    try:
        text = (await run([path, *flags, "--version"], timeout_s=_VERSION_TIMEOUT_S)).decode(
            "utf-8", "replace"
        )
    except CommandFailed as failure:
        if flags and "not defined" in failure.message:
            raise DriverError(
                "RuntimeTooOld",
                f"{path} does not know the flags that hutch gives it: {failure.message}",
                fix="install a newer gVisor (docs/design/container.md says how)",
            ) from None
        raise DriverError("RuntimeBroken", f"{failure.command_line}: {failure.message}") from None
    return text.partition("\n")[0].rpartition(" ")[2]
