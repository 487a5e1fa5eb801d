"""Every table, declared once: the schema that all backends derive theirs from."""

from typing import Any

from hutch.model.cluster import AccountSetting, Cluster, IdempotencyToken
from hutch.model.disk import DiskSnapshot
from hutch.model.event import (
    Delivery,
    DeliveryCount,
    EventBatch,
    EventBus,
    EventCursor,
    EventRule,
    Schedule,
    ScheduleGroup,
    ScheduleRun,
)
from hutch.model.filesystem import AccessPoint, FileSystem, MountTarget
from hutch.model.host import ContainerInstance, Host, HostReports, Reservation
from hutch.model.iam import AccessKey, InstanceProfile, ManagedPolicy, Role, User
from hutch.model.image import LocalImage
from hutch.model.network import (
    AddressCursor,
    AddressLease,
    PlatformIdentity,
    PortLease,
    SecurityGroup,
    Subnet,
    Vpc,
)
from hutch.model.notes import host_journal, instance_journal, task_journal
from hutch.model.object import Bucket, ObjectPart, StoredObject
from hutch.model.secret import Parameter, ParameterVersion, Secret, SecretVersion
from hutch.model.task import Task
from hutch.model.taskdef import Family, TaskDefinition
from hutch.store.contract import Table

IDENTITY = Table("identity", PlatformIdentity, lambda r: ("platform",))
ACCESS_KEYS = Table("access_keys", AccessKey, lambda r: (r.access_key_id,), read_mostly=True)
IAM_USERS = Table("iam_users", User, lambda r: (r.name.lower(),))
IAM_ROLES = Table("iam_roles", Role, lambda r: (r.name.lower(),))
IAM_POLICIES = Table("iam_policies", ManagedPolicy, lambda r: (r.name.lower(),))
INSTANCE_PROFILES = Table("instance_profiles", InstanceProfile, lambda r: (r.name.lower(),))
CLUSTERS = Table("clusters", Cluster, lambda r: (r.name,), read_mostly=True)
ACCOUNT_SETTINGS = Table("account_settings", AccountSetting, lambda r: (r.principal_arn, r.name))
IDEMPOTENCY_TOKENS = Table(
    "idempotency_tokens",
    IdempotencyToken,
    lambda r: (r.scope, r.token),
    {"by_age": lambda r: (f"{r.created_at:020.6f}",)},
)
FAMILIES = Table("families", Family, lambda r: (r.name,), read_mostly=True)
TASK_DEFINITIONS = Table(
    "task_definitions",
    TaskDefinition,
    lambda r: (r.family, f"{r.revision:010d}"),
    {"by_status": lambda r: (r.status,)},
    read_mostly=True,
)
TASKS = Table(
    "tasks",
    Task,
    lambda r: (r.cluster, r.task_id),
    {
        "by_id": lambda r: (r.task_id,),
        "by_desired": lambda r: (r.cluster, r.desired_status),
        "by_host": lambda r: (r.host_id,) if r.host_id and not r.is_stopped else None,
        "unplaced": lambda r: (f"{r.created_at:020.6f}",) if not r.host_id and not r.is_stopped else None,
        "untried": lambda r: () if not r.host_id and not r.is_stopped and not r.waiting_reason else None,
        "stopped": lambda r: (f"{r.stopped_at:020.6f}",) if r.is_stopped and r.stopped_at else None,
        "by_deadline": lambda r: (f"{r.deadline:020.6f}",) if r.max_runtime_s and r.deadline else None,
    },
    tallies={"by_last": lambda r: (r.cluster, r.last_status)},
    journal=task_journal,
)
HOSTS = Table("hosts", Host, lambda r: (r.host_id,), read_mostly=True, journal=host_journal)
HOST_REPORTS = Table("host_reports", HostReports, lambda r: (r.host_id,), followed=False)
RESERVATIONS = Table("reservations", Reservation, lambda r: (r.host_id,))
CONTAINER_INSTANCES = Table(
    "container_instances",
    ContainerInstance,
    lambda r: (r.cluster, r.instance_id),
    {"by_host": lambda r: (r.host_id,)},
    read_mostly=True,
    journal=instance_journal,
)
VPCS = Table("vpcs", Vpc, lambda r: (r.vpc_id,))
SUBNETS = Table("subnets", Subnet, lambda r: (r.subnet_id,), read_mostly=True)
SECURITY_GROUPS = Table("security_groups", SecurityGroup, lambda r: (r.group_id,), read_mostly=True)
ADDRESS_LEASES = Table(
    "address_leases",
    AddressLease,
    lambda r: (r.address,),
    tallies={"by_subnet": lambda r: (r.subnet_id,)},
    followed=False,
)
ADDRESS_CURSORS = Table("address_cursors", AddressCursor, lambda r: (r.subnet_id,), followed=False)
PORT_LEASES = Table(
    "port_leases",
    PortLease,
    lambda r: (r.host_id, r.protocol, f"{r.host_port:05d}"),
    {"by_task": lambda r: (r.task_id,)},
)
LOCAL_IMAGES = Table("local_images", LocalImage, lambda r: (r.name,))
SECRETS = Table(
    "secrets",
    Secret,
    lambda r: (r.name,),
    {"by_deletion": lambda r: (f"{r.deletion_at:020.6f}",) if r.deletion_at is not None else None},
)
SECRET_VERSIONS = Table("secret_versions", SecretVersion, lambda r: (r.name, r.version_id))
PARAMETERS = Table("parameters", Parameter, lambda r: (r.name,))
PARAMETER_VERSIONS = Table("parameter_versions", ParameterVersion, lambda r: (r.name, f"{r.number:010d}"))
EVENT_RULES = Table(
    "event_rules",
    EventRule,
    lambda r: (r.bus, r.name),
    {
        "by_next": lambda r: (f"{r.next_at:020.6f}",) if r.next_at is not None else None,
        "by_pattern": lambda r: () if r.pattern and r.state == "ENABLED" and r.targets else None,
    },
    read_mostly=True,
)
EVENT_BUSES = Table("event_buses", EventBus, lambda r: (r.name,), read_mostly=True)
EVENT_LOG = Table("event_log", EventBatch, lambda r: (f"{r.first:020d}",), append_only=True)
EVENT_CURSOR = Table("event_cursor", EventCursor, lambda r: ("events",))
SCHEDULE_GROUPS = Table("schedule_groups", ScheduleGroup, lambda r: (r.name,))
SCHEDULES = Table(
    "schedules",
    Schedule,
    lambda r: (r.group, r.name),
    {"by_next": lambda r: (f"{r.next_at:020.6f}",) if r.next_at is not None else None},
)
SCHEDULE_RUNS = Table(
    "schedule_runs",
    ScheduleRun,
    lambda r: (r.owner, f"{r.nominal_at:020.6f}"),
    {"by_age": lambda r: (f"{r.fired_at:020.6f}",)},
)
DELIVERIES = Table(
    "deliveries",
    Delivery,
    lambda r: (r.delivery_id,),
    {"by_due": lambda r: (f"{r.due_at:020.6f}",)},
)
DELIVERY_COUNTS = Table("delivery_counts", DeliveryCount, lambda r: (r.owner,))
BUCKETS = Table("buckets", Bucket, lambda r: (r.name,))
OBJECTS = Table("objects", StoredObject, lambda r: (r.bucket, r.key))
OBJECT_PARTS = Table(
    "object_parts", ObjectPart, lambda r: (r.content_id, f"{r.number:06d}"), append_only=True
)
FILE_SYSTEMS = Table(
    "file_systems", FileSystem, lambda r: (r.file_system_id,), {"by_token": lambda r: (r.token,)}
)
ACCESS_POINTS = Table(
    "access_points",
    AccessPoint,
    lambda r: (r.access_point_id,),
    {"by_file_system": lambda r: (r.file_system_id,)},
)
MOUNT_TARGETS = Table(
    "mount_targets",
    MountTarget,
    lambda r: (r.mount_target_id,),
    {"by_file_system": lambda r: (r.file_system_id,)},
)
DISK_SNAPSHOTS = Table("disk_snapshots", DiskSnapshot, lambda r: (r.snapshot_id,))

ALL_TABLES: tuple[Table[Any], ...] = (
    IDENTITY,
    ACCESS_KEYS,
    IAM_USERS,
    IAM_ROLES,
    IAM_POLICIES,
    INSTANCE_PROFILES,
    CLUSTERS,
    ACCOUNT_SETTINGS,
    IDEMPOTENCY_TOKENS,
    FAMILIES,
    TASK_DEFINITIONS,
    TASKS,
    HOSTS,
    HOST_REPORTS,
    RESERVATIONS,
    CONTAINER_INSTANCES,
    VPCS,
    SUBNETS,
    SECURITY_GROUPS,
    ADDRESS_LEASES,
    ADDRESS_CURSORS,
    PORT_LEASES,
    LOCAL_IMAGES,
    SECRETS,
    SECRET_VERSIONS,
    PARAMETERS,
    PARAMETER_VERSIONS,
    EVENT_RULES,
    EVENT_BUSES,
    EVENT_LOG,
    EVENT_CURSOR,
    SCHEDULE_GROUPS,
    SCHEDULES,
    SCHEDULE_RUNS,
    DELIVERIES,
    DELIVERY_COUNTS,
    BUCKETS,
    OBJECTS,
    OBJECT_PARTS,
    FILE_SYSTEMS,
    ACCESS_POINTS,
    MOUNT_TARGETS,
    DISK_SNAPSHOTS,
)
