"""From a container's logConfiguration to what ships its logs."""

import socket
from functools import partial

import msgspec

from hutch.base.errors import HutchError, Invalid
from hutch.host.logs.awslogs import AwslogsSink, SendEvents
from hutch.host.logs.connections import dial
from hutch.host.logs.contract import Dial, LogSink
from hutch.host.logs.forward import ForwardSink
from hutch.host.logs.lines import Assembler, JoinedLines, PlainLines
from hutch.host.logs.syslog import SyslogSink
from hutch.rules import awslogs
from hutch.rules.awslogs import LineJoiner
from hutch.rules.logdrivers import firelens, fluentd, syslog
from hutch.rules.logdrivers.options import (
    Delivery,
    Identity,
    extra_fields,
    parse_delivery,
    render_tag,
)
from hutch.wire.taskspec import LogSpec

SHIPPED = ("awslogs", "awsfirelens", "fluentd", "syslog")
"""Drivers whose logs leave the host."""
ROUTER_DELAY_S = 1.0
"""A task's own router is near, and about to listen if it does not: it is asked again soon."""


class Shipping(msgspec.Struct, frozen=True, kw_only=True):
    """How a container's log is shipped."""

    delivery: Delivery
    assembler: Assembler
    sink: LogSink


def make_shipping(
    log: LogSpec, task_id: str, container: str, identity: Identity, *, send: SendEvents, router: Dial
) -> Shipping | None:
    """None for a driver that keeps logs on the host. `send` hands events to the control plane, `router` connects to the
    task's log router. Raises `Invalid` for options that can't be used; never with a secret in it."""
    if log.driver not in SHIPPED:
        return None
    options = {**log.options, **log.secrets}
    try:
        if log.driver == "awslogs":
            return _awslogs(options, send)
        if log.driver == "fluentd":
            return _fluentd(options, identity)
        if log.driver == "syslog":
            return _syslog(options, identity)
        return _firelens(options, task_id, container, identity, router)
    except (HutchError, KeyError) as error:
        if log.secrets:
            raise Invalid(
                f"an option of log driver {log.driver}, perhaps a secret one, is not valid"
            ) from None
        raise Invalid(str(error)) from None


def _awslogs(options: dict[str, str], send: SendEvents) -> Shipping:
    given = awslogs.parse_options(options)
    return Shipping(
        delivery=parse_delivery(options),
        assembler=JoinedLines(LineJoiner(given.start)),
        sink=AwslogsSink(send),
    )


def _fluentd(options: dict[str, str], identity: Identity) -> Shipping:
    given = fluentd.parse_options(options)
    sink = ForwardSink(
        partial(dial, given.address),
        target=f"fluentd {given.address}",
        tag=render_tag(given.tag, identity),
        fields=_fields(identity) | extra_fields(given.environment, given.labels, identity),
        acks=given.request_ack,
        sub_second=given.sub_second,
    )
    return Shipping(delivery=given.delivery, assembler=PlainLines(), sink=sink)


def _syslog(options: dict[str, str], identity: Identity) -> Shipping:
    given = syslog.parse_options(options)
    sink = SyslogSink(
        partial(dial, given.address, verify=given.verify),
        options=given,
        host=socket.gethostname(),
        tag=render_tag(given.tag, identity),
    )
    return Shipping(delivery=given.delivery, assembler=PlainLines(), sink=sink)


def _firelens(
    options: dict[str, str], task_id: str, container: str, identity: Identity, router: Dial
) -> Shipping:
    sink = ForwardSink(
        router,
        target="the task's log router",
        tag=firelens.log_tag(container, task_id),
        fields=_fields(identity),
        longest_delay_s=ROUTER_DELAY_S,
    )
    return Shipping(delivery=parse_delivery(options), assembler=PlainLines(), sink=sink)


def _fields(identity: Identity) -> dict[str, str]:
    """What Docker's driver tells with each line."""
    return {"container_id": identity.container_id, "container_name": f"/{identity.container_name}"}
