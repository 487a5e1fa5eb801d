"""Tasks: one run of a task definition, in a sandbox of its own."""

from typing import Any

import msgspec

from hutch.model.record import Record

PROVISIONING = "PROVISIONING"
PENDING = "PENDING"
ACTIVATING = "ACTIVATING"
RUNNING = "RUNNING"
DEACTIVATING = "DEACTIVATING"
STOPPING = "STOPPING"
DEPROVISIONING = "DEPROVISIONING"
STOPPED = "STOPPED"

LAUNCH_TYPES = ("EC2", "FARGATE", "EXTERNAL")


class _Value(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Part of a record; has no version of its own."""


class CauseLink(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """One link of a stop's cause chain, outermost first.

    `kind` is a stable word for tools ("OutOfMemory", "ImageNotFound", ...); `text` names the tested cause;
    `evidence` holds what was observed; `fix` says what to do, if something can be done.
    """

    kind: str
    text: str
    evidence: dict[str, Any] = {}
    fix: str = ""


class Phase(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """A bar of the launch waterfall: what took how long. Times are epoch seconds."""

    name: str
    started_at: float
    ended_at: float | None = None
    detail: str = ""


class NetworkBinding(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """A container port reachable on the host."""

    container_port: int
    host_port: int
    protocol: str = "tcp"
    bind_ip: str = "127.0.0.1"


class Container(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """A container of a task, as observed."""

    name: str
    container_id: str
    image: str
    image_digest: str = ""
    runtime_id: str = ""
    last_status: str = "PENDING"
    health_status: str = "UNKNOWN"
    exit_code: int | None = None
    reason: str = ""
    cpu: int = 0
    memory_mib: int | None = None
    memory_reservation_mib: int | None = None
    essential: bool = True
    has_health_check: bool = False
    restart_count: int = 0
    ports: tuple[int, ...] = ()
    """Container ports that its definition maps."""
    network_bindings: tuple[NetworkBinding, ...] = ()
    started_at: float | None = None
    finished_at: float | None = None
    log_dropped_bytes: int = 0
    """Of a task that has ended: what its log driver's back end never got."""
    log_waiting_bytes: int = 0
    """What was still on its way to the back end when the task ended."""
    log_problem: str = ""


class NetworkInterface(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """The task's elastic network interface."""

    attachment_id: str
    eni_id: str
    subnet_id: str
    security_group_ids: tuple[str, ...]
    mac: str
    private_ipv4: str
    status: str = "PRECREATED"


class ManagedVolume(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """A disk that was made for the task at its launch; `name` is the volume's in the task definition."""

    attachment_id: str
    volume_id: str
    name: str
    size_gib: int
    filesystem: str
    role_arn: str = ""
    delete_on_termination: bool = True
    snapshot_id: str = ""
    """What it was made from."""


class Endpoint(_Value, frozen=True, kw_only=True, omit_defaults=True):
    """A container port published on the host's ingress address: `http://<name>.localhost:<host_port>/`."""

    name: str
    host_port: int
    container_port: int


class Task(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One task. `task_id` is 32 hex digits; `(cluster, task_id)` is in its ARN."""

    task_id: str
    cluster: str
    family: str
    revision: int
    launch_type: str
    capacity_provider: str = ""
    platform_version: str = ""
    desired_status: str = RUNNING
    last_status: str = PROVISIONING
    cpu: int
    """CPU units asked for (1,024 = one vCPU)."""
    memory_mib: int
    ephemeral_gib: int = 0
    """Writable disk asked for in GiB; 0 where the launch type has none of its own."""
    overrides: dict[str, Any] = {}
    group: str = ""
    started_by: str = ""
    enable_execute_command: bool = False
    propagated_from: str = ""
    tags: dict[str, str] = {}
    network: NetworkInterface | None = None
    assign_public_ip: bool = False
    network_mode: str = "bridge"
    requested_subnets: tuple[str, ...] = ()
    requested_security_groups: tuple[str, ...] = ()
    availability_zone: str = ""
    host_id: str = ""
    """The host it was placed on; empty while it waits for placement."""
    container_instance_id: str = ""
    """Placed by StartTask, or on an EC2/EXTERNAL container instance."""
    placement_constraints: tuple[dict[str, str], ...] = ()
    placement_strategy: tuple[dict[str, str], ...] = ()
    waiting_reason: str = ""
    """Why it is not placed yet; empty before placement was first tried."""
    publish: tuple[tuple[int, int], ...] = ()
    """(host port or 0 for any, container port) pairs to publish on the host's ingress address."""
    endpoint_name: str = ""
    endpoints: tuple[Endpoint, ...] = ()
    volumes: tuple[ManagedVolume, ...] = ()
    """Those that the task definition leaves to the launch."""
    containers: tuple[Container, ...] = ()
    health_status: str = "UNKNOWN"
    connectivity: str = ""
    stop_code: str = ""
    stopped_reason: str = ""
    stop_requested_by: str = ""
    causes: tuple[CauseLink, ...] = ()
    phases: tuple[Phase, ...] = ()
    created_at: float
    placed_at: float | None = None
    connectivity_at: float | None = None
    pull_started_at: float | None = None
    pull_stopped_at: float | None = None
    started_at: float | None = None
    stopping_at: float | None = None
    execution_stopped_at: float | None = None
    stopped_at: float | None = None
    event_version: int = 1
    """The `version` member that AWS shows: raised by each change that emits an event."""
    max_runtime_s: int = 0
    """How long it may run; 0: as long as it likes."""
    cpu_capped: bool = False
    """It gets its share of its host's CPU, and nothing of what others leave idle."""
    suspended_at: float | None = None
    """It is out of its host's memory since then, as it was; its status stays RUNNING."""
    gave_back: bool = False
    """What it had reserved of CPU and memory is given back for as long as it is suspended."""
    fork_of: str = ""
    """The task that it is a copy of; of a copy's copy, the first one."""
    snapshot_id: str = ""
    """The copy that its host makes it from."""

    @property
    def is_suspended(self) -> bool:
        return self.suspended_at is not None and self.last_status == RUNNING

    @property
    def is_stopped(self) -> bool:
        return self.last_status == STOPPED

    @property
    def deadline(self) -> float | None:
        """When it is to be stopped (epoch seconds); None: never, not yet, or its end was asked for already."""
        if not self.max_runtime_s or self.started_at is None or self.desired_status != RUNNING:
            return None
        return self.started_at + self.max_runtime_s
