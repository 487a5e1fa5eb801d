"""What the change feed keeps of some changes: enough to tell the world of every state, not only of the newest."""

import msgspec

from hutch.model.host import ContainerInstance, Host
from hutch.model.task import Task


class TaskNote(msgspec.Struct, frozen=True, array_like=True):
    """A change of a task that has something to tell."""

    before: str
    """Its last status before; "" for a new task."""
    task: Task


class HostNote(msgspec.Struct, frozen=True, array_like=True):
    """A host's agent has connected, or has gone."""

    host_id: str
    connected: bool


class InstanceNote(msgspec.Struct, frozen=True, array_like=True):
    """A container instance came, or changed."""

    instance: ContainerInstance


_encode = msgspec.msgpack.Encoder().encode
decode_task_note = msgspec.msgpack.Decoder(TaskNote).decode
decode_host_note = msgspec.msgpack.Decoder(HostNote).decode
decode_instance_note = msgspec.msgpack.Decoder(InstanceNote).decode


def task_journal(before: Task | None, after: Task | None) -> bytes:
    """A note if an event comes of the change: a new task, or a new `event_version`."""
    if after is None or (before is not None and before.event_version == after.event_version):
        return b""
    return _encode(TaskNote(before.last_status if before else "", after))


def host_journal(before: Host | None, after: Host | None) -> bytes:
    """A note when the agent's connection comes or goes; most writes only count reports."""
    if after is None or (before.connected if before else False) == after.connected:
        return b""
    return _encode(HostNote(after.host_id, after.connected))


def instance_journal(before: ContainerInstance | None, after: ContainerInstance | None) -> bytes:
    """A note of every change."""
    return b"" if after is None else _encode(InstanceNote(after))
