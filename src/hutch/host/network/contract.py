"""What the network of a host does: one bridge for the platform, one port on it for each task."""

import socket
from typing import Protocol

import msgspec

from hutch.host.drivers.contract import Attachment
from hutch.wire.taskspec import TaskSpec


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """What has passed in one direction since the port was made."""

    bytes: int
    packets: int
    errors: int
    dropped: int


class Traffic(msgspec.Struct, frozen=True, kw_only=True):
    """What a task has received and sent."""

    received: Counters
    sent: Counters


class HostNetwork(Protocol):
    """The platform's bridge, its ports and the rules around them. Every name holds the platform id.

    All verbs are idempotent; `detach` and `tear_down` also work when the set-up never ran or stopped half way.
    """

    async def set_up(self, vpc_cidr: str, subnets: tuple[tuple[str, str], ...]) -> None:
        """Bridge with the subnets' gateway addresses, forwarding, NAT to the outside, base rules."""
        ...

    async def attach(self, task: TaskSpec, kind: str) -> Attachment:
        """Make the task's port: a tap (`kind` "tap") or a namespace with a veth inside ("netns"), address and MAC
        enforced (anti-spoofing). For `network_mode` "host" and "none": what they ask for."""
        ...

    async def detach(self, task: TaskSpec) -> None:
        """Remove the task's port, namespace and rules."""
        ...

    async def remove_strays(self, task_ids: frozenset[str]) -> None:
        """Remove ports and namespaces of this platform that belong to none of these tasks (after a crash)."""
        ...

    def traffic(self, task: TaskSpec) -> Traffic | None:
        """What has passed the task's port; None: it has none."""
        ...

    def endpoint_socket(self) -> socket.socket | None:
        """A socket that listens where tasks ask for what ECS has for them, and only they can reach it; after `set_up`.
        None: this network has no such place. Raises `HostFault`."""
        ...

    async def tear_down(self) -> None:
        """Remove all that this platform made."""
        ...
