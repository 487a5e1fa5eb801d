"""What hosts tell: of themselves, of their tasks, and of what these did.

Facts travel inside messages of the fleet protocol (`hutch.wire.fleet`), and hosts keep those of their tasks on disk: a
member may be added with a default; none may change its name, type or meaning. Times are seconds since the epoch.
"""

from typing import Any

import msgspec


class CauseFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A link of a cause chain, as `hutch.model.task.CauseLink`."""

    kind: str
    text: str
    evidence: dict[str, Any] = {}
    fix: str = ""


class ContainerFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A container as observed. `status` is PENDING, RUNNING or STOPPED."""

    name: str
    status: str
    runtime_id: str = ""
    image_digest: str = ""
    health: str = "UNKNOWN"
    exit_code: int | None = None
    reason: str = ""
    restart_count: int = 0
    started_at: float | None = None
    finished_at: float | None = None
    log_dropped_bytes: int = 0
    """Told when the task has ended: output that its log driver's back end never got, for want of room."""
    log_waiting_bytes: int = 0
    """As above: output that was still on its way."""
    log_problem: str = ""
    """As above: why."""


class PhaseFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    started_at: float
    ended_at: float | None = None
    detail: str = ""


class TaskFacts(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All that a host knows of a task, whole each time (never a difference).

    `status`: ACTIVATING, RUNNING, DEACTIVATING, STOPPING, DEPROVISIONING or STOPPED. `stop_code` and
    `stopped_reason` are set once the host knows why the task stops by itself.
    """

    task_id: str
    status: str
    containers: tuple[ContainerFact, ...] = ()
    stop_code: str = ""
    stopped_reason: str = ""
    causes: tuple[CauseFact, ...] = ()
    phases: tuple[PhaseFact, ...] = ()
    network_ready_at: float | None = None
    pull_started_at: float | None = None
    pull_stopped_at: float | None = None
    started_at: float | None = None
    suspended_at: float | None = None
    """It is out of memory, with all its processes as they were, since then; its status stays RUNNING."""
    stopping_at: float | None = None
    execution_stopped_at: float | None = None
    stopped_at: float | None = None


class KeptDiskFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a host knows of a stopped task's disk. Times in seconds since the epoch."""

    task_id: str
    is_kept: bool
    bytes: int = 0
    """Of the host's disk."""
    kept_at: float = 0.0
    until: float = 0.0
    is_open: bool = False
    """Somebody looks into it now."""
    since: float | None = None
    """Since when it is not kept, if that is known."""
    reason: str = ""
    """Why it is not."""


class DriverFactMsg(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    launch_types: tuple[str, ...]
    healthy: bool
    reason: str = ""
    details: dict[str, str] = {}


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a host is and can do."""

    name: str
    agent_version: str
    architecture: str
    cpu_units: int
    memory_mib: int
    disk_gib: int
    drivers: tuple[DriverFactMsg, ...]
    attributes: dict[str, str] = {}


class ImageFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A local image of the host."""

    name: str
    digest: str
    size_bytes: int
    architecture: str
    imported_at: float


class FindingFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a rule of threat detection found. `at` in epoch seconds, by the guest's clock."""

    finding_id: str
    rule: str
    priority: str
    text: str
    description: str = ""
    tags: tuple[str, ...] = ()
    container: str = ""
    event: str = ""
    at: float = 0.0
    count: int = 1
    process: dict[str, Any] = {}


class LogEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, array_like=True):
    """A log event, lines already joined by the multi-line rule. Milliseconds since the epoch."""

    timestamp_ms: int
    message: str
