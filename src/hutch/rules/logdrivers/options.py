"""What the options of several log drivers have in common: how much may wait, addresses, tags, extra fields. Pure."""

import re
from collections.abc import Mapping

import msgspec

from hutch.base.errors import Invalid
from hutch.base.units import MIB
from hutch.rules.awslogs import parse_size

DEFAULT_BUFFER_BYTES = 10 * MIB
DELIVERY_OPTIONS = frozenset({"mode", "max-buffer-size"})
SHORT_ID_CHARACTERS = 12
MAX_TAG_CHARACTERS = 512
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,252})")
_IPV6 = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\]")
_FIELD = re.compile(r"\{\{\s*(.*?)\s*\}\}")


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """What happens when output comes faster than it can be handed on."""

    blocking: bool = False
    """It stays in the host's file, as long as there is room; else the oldest beyond `buffer_bytes` is dropped."""
    buffer_bytes: int = DEFAULT_BUFFER_BYTES


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a back end listens. `transport` is tcp, udp or tls."""

    transport: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.transport}://{host}:{self.port}"


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a container where its logs are handed on."""

    container_id: str
    """64 characters or fewer, as the task metadata endpoint tells it."""
    container_name: str
    """As the task metadata endpoint tells it (DockerName)."""
    image: str
    environment: Mapping[str, str] = {}
    """Without secrets."""
    labels: Mapping[str, str] = {}


def parse_delivery(options: Mapping[str, str]) -> Delivery:
    """Options `mode` and `max-buffer-size`. Raises `Invalid`."""
    mode = options.get("mode", "non-blocking")
    if mode not in ("blocking", "non-blocking"):
        raise Invalid("Log driver option mode must be blocking or non-blocking.")
    size = options.get("max-buffer-size")
    return Delivery(
        blocking=mode == "blocking",
        buffer_bytes=DEFAULT_BUFFER_BYTES if size is None else _buffer_bytes(size),
    )


def _buffer_bytes(text: str) -> int:
    try:
        return parse_size(text)
    except Invalid:
        raise Invalid("Log driver option max-buffer-size must be a size such as 25m.") from None


def parse_address(option: str, text: str, transports: Mapping[str, str], default_port: int) -> Address:
    """`scheme://host[:port]`, IPv6 addresses in brackets. `transports`: scheme to transport; "" for none given. Raises
    `Invalid` naming the option."""
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    if scheme in ("unix", "unixgram"):
        raise Invalid(
            f"{option} can't be a unix socket: logs are sent by the host, and its sockets are not for tasks. Give a TCP "
            f"address, or use awsfirelens."
        )
    if scheme not in transports:
        known = ", ".join(f"{s}://" for s in transports if s)
        raise Invalid(f"{option} {text[:100]!r} must begin with one of {known}.")
    literal = _IPV6.match(rest)
    host, tail = (literal.group(1), rest[literal.end() :]) if literal else (rest, "")
    if not literal:
        host, colon, port_text = rest.partition(":")
        tail = colon + port_text
    port = default_port if not tail else _port(tail)
    if port is None or not (literal or _HOST.fullmatch(host)):
        raise Invalid(f"{option} {text[:100]!r} is not an address such as host:{default_port}.")
    return Address(transport=transports[scheme], host=host, port=port)


def _port(tail: str) -> int | None:
    match = re.fullmatch(r":([0-9]{1,5})", tail)
    number = int(match.group(1)) if match else 0
    return number if 0 < number < 65536 else None


_FIELDS = (".ID", ".FullID", ".Name", ".ImageName", ".DaemonName")


def check_tag(template: str) -> None:
    """Raises `Invalid` for a tag that `render_tag` can't make."""
    if len(template) > MAX_TAG_CHARACTERS or not template.isprintable():
        raise Invalid(f"Log driver option tag can have at most {MAX_TAG_CHARACTERS} printable characters.")
    for field in _FIELD.findall(template):
        if field not in _FIELDS:
            known = ", ".join("{{" + f + "}}" for f in _FIELDS)
            raise Invalid(
                f"Log driver option tag has {{{{{field[:50]}}}}}, which hutch does not know: {known}."
            )


def render_tag(template: str, identity: Identity) -> str:
    """Docker's markup for log tags, as far as `check_tag` lets it pass."""
    values = {
        ".ID": identity.container_id[:SHORT_ID_CHARACTERS],
        ".FullID": identity.container_id,
        ".Name": identity.container_name,
        ".ImageName": identity.image,
        ".DaemonName": "hutch",
    }
    return _FIELD.sub(lambda m: values.get(m.group(1), ""), template)


def parse_names(text: str) -> tuple[str, ...]:
    """A list of names between commas, as options `env` and `labels` have it."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def extra_fields(
    names_of_env: tuple[str, ...], labels: tuple[str, ...], identity: Identity
) -> dict[str, str]:
    """What `labels` and `env` ask to be told with each line; a variable wins over a label of the same name."""
    found = {name: identity.labels[name] for name in labels if name in identity.labels}
    return found | {n: identity.environment[n] for n in names_of_env if n in identity.environment}


def parse_bool(option: str, text: str) -> bool:
    """Raises `Invalid` naming the option."""
    if text.lower() not in ("true", "false"):
        raise Invalid(f"Log driver option {option} must be true or false.")
    return text.lower() == "true"


def refuse_unknown(driver: str, options: Mapping[str, str], known: frozenset[str]) -> None:
    """Raises `Invalid` for an option that the driver does not have here."""
    unknown = sorted(set(options) - known)
    if unknown:
        raise Invalid(
            f"hutch's log driver {driver} has no option {unknown[0][:50]!r}; it has {', '.join(sorted(known))}."
        )
