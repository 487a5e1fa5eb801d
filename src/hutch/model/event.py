"""Events and who gets them: rules with their targets, schedules, what waits for delivery, what was delivered."""

from typing import Any

import msgspec

from hutch.model.record import Record

DEFAULT_BUS = "default"
ENABLED, DISABLED = "ENABLED", "DISABLED"
MAX_EVENT_AGE_S = 86_400
MAX_RETRIES = 185


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Part of a record; has no version of its own."""


class Target(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """Where events go. `arn`: an ECS cluster, a log group, an event bus, or an http(s) URL."""

    target_id: str = ""
    arn: str
    role_arn: str = ""
    constant: str | None = None
    """`Input`: what is sent instead of the event."""
    path: str = ""
    """`InputPath`: the part of the event that is sent."""
    template_paths: dict[str, str] = {}
    template: str = ""
    """`InputTransformer`: its paths and its template."""
    parameters: dict[str, Any] = {}
    """EcsParameters, HttpParameters or EventBridgeParameters, as they were given."""
    max_retries: int = MAX_RETRIES
    max_age_s: int = MAX_EVENT_AGE_S


class EventRule(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A rule of an event bus: by pattern, by schedule, or both."""

    bus: str = DEFAULT_BUS
    name: str
    pattern: str = ""
    schedule: str = ""
    state: str = ENABLED
    description: str = ""
    role_arn: str = ""
    tags: dict[str, str] = {}
    targets: tuple[Target, ...] = ()
    created_at: float
    anchor: float = 0.0
    """Where the times of a rate start."""
    next_at: float | None = None
    """When the schedule is due next; None if it is not."""

    @property
    def owner(self) -> str:
        """What its runs and deliveries are filed under."""
        return f"rule/{self.bus}/{self.name}"


class EventBus(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An event bus besides `default`, which is always there."""

    name: str
    description: str = ""
    tags: dict[str, str] = {}
    created_at: float


class ScheduleGroup(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A group of schedules besides `default`, which is always there."""

    name: str
    tags: dict[str, str] = {}
    created_at: float
    modified_at: float


class Schedule(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A schedule of EventBridge Scheduler. Times are epoch seconds."""

    group: str = "default"
    name: str
    expression: str
    time_zone: str = "UTC"
    start_at: float | None = None
    end_at: float | None = None
    description: str = ""
    state: str = ENABLED
    window_minutes: int = 0
    """Of the flexible time window; 0: OFF."""
    delete_when_done: bool = False
    target: Target
    client_token: str = ""
    created_at: float
    modified_at: float
    anchor: float
    """Where the times of a rate start."""
    nominal_at: float | None = None
    """The time that is due next by the expression; None: never again, or disabled."""
    next_at: float | None = None
    """The same within the flexible window."""

    @property
    def owner(self) -> str:
        """What its runs and deliveries are filed under."""
        return f"schedule/{self.group}/{self.name}"


class ScheduleRun(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One time that a schedule was due, and what came of it."""

    owner: str
    nominal_at: float
    fired_at: float
    outcome: str
    """QUEUED, DELIVERED, SKIPPED (concurrency policy Forbid), FAILED, MISSED (the platform was down for too long)."""
    missed_before: int = 0
    """How many times before this one were missed since the run before."""
    detail: str = ""


class Delivery(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Something on its way to a target. It is removed when the target has it, or when it is given up."""

    delivery_id: str
    owner: str
    target: Target
    payload: str
    """What the target gets."""
    event_id: str = ""
    run_at: float | None = None
    """The `nominal_at` of the run that it belongs to."""
    created_at: float
    due_at: float
    attempts: int = 0
    last_error: str = ""


class DeliveryCount(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What was given up of a rule or schedule: nothing vanishes unseen."""

    owner: str
    failed: int = 0
    last_failed_at: float = 0.0
    last_error: str = ""


class LogEntry(msgspec.Struct, frozen=True, array_like=True):
    """One change that was told. `kind` "task": `body` is a `TaskNote`; "event": a whole event in JSON."""

    kind: str
    event_id: str
    """Empty for a task, where the note says it."""
    at: float
    subject: str
    """The task it is about, if it is about one."""
    body: bytes
    bus: str = DEFAULT_BUS


class EventBatch(Record, frozen=True, kw_only=True, omit_defaults=True):
    """Entries of the event log that became durable together; the first has the number `first`."""

    first: int
    at: float
    entries: tuple[LogEntry, ...]
    size_bytes: int = 0


class EventCursor(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How far the change feed has been turned into events, and the number of the next entry of the log."""

    feed_seq: int = 0
    next_number: int = 1
    log_bytes: int = 0
