"""The fluentd driver's options (Docker's, and what hutch takes of them). Pure."""

from collections.abc import Mapping

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.logdrivers.options import (
    DELIVERY_OPTIONS,
    Address,
    Delivery,
    check_tag,
    parse_address,
    parse_bool,
    parse_delivery,
    parse_names,
    refuse_unknown,
)

DEFAULT_PORT = 24224
OPTIONS = DELIVERY_OPTIONS | {
    "fluentd-address",
    "fluentd-async",
    "fluentd-request-ack",
    "fluentd-sub-second-precision",
    "tag",
    "labels",
    "env",
}
_TRANSPORTS = {"": "tcp", "tcp": "tcp", "tls": "tls"}


class FluentdOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one container's log driver."""

    address: Address
    delivery: Delivery = Delivery()
    tag: str = "{{.ID}}"
    request_ack: bool = False
    """A batch is done with only when the server has acknowledged it: at least once, also through a reset."""
    sub_second: bool = False
    """Times as EventTime (nanoseconds), not as whole seconds."""
    labels: tuple[str, ...] = ()
    environment: tuple[str, ...] = ()


def parse_options(options: Mapping[str, str]) -> FluentdOptions:
    """The options of a task definition. Raises `Invalid`."""
    refuse_unknown("fluentd", options, OPTIONS)
    if not parse_bool("fluentd-async", options.get("fluentd-async", "true")):
        raise Invalid(
            "hutch always connects to fluentd in the background, so that a server that is away never stops a task: leave "
            "out fluentd-async, or set it to true."
        )
    tag = options.get("tag", "{{.ID}}")
    check_tag(tag)
    return FluentdOptions(
        address=parse_address(
            "fluentd-address", options.get("fluentd-address", "127.0.0.1"), _TRANSPORTS, DEFAULT_PORT
        ),
        delivery=parse_delivery(options),
        tag=tag,
        request_ack=parse_bool("fluentd-request-ack", options.get("fluentd-request-ack", "false")),
        sub_second=parse_bool(
            "fluentd-sub-second-precision", options.get("fluentd-sub-second-precision", "false")
        ),
        labels=parse_names(options.get("labels", "")),
        environment=parse_names(options.get("env", "")),
    )
