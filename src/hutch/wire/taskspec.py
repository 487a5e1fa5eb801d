"""The specification of a task: everything that a host needs to run it, with all overrides applied.

It travels inside messages of the fleet protocol (`hutch.wire.fleet`), and hosts keep it in their tasks' handles: a member
may be added with a default; none may change its name, type or meaning.
"""

import msgspec


class HealthCheckSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to tell whether a container is well. `command` is an argument list (`CMD-SHELL` is already expanded)."""

    command: tuple[str, ...]
    interval_s: int = 30
    timeout_s: int = 5
    retries: int = 3
    start_period_s: int = 0


class RestartPolicySpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    ignored_exit_codes: tuple[int, ...] = ()
    attempt_period_s: int = 300


class DependencySpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`condition` is START, COMPLETE, SUCCESS or HEALTHY."""

    container: str
    condition: str


class MountSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A task volume seen inside a container."""

    volume: str
    path: str
    read_only: bool = False


class DiskSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class FileSystemSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A directory of a file system that any number of tasks may have at once. `root` is its path in the file system; it is
    made with `owner` (user id, group id, permissions) if it is not there, and must be there without."""

    file_system_id: str
    root: str = "/"
    owner: tuple[int, int, int] | None = None


class FilesSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class VolumeSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A device that a container sees. `access` is of the letters r, w, m."""

    host_path: str
    container_path: str
    access: str = "rwm"


class VolumesFromSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All mounts of another container of the task, at the same paths."""

    container: str
    read_only: bool = False


class LogSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class LogRouterSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A container that takes the output of others (FireLens): the file that it finds at `config_path`."""

    config_path: str
    config: str
    """Without secrets: these are in its environment."""
    include_path: str = ""
    """Where it finds the rest, if that comes from an object."""
    include: str | None = None
    """The rest, as secret as its owner thinks. In assignments only: never logged, in no task's file."""


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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


class InterfaceSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The task's network interface on the VPC bridge."""

    eni_id: str
    mac: str
    address: str
    prefix_length: int
    gateway: str
    mtu: int = 1500


class PublishSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A host port of the ingress address that leads to a container port."""

    name: str
    host_port: int
    container_port: int


class Surroundings(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a task may know of where it runs, and its host can't see."""

    availability_zone: str = ""
    vpc_id: str = ""
    private_dns_name: str = ""
    service: str = ""
    tags: dict[str, str] = {}
    """As they were when the task was launched."""


class TaskSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
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
