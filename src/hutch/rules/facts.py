"""What is known of a task from outside the control plane, in the model's own words."""

import msgspec

from hutch.model.task import CauseLink, Phase


class ObservedContainer(msgspec.Struct, frozen=True, kw_only=True):
    """A container as its host sees it. `status` is PENDING, RUNNING or STOPPED."""

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
    log_waiting_bytes: int = 0
    log_problem: str = ""


class ObservedTask(msgspec.Struct, frozen=True, kw_only=True):
    """All that a host knows of a task; times are epoch seconds."""

    status: str
    containers: tuple[ObservedContainer, ...] = ()
    stop_code: str = ""
    stopped_reason: str = ""
    causes: tuple[CauseLink, ...] = ()
    phases: tuple[Phase, ...] = ()
    network_ready_at: float | None = None
    pull_started_at: float | None = None
    pull_stopped_at: float | None = None
    started_at: float | None = None
    suspended_at: float | None = None
    stopping_at: float | None = None
    execution_stopped_at: float | None = None
    stopped_at: float | None = None
