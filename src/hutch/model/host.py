"""Hosts, and the container instances that show them to ECS clusters."""

import msgspec

from hutch.model.record import Record


class DriverFact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A driver that a host offers, or why it can't."""

    name: str
    launch_types: tuple[str, ...]
    healthy: bool
    reason: str = ""
    details: dict[str, str] = {}


class Host(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A machine that runs tasks, as its agent reported it."""

    host_id: str
    name: str
    status: str = "ACTIVE"
    connected: bool = False
    agent_version: str = ""
    architecture: str = "x86_64"
    availability_zone: str = ""
    cpu_units: int = 0
    memory_mib: int = 0
    disk_gib: int = 0
    drivers: tuple[DriverFact, ...] = ()
    attributes: dict[str, str] = {}
    registered_at: float = 0.0
    last_seen_at: float = 0.0
    """When something was last heard of it, if it is not connected; kept when a connection comes or ends."""


class HostReports(Record, frozen=True, kw_only=True, omit_defaults=True):
    """How far a host's reports were taken in. Apart from the host, which is read with each launch and seldom changes."""

    host_id: str
    last_seq: int = 0
    """The highest report sequence number that was made durable."""


class ContainerInstance(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A host as a member of an ECS cluster; its id is 32 hex digits."""

    instance_id: str
    cluster: str
    host_id: str
    status: str = "ACTIVE"
    registered_at: float
    attributes: dict[str, str] = {}
    tags: dict[str, str] = {}


class Reservation(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What a host has promised to tasks that are not stopped; changed in the same unit of work as the task."""

    host_id: str
    cpu_units: int = 0
    memory_mib: int = 0
    task_count: int = 0
