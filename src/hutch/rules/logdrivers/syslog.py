"""The syslog driver's options, and the messages it makes (RFC 3164, RFC 5424, and Docker's form without a host). Pure."""

from collections.abc import Mapping
from datetime import UTC, datetime

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
    refuse_unknown,
)

FACILITIES = (
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp",
)  # fmt: skip
_LOCAL0 = 16
FORMATS = ("", "rfc3164", "rfc5424", "rfc5424micro")
OPTIONS = DELIVERY_OPTIONS | {
    "syslog-address",
    "syslog-facility",
    "syslog-format",
    "syslog-tls-skip-verify",
    "tag",
}
_TRANSPORTS = {"udp": "udp", "tcp": "tcp", "tcp+tls": "tls"}
DEFAULT_PORT = 514
DEFAULT_TLS_PORT = 6514
SEVERITY_ERROR, SEVERITY_INFORMATION = 3, 6
MAX_DATAGRAM_BYTES = 60_000
"""A UDP datagram can have 65,507; longer messages are cut."""
MAX_APP_NAME_CHARACTERS = 48
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class SyslogOptions(msgspec.Struct, frozen=True, kw_only=True):
    """The options of one container's log driver."""

    address: Address
    delivery: Delivery = Delivery()
    facility: int = 3
    format: str = ""
    tag: str = "{{.ID}}"
    verify: bool = True
    """Whether a TLS server must have a certificate that the host trusts."""


def parse_options(options: Mapping[str, str]) -> SyslogOptions:
    """The options of a task definition. Raises `Invalid`."""
    refuse_unknown("syslog", options, OPTIONS)
    given = options.get("syslog-address", "")
    if not given:
        raise Invalid("Log driver syslog requires options: syslog-address, such as udp://host:514.")
    port = DEFAULT_TLS_PORT if given.startswith("tcp+tls:") else DEFAULT_PORT
    form = options.get("syslog-format", "")
    if form not in FORMATS:
        raise Invalid("Log driver option syslog-format must be rfc3164, rfc5424 or rfc5424micro.")
    tag = options.get("tag", "{{.ID}}")
    check_tag(tag)
    return SyslogOptions(
        address=parse_address("syslog-address", given, _TRANSPORTS, port),
        delivery=parse_delivery(options),
        facility=parse_facility(options.get("syslog-facility", "daemon")),
        format=form,
        tag=tag,
        verify=not parse_bool("syslog-tls-skip-verify", options.get("syslog-tls-skip-verify", "false")),
    )


def parse_facility(text: str) -> int:
    """A facility's name or number. Raises `Invalid`."""
    if text in FACILITIES:
        return FACILITIES.index(text)
    if len(text) == 6 and text.startswith("local") and text[5] in "01234567":
        return _LOCAL0 + int(text[5])
    if text.isascii() and text.isdecimal() and int(text) <= 23:
        return int(text)
    raise Invalid(f"Log driver option syslog-facility {text[:50]!r} is no facility: use daemon, local0, ...")


def message(options: SyslogOptions, *, time_ns: int, is_error: bool, host: str, tag: str, text: str) -> bytes:
    """One message without any framing. Line feeds in the text become spaces: they would end it."""
    priority = options.facility * 8 + (SEVERITY_ERROR if is_error else SEVERITY_INFORMATION)
    text = text.replace("\n", " ").replace("\0", " ")
    if options.format.startswith("rfc5424"):
        stamp = _rfc3339(time_ns, micro=options.format.endswith("micro"))
        name = _token(tag)[:MAX_APP_NAME_CHARACTERS] or "-"
        line = f"<{priority}>1 {stamp} {_token(host) or '-'} {name} - - - {text}"
    else:
        where = f"{_token(host) or '-'} " if options.format else ""
        line = f"<{priority}>{_stamp(time_ns)} {where}{_token(tag)}: {text}"
    return line.encode("utf-8", "replace")


def framed(options: SyslogOptions, data: bytes) -> bytes:
    """A message as it goes over the address's transport: a datagram, octet-counted over TLS with RFC 5424 (RFC 5425),
    else ended by a line feed (RFC 6587)."""
    if options.address.transport == "udp":
        return data[:MAX_DATAGRAM_BYTES]
    if options.address.transport == "tls" and options.format.startswith("rfc5424"):
        return b"%d %s" % (len(data), data)
    return data + b"\n"


def _token(text: str) -> str:
    """Printable ASCII without spaces, which would end it."""
    return "".join(c if "!" <= c <= "~" else "_" for c in text)


def _stamp(time_ns: int) -> str:
    at = datetime.fromtimestamp(time_ns // 10**9, UTC)
    return f"{_MONTHS[at.month - 1]} {at.day:2d} {at:%H:%M:%S}"


def _rfc3339(time_ns: int, *, micro: bool) -> str:
    seconds, rest_ns = divmod(time_ns, 10**9)
    fraction = f".{rest_ns // 1000:06d}" if micro else ""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}{fraction}Z"
