"""Control documents of the guest protocol, version 1: what the guest answers and tells.

See docs/design/guest-protocol.md.

All of it is hostile input: every member has a type and a bound, a document that does not fit is no document
at all. Members that we do not know are ignored, so that a newer agent can say more.
"""

from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from hutch.wire.guest_facts import RuntimeFactsEvent

T = TypeVar("T")
MAX_TEXT = 4096
Text = Annotated[str, Meta(max_length=MAX_TEXT)]
Name = Annotated[str, Meta(max_length=255)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
ContainerNumber = Annotated[int, Meta(ge=0, le=2**32 - 1)]
ExitCode = Annotated[int, Meta(ge=0, le=255)]
SignalNumber = Annotated[int, Meta(ge=0, le=64)]


class GuestContainer(msgspec.Struct, frozen=True, kw_only=True):
    """One start of a container, as the guest knows it. Times: wall-clock nanoseconds of the guest, 0: not
    yet."""

    name: Name
    number: ContainerNumber
    status: Name
    """"starting", "running" or "exited"."""
    exit_code: ExitCode = 0
    signal: SignalNumber = 0
    oom: bool = False
    started_ns: Count = 0
    finished_ns: Count = 0
    log_seq: Count = 0
    """The last record of its output so far."""
    log_acked: Count = 0
    """The last one that a host agent has acknowledged."""


class StateAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """All starts of containers in this VM."""

    containers: tuple[GuestContainer, ...] = ()


class HelloAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What the guest says of itself when greeted."""

    version: int
    agent: Name = ""
    kernel: Name = ""
    boot_ns: Count = 0
    containers: tuple[GuestContainer, ...] = ()


class ProbeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a captured `exec`."""

    exit_code: ExitCode
    timed_out: bool = False
    output: Annotated[str, Meta(max_length=16 * MAX_TEXT)] = ""


class ExecAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """How a process with streams (`exec_stream`) ended."""

    exit_code: ExitCode


class GuestContainerStats(msgspec.Struct, frozen=True, kw_only=True):
    cpu_ns: Count = 0
    memory_bytes: Count = 0
    pids: Count = 0


class StatsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Use of the guest's memory, and of its running containers by name."""

    memory_used_bytes: Count = 0
    memory_total_bytes: Count = 0
    containers: dict[Name, GuestContainerStats] = {}


class GuestFailure(msgspec.Struct, frozen=True, kw_only=True):
    """Why a request was not carried out."""

    kind: Name
    message: Annotated[str, Meta(max_length=16 * MAX_TEXT)] = ""


class ContainerExitedEvent(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="container_exited"
):
    """A container's first process ended."""

    seq: Count
    name: Name
    number: ContainerNumber
    exit_code: ExitCode
    signal: SignalNumber = 0
    oom: bool = False
    oom_process: Text = ""
    oom_rss_bytes: Count = 0
    time_ns: Count = 0


class AgentErrorEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="event", tag="agent_error"):
    """Something that the agent could not do, for the host's log."""

    seq: Count
    message: Text = ""


GuestEvent = ContainerExitedEvent | AgentErrorEvent | RuntimeFactsEvent


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer to the request `id`: either `ok` or `error`."""

    id: Count
    ok: msgspec.Raw = msgspec.Raw()
    """Not parsed yet; empty if there is none."""
    error: GuestFailure | None = None


_event_decoder: msgspec.json.Decoder[GuestEvent] = msgspec.json.Decoder(GuestEvent)
_answer_decoder = msgspec.json.Decoder(Answer)
_PROBLEMS = (msgspec.MsgspecError, ValueError, RecursionError)


def parse_document(payload: bytes) -> Answer | GuestEvent | None:
    """The document of a control frame; None if it is neither an answer nor an event that we know."""
    try:
        answer = _answer_decoder.decode(payload)
    except _PROBLEMS:
        pass
    else:
        return answer if bool(answer.ok) == (answer.error is None) else None
    try:
        return _event_decoder.decode(payload)
    except _PROBLEMS:
        return None


def parse_answer(raw: msgspec.Raw, type_: type[T]) -> T | None:
    """The `ok` member of an answer as the type that its request calls for; None if it does not fit."""
    try:
        return msgspec.json.decode(raw, type=type_)
    except _PROBLEMS:
        return None


def encode_request(request_id: int | None, operation: str, members: dict[str, Any]) -> bytes:
    """A request's document; `request_id` None for the acknowledgements, which have no answer."""
    head: dict[str, Any] = {"op": operation} if request_id is None else {"id": request_id, "op": operation}
    return msgspec.json.encode({**head, **members})
