"""Messages between the control plane and a host agent, version 1.

One connection per host, opened by the host agent: length-prefixed (u32, big-endian) MessagePack documents, each a
member of `FromHost` or `ToHost`. A document is at most `MAX_MESSAGE_BYTES` long.

The host agent reports *facts* with sequence numbers that it keeps across its own restarts; the control plane
acknowledges a report only after it is durable, and an unacknowledged report is sent again after a reconnect. After
`Welcome` the control plane sends `Assignments`: everything that the host should run. Facts and assignments are
level-triggered: receiving one twice does no harm. What tasks are made of is in `hutch.wire.taskspec`, what hosts tell in
`hutch.wire.facts`, what is asked about images in `hutch.wire.image_requests`.
"""

from typing import Any

import msgspec

from hutch.wire.facts import FindingFact, Fingerprint, ImageFact, LogEvent, TaskFacts
from hutch.wire.taskspec import TaskSpec

PROTOCOL_VERSION = 1
MAX_MESSAGE_BYTES = 8 * 1024 * 1024


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
