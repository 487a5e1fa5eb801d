"""The configuration of a task's log router (FireLens): what each container's `awsfirelens` options ask for. Pure.

Its parts, in this order: where logs come in, what is added to each record, what the user's own file says, where each
container's records go.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.logdrivers.options import DELIVERY_OPTIONS

DRIVER = "awsfirelens"
FLUENT_BIT, FLUENTD = "fluentbit", "fluentd"
CONFIG_PATHS = {FLUENT_BIT: "/fluent-bit/etc/fluent-bit.conf", FLUENTD: "/fluentd/etc/fluent.conf"}
INCLUDE_PATHS = {FLUENT_BIT: "/fluent-bit/etc/external.conf", FLUENTD: "/fluentd/etc/external.conf"}
"""Where a router finds a file of its user's that is kept as an object."""
MAX_INCLUDE_BYTES = 16 * 1024
SOCKET_DIRECTORY = "/var/run"
SOCKET_NAME = "fluent.sock"
PORT = 24224
BUFFER_LIMIT = "log-driver-buffer-limit"
_OWN_OPTIONS = DELIVERY_OPTIONS | {"include-pattern", "exclude-pattern", BUFFER_LIMIT}
_OUTPUT_KEYS = {FLUENT_BIT: "Name", FLUENTD: "@type"}
_KEY = re.compile(r"[A-Za-z0-9_.@-]{1,128}")
_INPUT_BUFFER = "25MB"
"""What fluent-bit holds in memory of logs that its outputs do not take, as ECS sets it."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A container whose logs go to the router."""

    container: str
    options: Mapping[str, str]
    secrets: Mapping[str, str] = {}
    """Option name to the router's environment variable that holds its value."""


class RouterConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a router's configuration is made from."""

    kind: str
    cluster: str
    task_arn: str
    task_definition: str
    sources: Sequence[Source]
    adds_metadata: bool = True
    include_path: str = ""
    """A file with more of it, of the router's image or kept as an object."""
    listens: bool = True
    """Also on the loopback interface, for logger libraries in the other containers."""


def log_tag(container: str, task_id: str) -> str:
    """The tag of a container's records, as on ECS."""
    return f"{container}-firelens-{task_id}"


def secret_variable(container_index: int, option: str) -> str:
    """The environment variable of the router with the value of a container's secret option."""
    return f"HUTCH_FIRELENS_{container_index}_" + re.sub(r"[^A-Za-z0-9]", "_", option).upper()


def check_options(kind: str, options: Mapping[str, str], secrets: Sequence[str]) -> None:
    """What can be told of a container's options before the router sees them. Raises `Invalid`."""
    key = _OUTPUT_KEYS[kind]
    if options and not any(_same(kind, name, key) for name in options) and set(options) - _OWN_OPTIONS:
        raise Invalid(
            f"Log driver awsfirelens with a {kind} router requires options: {key} (the output plugin)."
        )
    for name, value in options.items():
        if not _KEY.fullmatch(name) or "\n" in value or "\r" in value:
            raise Invalid(
                f"Log driver awsfirelens: option {name[:50]!r} can't be written into a configuration."
            )
    for name in secrets:
        if not _KEY.fullmatch(name) or name in _OWN_OPTIONS or _same(kind, name, key):
            raise Invalid(f"Log driver awsfirelens: option {name[:50]!r} can't be a secret.")


def config_text(config: RouterConfig) -> str:
    """The whole file."""
    return _fluent_bit(config) if config.kind == FLUENT_BIT else _fluentd(config)


def _metadata(config: RouterConfig) -> dict[str, str]:
    if not config.adds_metadata:
        return {}
    return {
        "ecs_cluster": config.cluster,
        "ecs_task_arn": config.task_arn,
        "ecs_task_definition": config.task_definition,
    }


def _same(kind: str, name: str, key: str) -> bool:
    """fluent-bit's keys have no case, fluentd's have."""
    return name == key or (kind == FLUENT_BIT and name.lower() == key.lower())


def _outputs(config: RouterConfig, source: Source) -> tuple[str, dict[str, str]]:
    """(the plugin, its options) of a container; ("", {}) if the user's own file says where its records go."""
    key = _OUTPUT_KEYS[config.kind]
    plugin = next((v for n, v in source.options.items() if _same(config.kind, n, key)), "")
    given = {
        n: v for n, v in source.options.items() if n not in _OWN_OPTIONS and not _same(config.kind, n, key)
    }
    return plugin, given


# -- fluent-bit


def _fluent_bit(config: RouterConfig) -> str:
    inputs = {"Name": "forward", "Mem_Buf_Limit": _INPUT_BUFFER, "unix_path": _socket_path()}
    parts = [_section("INPUT", inputs.items())]
    if config.listens:
        parts.append(_section("INPUT", {"Name": "forward", "Listen": "127.0.0.1", "Port": str(PORT)}.items()))
    for source in config.sources:
        for option, key in (("include-pattern", "Regex"), ("exclude-pattern", "Exclude")):
            if option in source.options:
                rule = {
                    "Name": "grep",
                    "Match": _match(source.container),
                    key: f"log {source.options[option]}",
                }
                parts.append(_section("FILTER", rule.items()))
    if fields := _metadata(config):
        records = [("Record", f"{name} {value}") for name, value in fields.items()]
        parts.append(_section("FILTER", [("Name", "record_modifier"), ("Match", "*"), *records]))
    if config.include_path:
        parts.append(f"@INCLUDE {config.include_path}\n")
    for source in config.sources:
        plugin, options = _outputs(config, source)
        if plugin:
            secret = {name: f"${{{variable}}}" for name, variable in source.secrets.items()}
            head = {"Name": plugin, "Match": _match(source.container)}
            parts.append(_section("OUTPUT", (head | options | secret).items()))
    return "\n".join(parts)


def _section(kind: str, entries: Iterable[tuple[str, str]]) -> str:
    lines = [f"    {name} {value}" for name, value in entries]
    return "\n".join([f"[{kind}]", *lines, ""])


def _match(container: str) -> str:
    return f"{container}-firelens*"


# -- fluentd


def _fluentd(config: RouterConfig) -> str:
    parts = [_block("source", "", {"@type": "unix", "path": _socket_path()})]
    if config.listens:
        parts.append(_block("source", "", {"@type": "forward", "bind": "127.0.0.1", "port": str(PORT)}))
    for source in config.sources:
        for option, kind in (("include-pattern", "regexp"), ("exclude-pattern", "exclude")):
            if option in source.options:
                rule = _block(kind, "", {"key": "log", "pattern": f"/{source.options[option]}/"})
                parts.append(_block("filter", _pattern(source.container), {"@type": "grep"}, rule))
    if fields := _metadata(config):
        record = _block("record", "", fields)
        parts.append(_block("filter", "**", {"@type": "record_transformer"}, record))
    if config.include_path:
        parts.append(f"@include {config.include_path}\n")
    for source in config.sources:
        plugin, options = _outputs(config, source)
        if plugin:
            secret = {name: f"\"#{{ENV['{variable}']}}\"" for name, variable in source.secrets.items()}
            parts.append(_block("match", _pattern(source.container), {"@type": plugin} | options | secret))
    return "\n".join(parts)


def _block(name: str, argument: str, entries: Mapping[str, str], inner: str = "") -> str:
    lines = [f"{key} {value}" for key, value in entries.items()] + inner.splitlines()
    head = f"<{name} {argument}>" if argument else f"<{name}>"
    return "\n".join([head, *(f"  {line}" for line in lines), f"</{name}>", ""])


def _pattern(container: str) -> str:
    return f"{container}-firelens**"


def _socket_path() -> str:
    return f"{SOCKET_DIRECTORY}/{SOCKET_NAME}"
