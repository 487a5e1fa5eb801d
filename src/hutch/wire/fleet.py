"""Messages between the control plane and a host agent, version 1.

One connection per host, opened by the host agent: length-prefixed (u32, big-endian) MessagePack documents, each a
member of `FromHost` or `ToHost`. A document is at most `MAX_MESSAGE_BYTES` long.

The host agent reports *facts* with sequence numbers that it keeps across its own restarts; the control plane
acknowledges a report only after it is durable, and an unacknowledged report is sent again after a reconnect. After
`Welcome` the control plane sends `Assignments`: everything that the host should run. Facts and assignments are
level-triggered: receiving one twice does no harm.
"""

from typing import Any

import msgspec

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 8 * 1024 * 1024


class _Part(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A value inside a message."""


class HealthCheckSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """How to tell whether a container is well. `command` is an argument list (`CMD-SHELL` is already expanded)."""

    command: tuple[str, ...]
    interval_s: int = 30
    timeout_s: int = 5
    retries: int = 3
    start_period_s: int = 0


class RestartPolicySpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    ignored_exit_codes: tuple[int, ...] = ()
    attempt_period_s: int = 300


class DependencySpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """`condition` is START, COMPLETE, SUCCESS or HEALTHY."""

    container: str
    condition: str


class MountSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A task volume seen inside a container."""

    volume: str
    path: str
    read_only: bool = False


class DiskSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A volume that is a disk of its own, in an image file of the host: made and formatted when it is not there yet.

    `disk_id` names the file among those of the host. `filesystem` is ext3, ext4 or xfs. `keep`: it stays when its task
    has ended; a disk that is not kept goes with its task.
    """

    disk_id: str
    size_gib: int
    filesystem: str = "ext4"
    keep: bool = False
    snapshot_id: str = ""
    """It begins as a copy of this snapshot, with that one's size and file system."""


class FileSystemSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A directory of a file system that any number of tasks may have at once. `root` is its path in the file system; it is
    made with `owner` (user id, group id, permissions) if it is not there, and must be there without."""

    file_system_id: str
    root: str = "/"
    owner: tuple[int, int, int] | None = None


class FilesSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """Files that make up a volume, by relative path; root's directories, read-only for all containers.

    `texts` are known to whoever may read the task definition; of secrets `secret_names` are the paths. `mode` is that of
    each file.
    """

    texts: dict[str, str] = {}
    secret_names: tuple[str, ...] = ()
    secrets: dict[str, str] = {}
    """The contents of those. In assignments only: never logged, never written to disk."""
    mode: int = 0o444
    uid: int = 0
    gid: int = 0


class VolumeSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A task volume. At most one of these is set; with none it is fresh and empty, and ends with its task.

    `source_path` (EC2/EXTERNAL only) is a directory of the host; `disk` a disk of its own; `shared_name` a volume that
    outlives its tasks: a directory for containers on the shared kernel, a disk for a microVM; `file_system` one that tasks
    share; `files` are all that it has.
    """

    name: str
    source_path: str = ""
    disk: DiskSpec | None = None
    shared_name: str = ""
    file_system: FileSystemSpec | None = None
    files: FilesSpec | None = None


class DeviceSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A device that a container sees. `access` is of the letters r, w, m."""

    host_path: str
    container_path: str
    access: str = "rwm"


class VolumesFromSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """All mounts of another container of the task, at the same paths."""

    container: str
    read_only: bool = False


class LogSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """Where a container's output goes besides the host's own file. `driver` "" keeps it on the host only."""

    driver: str = ""
    options: dict[str, str] = {}
    stream: str = ""
    """The CloudWatch Logs stream, already derived from the prefix, container name and task id."""
    router: str = ""
    """The container of the task that takes the output (driver awsfirelens)."""
    secret_names: tuple[str, ...] = ()
    """Options whose values are secret."""
    secrets: dict[str, str] = {}
    """Those values. In assignments only: never logged, never written to disk."""


class LogRouterSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A container that takes the output of others (FireLens): the file that it finds at `config_path`."""

    config_path: str
    config: str
    """Without secrets: these are in its environment."""
    include_path: str = ""
    """Where it finds the rest, if that comes from an object."""
    include: str | None = None
    """The rest, as secret as its owner thinks. In assignments only: never logged, in no task's file."""


class ContainerSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A container as it shall be run, all overrides applied and all AWS defaults filled in.

    None for `command`, `entry_point`, `working_directory` or `user` means: as the image says.
    """

    name: str
    container_id: str
    image: str
    essential: bool = True
    cpu_units: int = 0
    memory_mib: int | None = None
    memory_reservation_mib: int | None = None
    entry_point: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    working_directory: str | None = None
    user: str | None = None
    environment: dict[str, str] = {}
    secret_names: tuple[str, ...] = ()
    """Variables whose values are secret."""
    secrets: dict[str, str] = {}
    """Those values. In assignments only: never logged, never written to disk."""
    hostname: str = ""
    mounts: tuple[MountSpec, ...] = ()
    depends_on: tuple[DependencySpec, ...] = ()
    health_check: HealthCheckSpec | None = None
    restart_policy: RestartPolicySpec | None = None
    stop_timeout_s: int = 30
    start_timeout_s: int | None = None
    privileged: bool = False
    read_only_root: bool = False
    capabilities_add: tuple[str, ...] = ()
    capabilities_drop: tuple[str, ...] = ()
    init_process: bool = False
    tty: bool = False
    interactive: bool = False
    """Its standard input stays open, although nobody writes to it."""
    no_new_privileges: bool = False
    disable_network: bool = False
    """It has no network but a loopback interface of its own."""
    devices: tuple[DeviceSpec, ...] = ()
    volumes_from: tuple[VolumesFromSpec, ...] = ()
    ulimits: dict[str, tuple[int, int]] = {}
    sysctls: dict[str, str] = {}
    tmpfs: dict[str, tuple[str, ...]] = {}
    """Mount path to mount options; the size is an option ("size=64m")."""
    shm_mib: int = 64
    extra_hosts: dict[str, str] = {}
    dns_servers: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    container_ports: tuple[tuple[int, str], ...] = ()
    log: LogSpec = LogSpec()
    log_router: LogRouterSpec | None = None
    labels: dict[str, str] = {}
    registry_credentials: tuple[str, str] | None = None
    """User name and password for the image's registry. Never logged, never written to a task's handle."""
    metadata_id: str = ""
    """Where the container asks what is known of it (`/v4/<id>`, `/v3/<id>`); empty: nowhere."""


class InterfaceSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """The task's network interface on the VPC bridge."""

    eni_id: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    mtu: int = 1500


class PublishSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A host port of the ingress address that leads to a container port."""

    name: str
    host_port: int
    container_port: int


class Surroundings(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """What a task may know of where it runs, and its host can't see."""

    availability_zone: str = ""
    vpc_id: str = ""
    private_dns_name: str = ""
    service: str = ""
    tags: dict[str, str] = {}
    """As they were when the task was launched."""


class TaskSpec(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that a host needs to run a task."""

    task_id: str
    cluster: str
    arn: str
    family: str
    revision: int
    launch_type: str
    cpu_units: int
    memory_mib: int
    cpu_capped: bool = False
    """Never more CPU than `cpu_units`, also when the host has idle CPU; without, they are a share that is guaranteed."""
    memory_is_limit: bool = True
    """False: `memory_mib` is only the sum of what the containers reserve, and they may use more."""
    ephemeral_gib: int
    network_mode: str
    architecture: str = "x86_64"
    interface: InterfaceSpec | None = None
    containers: tuple[ContainerSpec, ...]
    volumes: tuple[VolumeSpec, ...] = ()
    publish: tuple[PublishSpec, ...] = ()
    pid_mode: str = ""
    ipc_mode: str = ""
    credentials_id: str = ""
    """Where the task asks for its role's credentials (`/v2/credentials/<id>`); empty: it has no role."""
    snapshot_id: str = ""
    """It goes on from this copy of another task (`task.snapshot`) instead of starting."""
    surroundings: Surroundings = Surroundings()


class CauseFact(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A link of a cause chain, as `hutch.model.task.CauseLink`."""

    kind: str
    text: str
    evidence: dict[str, Any] = {}
    fix: str = ""


class ContainerFact(_Part, frozen=True, kw_only=True, omit_defaults=True):
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


class PhaseFact(_Part, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    started_at: float
    ended_at: float | None = None
    detail: str = ""


class KeptDiskFact(_Part, frozen=True, kw_only=True, omit_defaults=True):
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


class TaskFacts(_Part, frozen=True, kw_only=True, omit_defaults=True):
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


class DriverFactMsg(_Part, frozen=True, kw_only=True, omit_defaults=True):
    name: str
    launch_types: tuple[str, ...]
    healthy: bool
    reason: str = ""
    details: dict[str, str] = {}


class Fingerprint(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """What a host is and can do."""

    name: str
    agent_version: str
    architecture: str
    cpu_units: int
    memory_mib: int
    disk_gib: int
    drivers: tuple[DriverFactMsg, ...]
    attributes: dict[str, str] = {}


class ImageFact(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """A local image of the host."""

    name: str
    digest: str
    size_bytes: int
    architecture: str
    imported_at: float


class ImageWanted(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """An image to be made ready. `credentials`: user name and password for its registry, never logged or written down."""

    reference: str
    credentials: tuple[str, str] | None = None


class PrefetchWanted(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """Arguments of `image.prefetch`. `max_bytes`: of the disk that tasks with these images would have."""

    images: tuple[ImageWanted, ...]
    launch_types: tuple[str, ...]
    architecture: str
    max_bytes: int


class PrefetchedImage(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one. Without an `error` it is ready."""

    reference: str
    digest: str = ""
    took_s: float = 0.0
    error_kind: str = ""
    error: str = ""
    fix: str = ""


class PreflightWanted(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """Arguments of `task.preflight`: what a task would need of this host. Nothing is pulled, nothing is bound."""

    images: tuple[ImageWanted, ...]
    architecture: str
    host_ports: tuple[int, ...] = ()


class SeenImage(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """What a host found of an image: with an `error_kind` (those of image faults) only the error is said."""

    reference: str
    digest: str = ""
    size_bytes: int = 0
    """Compressed."""
    unpacked_bytes: int | None = None
    """None if it was not unpacked on this host yet."""
    is_here: bool = False
    """Its content is on the host: nothing would be pulled."""
    is_stale: bool = False
    """Its registry can't be reached; this is what was pulled before."""
    error_kind: str = ""
    error: str = ""
    fix: str = ""


class PreflightSeen(_Part, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to `task.preflight`; images in the order asked for."""

    images: tuple[SeenImage, ...]
    free_bytes: int
    """What the host's disk can still take of images."""
    busy_ports: dict[str, str] = {}
    """Host ports (decimal) on which a program other than hutch's ingress listens, and which."""


class LogEvent(_Part, frozen=True, kw_only=True, omit_defaults=True, array_like=True):
    """A log event, lines already joined by the multi-line rule. Milliseconds since the epoch."""

    timestamp_ms: int
    message: str


class Hello(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="hello"):
    """First message of a host."""

    protocol: int
    host_id: str
    token: str = ""
    """The fleet join token; empty over the local socket, where the peer's uid is checked."""
    fingerprint: Fingerprint
    task_ids: tuple[str, ...]
    """Tasks that the host has handles of."""
    local_images: tuple[ImageFact, ...] = ()


class StreamHello(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="stream"):
    """First message of a connection that carries one process's streams: what `task.exec` asked for. The frames of
    `hutch.wire.streams` follow."""

    host_id: str
    token: str = ""
    stream_id: str
    """As in the request; nobody else knows it."""


class Refreshed(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="refreshed"):
    """What the host can do has changed since it said hello."""

    fingerprint: Fingerprint


class Alive(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="alive"):
    """The agent runs; said again and again, as `Welcome` asks for."""


class Report(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="report"):
    """Facts about a task, to be made durable and acknowledged."""

    seq: int
    facts: TaskFacts


class LogBatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="logs"):
    """Log events of one container, to be made durable in CloudWatch Logs and acknowledged by `batch`."""

    batch: int
    task_id: str
    container: str
    group: str
    stream: str
    create_group: bool = False
    events: tuple[LogEvent, ...]


class FindingFact(_Part, frozen=True, kw_only=True, omit_defaults=True):
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


class FindingBatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="findings"):
    """Findings about one task, to be made durable and acknowledged by `batch`."""

    batch: int
    task_id: str
    findings: tuple[FindingFact, ...]


class Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="reply"):
    """Answer to a `Request`. `error` is empty on success."""

    request_id: str
    result: dict[str, Any] = {}
    error_kind: str = ""
    error: str = ""


class CredentialsWanted(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="credentials_wanted"
):
    """A container of a task asks for the credentials of its task role. Only for a task of this host."""

    request_id: str
    task_id: str


class Welcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="welcome"):
    """The control plane takes the host in. `acked_seq`: the newest report that it has."""

    host_id: str
    acked_seq: int
    platform_id: str
    vpc_cidr: str
    subnets: tuple[tuple[str, str], ...]
    """(subnet CIDR, gateway address) pairs that the host's bridge serves."""
    alive_every_s: float = 0.0
    """How often the host is to say `Alive`; 0: never. One that says nothing for some times as long counts as gone."""


class Assignments(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="assignments"):
    """Everything this host should run, whole. What it runs besides is stopped and destroyed."""

    tasks: tuple[TaskSpec, ...]
    stop: tuple["Stop", ...] = ()
    later: tuple[str, ...] = ()
    """Ids of tasks that it should run too, and that did not fit: an `Assign` for each comes after this."""


class Assign(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="assign"):
    """Run one more task."""

    task: TaskSpec


class Stop(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="stop"):
    """Stop a task in order. The control plane already knows why."""

    task_id: str
    stop_code: str = ""
    reason: str = ""


class Ack(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="ack"):
    """Reports up to and including `seq` are durable."""

    seq: int


class LogAck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="log_ack"):
    """The batch is durable, or was refused for a reason that another try would not change."""

    batch: int
    error: str = ""


class FindingsAck(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="findings_ack"):
    """The batch of findings is durable."""

    batch: int


class CredentialsGiven(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="credentials_given"
):
    """Answer to `CredentialsWanted`. With an `error` the rest is empty: what is wrong with the role, and the fix.

    Never to be written down or logged. `expires_at`: epoch seconds; to be asked for again before that.
    """

    request_id: str
    role_arn: str = ""
    access_key_id: str = ""
    secret_access_key: str = ""
    session_token: str = ""
    expires_at: float = 0.0
    error: str = ""


class Forget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="forget"):
    """The task is STOPPED and durable: the host may drop its handle. Its logs go by the host's own retention."""

    task_id: str


class Request(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag="request"):
    """Ask the host to do something and answer with `Reply`.

    Verbs: `image.import` {path, name}, `image.remove` {name}, `image.prefetch` (`PrefetchWanted`; answered with `images`, a
    list of `PrefetchedImage`, when all are done), `task.preflight` (`PreflightWanted`; answered with `PreflightSeen`),
    `volume.list`, `volume.remove` {id},
    `filesystem.remove` {id}, `filesystem.sizes` {ids},
    `disk_snapshot.make` {volume_id, snapshot_id}, `disk_snapshot.remove` {snapshot_id},
    `task.stats` {task_id}, `task.logs` {task_id, container, tail}, `task.suspend` {task_id}, `task.resume` {task_id},
    `task.log_drivers` {task_id} (answered with `containers`: name to driver, waiting_bytes, dropped_bytes, problem),
    `task.snapshot` {task_id, snapshot_id, uses}: a copy for so many tasks, `snapshot.remove` {snapshot_id},
    `task.exec` {stream_id, task_id, container, spec} (answered when the process is set up and the host has opened a
    connection with `StreamHello`; of a task that has stopped, in a sandbox made for that), `disk.list`, `disk.show`
    {task_id} (a `KeptDiskFact`), `disk.remove` {task_id}.
    """

    request_id: str
    verb: str
    arguments: dict[str, Any] = {}


FromHost = (
    Hello | StreamHello | Refreshed | Alive | Report | LogBatch | FindingBatch | Reply | CredentialsWanted
)
ToHost = (
    Welcome | Assignments | Assign | Stop | Ack | LogAck | FindingsAck | Forget | Request | CredentialsGiven
)
