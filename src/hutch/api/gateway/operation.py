"""What a service folder under `api/aws` hands to the gateway, and what its handlers get.

A handler is `async def handler(request: Request) -> dict`: shape in (validated against the service model:
members by their model names; timestamps as float epoch seconds, blobs as bytes), one `control.ops` call,
shape out. What else it needs (ops, store, clock...) it is bound to at composition.

Honesty is declared: a `Coverage` lists every member of the operation's input. A request that uses a member
declared `refused` is answered with an error that says so; one that is in no list is refused the same way. So
nothing is silently ignored: what is accepted without effect is in `inert`, with the reason, and appears in
the coverage page.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from hutch.base.errors import HutchError
from hutch.model.iam import Caller
from hutch.model.record import Cause


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who signed the request."""

    arn: str
    account_id: str
    user_id: str
    access_key_id: str
    caller: Caller
    """The same with all that its permissions depend on."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One validated request."""

    service: str
    operation: str
    input: dict[str, Any]
    principal: Principal
    request_id: str
    region: str
    account_id: str
    source_address: str = ""
    """Where the client's connection comes from."""
    endpoint: str = ""
    """Where the client reached us (`http://127.0.0.1:4566`), as its Host header says."""

    @property
    def cause(self) -> Cause:
        """What is written beside the changes that this request makes."""
        return Cause(id=self.request_id, actor=self.principal.arn, action=f"{self.service}:{self.operation}")


class EventStream(msgspec.Struct, frozen=True, kw_only=True):
    """Returned by a handler of an event-stream operation: (event name, event shape) pairs until it ends."""

    events: AsyncIterator[tuple[str, dict[str, Any]]]


Handler = Callable[[Request], Awaitable[dict[str, Any] | EventStream]]


class Coverage(msgspec.Struct, frozen=True, kw_only=True):
    """What an operation does with each member of its input, by dotted path (`overrides.cpu`; lists by name).

    A path covers all below it unless a longer path says otherwise.
    """

    enforced: tuple[str, ...] = ()
    inert: Mapping[str, str] = {}
    refused: Mapping[str, str] = {}


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that a request needs permission for."""

    action: str = ""
    """`iam:PassRole`; empty: the operation's own, `service:Operation`."""
    resources: tuple[str, ...] = ("*",)
    """ARNs; each must be allowed."""
    context: Mapping[str, tuple[str, ...]] = {}
    """Condition keys of the service, in lower case."""


AccessRule = Callable[[Request], Sequence[Access]]
"""What a request needs permission for; nothing, if there is nothing to ask for. It sees validated input."""


RunAccess = Callable[[str, str, str, Mapping[str, Any]], Sequence[Access]]
"""(action, task definition, cluster, overrides) to what running a task needs permission for; for services that run
tasks on behalf of whoever asks them to."""


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """An operation that hutch serves."""

    name: str
    handler: Handler
    coverage: Coverage
    faults: tuple[tuple[type[HutchError], str], ...] = ()
    """Where this operation's error codes differ from its service's; looked up first."""


def operation(
    name: str,
    handler: Handler,
    *enforced: str,
    inert: Mapping[str, str] | None = None,
    refused: Mapping[str, str] | None = None,
    faults: tuple[tuple[type[HutchError], str], ...] = (),
) -> Operation:
    """An operation, by the members of its coverage."""
    coverage = Coverage(enforced=enforced, inert=inert or {}, refused=refused or {})
    return Operation(name=name, handler=handler, coverage=coverage, faults=faults)


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service: its botocore model name ("ecs"), operations, and which AWS error each error kind becomes."""

    name: str
    operations: tuple[Operation, ...]
    faults: tuple[tuple[type[HutchError], str], ...]
    """(kind, AWS error code), most special first; `HutchError.code` overrides it."""
    access: Mapping[str, AccessRule] = {}
    """Operation to what it needs permission for; the others need theirs on all resources (`*`)."""
    tags_of: Callable[[str], Mapping[str, str]] | None = None
    """The tags of a resource by ARN, for policies with `aws:ResourceTag`; none for what is not there."""
