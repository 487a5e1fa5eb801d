"""What a driver must do: give tasks a sandbox, and run their containers in it.

A *sandbox* is one task's room: a microVM, or a set of namespaces on the shared kernel. The host agent decides *when*
containers start, stop and restart (the same rules for every driver); a driver only carries it out and reports.

Rules for all drivers, checked by the contract suite:
- What is needed to find a sandbox again is returned by `create` as a `Handle`, which the agent makes durable. `adopt`
  with it works in another process, after the agent was killed at any moment.
- `destroy` works from the handle alone, also after a half-done `create`, also twice; it leaves nothing on the host.
- `events` gives every exit exactly once per agent life, also exits that happened while no agent was there.
- No verb blocks the event loop. Errors are `DriverError`s with a cause; nothing else is raised on purpose.
"""

from collections.abc import AsyncIterator
from typing import Any, Protocol, runtime_checkable

import msgspec

from hutch.base.errors import HutchError
from hutch.host.logs.contract import Connection
from hutch.model.exec import ExecSpec
from hutch.wire.facts import DriverFactMsg
from hutch.wire.guest_facts import RuntimeFact
from hutch.wire.taskspec import ContainerSpec, TaskSpec


class HostFault(HutchError):
    """Something on the host went wrong. `kind` is a stable word, `fix` what to do about it.

    `aws_prefix` is the word that AWS puts before such a reason (`CannotPullContainerError`, ...).
    """

    def __init__(
        self,
        kind: str,
        message: str,
        *,
        fix: str = "",
        aws_prefix: str = "",
        evidence: dict[str, Any] | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.fix = fix
        self.aws_prefix = aws_prefix
        self.evidence = evidence or {}
        self.retryable = retryable


class DriverError(HostFault):
    """A driver could not do what it was asked to."""


class SandboxGone(DriverError):
    """The sandbox is not there any more: its VM or processes ended. `evidence` says how."""


class SandboxPhase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A part of `create`, for the launch waterfall. Times in seconds since the epoch."""

    name: str
    started_at: float
    ended_at: float
    detail: str = ""


class Handle(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What finds a sandbox again after a restart. `state` is the driver's own, in its own `format`; `phases` tells how
    the time of `create` was spent."""

    driver: str
    format: int
    task_id: str
    state: dict[str, Any]
    phases: tuple[SandboxPhase, ...] = ()


class RootImage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image that is ready on this host, as the image store prepared it for this driver.

    `config` is the OCI image configuration's `config` object (Entrypoint, Cmd, Env, User, WorkingDir, StopSignal...).
    Exactly one of `erofs_path` (a root disk) and `directory` (an unpacked root, read-only) is set, as the driver's
    `Capabilities.root_format` asks. `passwd` and `group` are the texts of the image's /etc/passwd and /etc/group (each
    "" if the image has none; at most 1 MiB), read by the image store while it unpacked the image, so that nobody must
    open a root disk on the host to turn a user's name into a number.
    """

    reference: str
    digest: str
    config: dict[str, Any]
    erofs_path: str = ""
    directory: str = ""
    passwd: str = ""
    group: str = ""


class Attachment(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The task's link to the VPC bridge, already made by `hutch.host.network`.

    `tap` names a tap device for a VM (open it by name with TUNSETIFF); `netns_path` is a network namespace with the
    interface already configured inside. Both empty: no network (`none`); `host_network`: the host's own.
    """

    tap: str = ""
    netns_path: str = ""
    host_network: bool = False
    nameservers: tuple[str, ...] = ()
    search: tuple[str, ...] = ()


class WatchSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a sandbox is to tell of its processes. `sources`: kinds of facts (`hutch.wire.guest_facts`); `directories`: below
    which writes are told; `load_s`: how long a process must take a whole CPU before that is told."""

    sources: tuple[str, ...]
    directories: tuple[str, ...] = ()
    load_s: int = 60


class SandboxSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that `create` gets. `directory` is the sandbox's own, made by the agent (mode 0700), removed by it after
    `destroy`; sockets, disks, bundles and logs live below it. Container logs go to `<directory>/logs/<name>.log`, in
    the CRI format that conmon writes (`<RFC 3339 ns> stdout|stderr F|P <bytes>`)."""

    task: TaskSpec
    directory: str
    images: dict[str, RootImage]
    """By container name."""
    attachment: Attachment
    watch: WatchSpec | None = None
    """Threat detection; None: nothing of it is there. Only for drivers with `Capabilities.tells_facts`."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a driver can do, so that nobody asks it by name."""

    launch_types: tuple[str, ...]
    root_format: str
    """"erofs" or "directory"."""
    network: str
    """"tap" or "netns"."""
    owns_kernel: bool
    """Whether each sandbox has a kernel of its own (so `privileged` is safe)."""
    tells_facts: bool = False
    """Whether it can tell what processes do (`SandboxSpec.watch`)."""


class ExitStatus(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a process ended: `exit_code` is 128+n if signal n killed it."""

    exit_code: int
    signal: int = 0
    oom: bool = False
    oom_process: str = ""
    oom_rss_bytes: int = 0


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a health check's command gave: at most 4 KiB of its output."""

    exit_code: int
    timed_out: bool = False
    output: str = ""


class ContainerExited(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="container_exited"):
    """A container's first process ended. `runtime_id` tells starts of the same container apart."""

    container: str
    runtime_id: str
    status: ExitStatus
    at: float


class SandboxExited(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="sandbox_exited"):
    """The sandbox itself ended (VM gone, shim killed). Last event. `kind`, `text`, `evidence`, `fix` as in a cause."""

    at: float
    kind: str
    text: str
    evidence: dict[str, Any] = {}
    fix: str = ""


class ProcessFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="process_facts"):
    """What processes did, of a sandbox that is watched. A batch may come again after the agent's restart. `dropped` counts
    what was not told since the sandbox was made."""

    facts: tuple[RuntimeFact, ...]
    dropped: int = 0


SandboxEvent = ContainerExited | SandboxExited | ProcessFacts


class ContainerStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    cpu_ns: int
    memory_bytes: int
    pids: int = 0


class SandboxStats(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Use of a sandbox: what its containers use, and what it costs the host in all. `disk_bytes`: what its own disk takes
    of the host's; None: it has none."""

    host_cpu_ns: int
    host_memory_bytes: int
    disk_bytes: int | None = None
    containers: dict[str, ContainerStats] = {}


class StartedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A running container: its runtime id (64 hex digits or the runtime's own) and when it started."""

    runtime_id: str
    started_at: float


class ObservedContainer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What `adopt` found: a container that was started at some time. An exit found here also comes as an event."""

    name: str
    runtime_id: str
    running: bool
    started_at: float | None = None


class Driver(Protocol):
    """One way to run tasks. Made by a composition root; all verbs are called from one event loop.

    `create`, `start_container`, `destroy` of different tasks run side by side. Of one task, `create` and `adopt` come
    alone; `start_container` of different containers may come side by side, unless the task shares a namespace;
    `signal_container`, `probe` and `stats` may come beside them and beside each other; `destroy` may come while any
    other verb hangs, and then ends it.
    """

    name: str
    capabilities: Capabilities

    async def fingerprint(self) -> DriverFactMsg:
        """Whether this host can run it, proven by trying; the answer may be remembered."""
        ...

    async def create(self, spec: SandboxSpec) -> Handle:
        """Make the sandbox and wait until it can take containers. On failure nothing is left but the directory."""
        ...

    async def adopt(self, handle: Handle, spec: SandboxSpec) -> tuple[ObservedContainer, ...]:
        """Take over a sandbox that an earlier agent made. `SandboxGone` if it ended meanwhile."""
        ...

    async def start_container(self, handle: Handle, container: ContainerSpec) -> StartedContainer:
        """Start (or, after its exit, start again) a container. Raises `DriverError` if its process can't be run."""
        ...

    async def signal_container(self, handle: Handle, container: str, signal: int) -> None:
        """Send a signal to the container's first process; no error if it has exited."""
        ...

    async def probe(
        self, handle: Handle, container: str, command: tuple[str, ...], timeout_s: float
    ) -> ProbeResult:
        """Run a health check's command inside the container, with its user, environment and directory."""
        ...

    def events(self, handle: Handle) -> AsyncIterator[SandboxEvent]:
        """What happens to the sandbox from now on (and what happened unseen); ends after `SandboxExited`."""
        ...

    async def stats(self, handle: Handle) -> SandboxStats: ...

    async def destroy(self, handle: Handle) -> None:
        """End the sandbox at once and remove all it made on the host."""
        ...

    async def destroy_leftovers(self, directory: str, task_id: str) -> None:
        """As `destroy`, when `create` was cut off before its handle was durable: find everything from the names."""
        ...

    async def close(self) -> None:
        """Let go of all sandboxes without touching them: the agent ends, the tasks go on."""
        ...


class HostVolume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that outlives its tasks. `kind`: "shared", or "disk" for one that was made for one task and kept; `bytes`:
    what it takes on the host's disk, None if that would have to be counted file by file."""

    kind: str
    name: str
    bytes: int | None = None


@runtime_checkable
class SupportsDiskSnapshots(Protocol):
    """Copies of disks that outlive their tasks, which new disks are made from (`DiskSpec.snapshot_id`)."""

    async def make_disk_snapshot(self, disk_id: str, snapshot_id: str) -> None:
        """Copy a disk that no task has; it is durable then. Raises `DriverError`, `OSError`."""
        ...

    async def remove_disk_snapshot(self, snapshot_id: str) -> None:
        """Remove a copy; no error if there is none. Raises `OSError`."""
        ...


@runtime_checkable
class SupportsFileSystems(Protocol):
    """File systems that any number of tasks have at once (`FileSystemSpec`)."""

    async def remove_file_system(self, file_system_id: str) -> None:
        """Remove one with all that is in it; no error if there is none. Raises `OSError`."""
        ...

    async def file_system_bytes(self, file_system_id: str) -> int:
        """What one takes on the disk; of a very large tree a part of it."""
        ...


@runtime_checkable
class SupportsVolumes(Protocol):
    """Optional: volumes of the host's own, which outlive their tasks."""

    capabilities: Capabilities

    async def volumes(self) -> tuple[HostVolume, ...]:
        """All that are there."""
        ...

    async def remove_volume(self, name: str) -> None:
        """Remove one with all that is in it; no error if it is not there. Raises `DriverError` if a VM has it."""
        ...


@runtime_checkable
class ExecStream(Protocol):
    """A further process in a container, with its streams. It does not outlive this object: whoever has it closes it.

    Both directions have backpressure: `write` returns when the data is taken, and what is not read from `output` fills a
    bounded buffer and then makes the process wait. A process that does neither holds up nothing but itself.
    """

    async def write(self, data: bytes) -> None:
        """Input. After the process has ended, or has closed its input, it goes nowhere; that is no error."""
        ...

    async def close_input(self) -> None:
        """The end of input; for a process with a terminal nothing happens."""
        ...

    async def resize(self, rows: int, cols: int) -> None:
        """Set the terminal's size; without a terminal nothing happens."""
        ...

    async def signal(self, number: int) -> None:
        """Send the process a signal; nothing happens if it has ended."""
        ...

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """(1 stdout or 2 stderr, bytes) as written; ends when the process has ended and all of it was given. To be
        called once."""
        ...

    async def wait(self) -> int:
        """Its exit code (128+n by signal n), once `output` has come to its end. Raises `DriverError` if it could not be
        run, `SandboxGone`."""
        ...

    async def close(self) -> None:
        """Let go of it: a process that still runs is hung up on (SIGHUP) and killed soon after."""
        ...


@runtime_checkable
class SupportsExec(Protocol):
    """Optional: run further processes in a container with their own streams."""

    async def exec(self, handle: Handle, container: str, spec: ExecSpec) -> ExecStream:
        """Run a process as the container's own are run: its user (or the one given), environment, directory,
        capabilities and limits. Raises `DriverError` if the container does not run."""
        ...


@runtime_checkable
class SupportsKeptDisks(Protocol):
    """Optional: what the containers of a sandbox wrote outlives it, and can be looked into, in another sandbox."""

    async def keep_disk(self, handle: Handle, directory: str) -> int:
        """End the sandbox as `destroy` does, but move what its containers wrote to a directory that the caller has made, on
        the sandbox's file system; what that takes of the host's disk, in bytes. `destroy` is still to be called.

        Killed at any moment, it is called again, also by another agent and without `adopt`, and then goes on. Raises
        `DriverError` if there is nothing to be kept."""
        ...

    async def open_disk(self, directory: str, spec: SandboxSpec) -> Handle:
        """As `create`, over a copy of what is kept in a directory, which stays as it is: what is written goes with the
        sandbox. `spec` is the ended task's, but for a name (`task_id`) and a directory of the sandbox's own; it has no
        network, whatever `spec` says, a size of the driver's choice, and no volumes that outlive tasks.

        None of its containers is started. Its end is `destroy`, or `destroy_leftovers`."""
        ...

    async def hold_container(self, handle: Handle, container: ContainerSpec) -> None:
        """Make `exec` possible in a container of a sandbox that `open_disk` made: a process that only waits stands where its
        command would. A shell and the usual tools are last on its PATH. No error if it is held already."""
        ...


@runtime_checkable
class SupportsLogRouter(Protocol):
    """Optional: a container of the task can take the logs of the others (`ContainerSpec.log_router`)."""

    async def dial_router(self, handle: Handle, container: str) -> Connection:
        """Connect to the unix socket that the router made in the directory which the driver gave it. What is written has
        been taken by that socket when `write` returns. Raises `DriverError`, `OSError` while there is none."""
        ...


@runtime_checkable
class SupportsSuspend(Protocol):
    """Optional: a sandbox leaves the host's memory, and comes back as it was."""

    async def suspend(self, handle: Handle) -> None:
        """All of the sandbox is on the disk, and nothing of it runs, when this returns; iterators of `events` end.

        Killed at any moment, the next agent finds it either running (`adopt`) or suspended (`is_suspended`). On a
        `DriverError` it runs as before; on `SandboxGone` it is lost. Not while a container is being started.
        """
        ...

    async def is_suspended(self, handle: Handle) -> bool:
        """Whether the sandbox is suspended: then `resume` brings it back, and `adopt` does not. To be asked before
        `adopt`."""
        ...

    async def resume(self, handle: Handle, spec: SandboxSpec) -> Handle:
        """The same processes go on where they were; the handle that finds the sandbox from now on. Exits that were told
        before are not told again. On a `DriverError` it is still suspended; on `SandboxGone` it is lost."""
        ...


@runtime_checkable
class SupportsFork(Protocol):
    """Optional: other sandboxes go on from where one is."""

    async def snapshot(self, handle: Handle, directory: str) -> None:
        """Copy a running sandbox into a directory (made here), from which `fork` can be called any number of times; it
        stands still meanwhile. On a `DriverError` nothing is left there. Whoever removes the directory ends it."""
        ...

    async def fork(self, directory: str, spec: SandboxSpec) -> tuple[Handle, tuple[ObservedContainer, ...]]:
        """As `create`, from a snapshot: the containers run already, as another task's, with another identity, network
        and randomness, before any of their processes goes on."""
        ...
