"""Every setting, declared once: flag, environment variable, help, default and documentation derive from here.

This is the only file that reads the environment.
"""

import ipaddress
import os
import typing
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from hutch.base.errors import Invalid


class Setting(msgspec.Struct, frozen=True, kw_only=True):
    """One declaration. `flag` is `--<name with dashes>`, the environment variable `HUTCH_<NAME>`."""

    name: str
    type: type
    default: Any
    help: str
    unit: str = ""
    check: Callable[[Any], str | None] | None = None
    """Returns what is wrong with a value, or None."""

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "HUTCH_" + self.name.upper()


def _at_least(low: float) -> Callable[[Any], str | None]:
    return lambda v: None if v >= low else f"must be at least {low:g}"


def _one_of(*allowed: str) -> Callable[[Any], str | None]:
    return lambda v: None if v in allowed else f"must be one of {', '.join(allowed)}"


def _digits(count: int) -> Callable[[Any], str | None]:
    return lambda v: None if len(v) == count and v.isdigit() else f"must be {count} digits"


def _host_port(value: str) -> str | None:
    host, _, port = value.rpartition(":")
    return None if host and port.isdigit() and int(port) < 65536 else "must be HOST:PORT"


_DRIVERS = ("microvm", "container", "firecracker", "fake")


def _driver_names(value: str) -> str | None:
    names = [n.strip() for n in value.split(",") if n.strip()]
    good = names and all(n in _DRIVERS for n in names)
    return None if good else f"must be names out of {', '.join(_DRIVERS)}, comma separated"


def _address_range(value: str) -> str | None:
    if value == "auto":
        return None
    try:
        ipaddress.IPv4Network(value)
    except ValueError as error:
        return f"must be auto, or an IPv4 range such as 172.31.0.0/16: {error}"
    return None


def _user_id_range(value: str) -> str | None:
    first, _, last = value.partition("-")
    if not (first.isdecimal() and last.isdecimal()):
        return "must be FIRST-LAST"
    if not 1000 <= int(first) < int(last) < 2**32 - 1:
        return "must be a range of user ids from 1000 on"
    return None


SETTINGS: tuple[Setting, ...] = (
    Setting(name="data_dir", type=str, default="/var/lib/hutch", help="Where all state lives."),
    Setting(
        name="run_dir",
        type=str,
        default="",
        help="Sockets and pid files; empty: /run/hutch/<hash of the data dir>.",
    ),
    Setting(
        name="listen",
        type=str,
        default="127.0.0.1:4566",
        check=_host_port,
        help="Address of the API (AWS endpoint).",
    ),
    Setting(name="region", type=str, default="us-east-1", help="AWS region that the platform answers for."),
    Setting(
        name="account_id",
        type=str,
        default="000000000000",
        check=_digits(12),
        help="AWS account id, 12 digits.",
    ),
    Setting(
        name="vpc_cidr",
        type=str,
        default="auto",
        help="Address range of the default VPC, which a new data directory gets; auto: 172.31.0.0/16, or the next free one.",
        check=_address_range,
    ),
    Setting(
        name="ingress_address",
        type=str,
        default="127.0.0.1",
        help="Host address on which published container ports are reachable.",
    ),
    Setting(
        name="ingress_ports",
        type=str,
        default="20000-29999",
        help="Range from which host ports are chosen for published container ports.",
    ),
    Setting(
        name="drivers",
        type=str,
        default="microvm,container",
        help="Drivers to offer, by preference: microvm (launch type FARGATE), container (EC2 and EXTERNAL, on the "
        "host's own kernel), firecracker (FARGATE, on hosts with KVM), fake (all, for tests).",
        check=_driver_names,
    ),
    Setting(
        name="firecracker_program",
        type=str,
        default="firecracker",
        help="Firecracker's program, by its name on the PATH or by its path; for the driver of that name.",
    ),
    Setting(
        name="host_clusters",
        type=str,
        default="*",
        help="Clusters in which this host is a container instance, comma separated; *: all.",
    ),
    Setting(
        name="host_silence_s",
        type=float,
        default=15.0,
        unit="s",
        check=_at_least(1),
        help="A host whose agent says nothing for so long counts as not connected: it gets no tasks, those that it has go on.",
    ),
    Setting(
        name="host_lost_after_s",
        type=float,
        default=900.0,
        unit="s",
        check=_at_least(0),
        help="A host that is not connected for so long is lost: its tasks are given up as STOPPED, and ended should it come "
        "back; 0: never by itself (see hutch host lost).",
    ),
    Setting(
        name="task_api",
        type=str,
        default="on",
        check=_one_of("on", "off"),
        help="API for tasks: containers get AWS_ENDPOINT_URL, an address at which they reach this platform's API. "
        "Requests are signed and authorised there as everywhere.",
    ),
    Setting(
        name="cpu_overcommit",
        type=float,
        default=4.0,
        check=_at_least(1),
        help="How many times a host's CPU may be promised. Memory is never overcommitted.",
    ),
    Setting(
        name="memory_reserve_mib",
        type=int,
        default=1024,
        unit="MiB",
        check=_at_least(0),
        help="Host memory that tasks can't have.",
    ),
    Setting(
        name="host_memory_mib",
        type=int,
        default=0,
        unit="MiB",
        check=_at_least(0),
        help="Memory that this host offers; 0: all that the machine has.",
    ),
    Setting(
        name="placement",
        type=str,
        default="wait",
        check=_one_of("wait", "fail"),
        help="A task that can't be placed: wait in the queue, or fail RunTask as AWS does.",
    ),
    Setting(
        name="strict_aws",
        type=bool,
        default=False,
        help="Refuse what AWS Fargate refuses (odd sizes, bigger disks, long stop timeouts, privileged).",
    ),
    Setting(
        name="accelerator",
        type=str,
        default="auto",
        check=_one_of("auto", "kvm", "tcg"),
        help="How microVMs run; auto: KVM if a probe guest boots with it, else emulation.",
    ),
    Setting(
        name="container_runtime",
        type=str,
        default="auto",
        check=_one_of("auto", "runc", "crun", "runsc"),
        help="OCI runtime of the container driver; auto: crun on a host with cgroups v2, else runc; runsc is gVisor.",
    ),
    Setting(
        name="cpu_burst",
        type=str,
        default="auto",
        check=_one_of("auto", "on", "off"),
        help="May a task take CPU that the host has idle, beyond its share? auto: yes, unless --strict-aws. A single task "
        "asks for a cap with the tag hutch:cpuBurst=off.",
    ),
    Setting(
        name="vm_disk_mib_per_s",
        type=int,
        default=0,
        unit="MiB/s",
        check=_at_least(0),
        help="Most that a microVM may read from, and write to, the host's disk; 0: no limit.",
    ),
    Setting(
        name="vm_user_ids",
        type=str,
        default="1879048192-1895825407",
        check=_user_id_range,
        help="User ids, first and last, that nobody else on this host has: each microVM's monitor runs as one of them.",
    ),
    Setting(
        name="file_systems_dir",
        type=str,
        default="",
        help="Where the content of file systems (EFS) is, a directory for each; empty: in the data directory. On storage that "
        "several hosts mount, tasks of all of them share it.",
    ),
    Setting(
        name="warm_pool",
        type=int,
        default=0,
        check=_at_least(0),
        help="Restored microVMs that are kept ready for tasks of the sizes in use; 0: none, every launch restores one.",
    ),
    Setting(
        name="warm_pool_memory_mib",
        type=int,
        default=2048,
        unit="MiB",
        check=_at_least(0),
        help="Most memory that microVMs of the warm pool may have together.",
    ),
    Setting(
        name="threat_detection",
        type=bool,
        default=False,
        help="Watch what processes in microVMs do, and report what the threat rules find as events. Off: nothing of it "
        "runs anywhere.",
    ),
    Setting(
        name="threat_rules",
        type=str,
        default="",
        help="File of threat rules, in a subset of Falco's rule language; empty: hutch's own rules.",
    ),
    Setting(
        name="guest_dir",
        type=str,
        default="",
        help="Directory of the guest image (vmlinuz, initrd.img); empty: the one that make setup built.",
    ),
    Setting(
        name="stopped_task_retention_s",
        type=int,
        default=30 * 24 * 3600,
        unit="s",
        check=_at_least(3600),
        help="How long stopped tasks stay visible.",
    ),
    Setting(
        name="kept_disks_mib",
        type=int,
        default=4096,
        unit="MiB",
        check=_at_least(0),
        help="Most room that the disks of stopped tasks may take on a host, for `hutch exec` into them; 0: none is kept.",
    ),
    Setting(
        name="kept_disks_hours",
        type=int,
        default=24,
        unit="h",
        check=_at_least(1),
        help="How long the disk of a stopped task is kept; never longer than the task stays visible.",
    ),
    Setting(
        name="image_cache_gib",
        type=int,
        default=20,
        unit="GiB",
        check=_at_least(1),
        help="Image content kept on the host beyond what tasks use.",
    ),
    Setting(
        name="prefetch_images",
        type=bool,
        default=False,
        help="Make the images of a task definition ready on all hosts when it is registered, in the background.",
    ),
    Setting(
        name="insecure_registries",
        type=str,
        default="",
        help="Registries (host:port, comma separated) spoken to without TLS; loopback ones always are.",
    ),
    Setting(
        name="registry_auth_file",
        type=str,
        default="",
        help="Registry credentials in the format of Docker's config.json, as `skopeo login --authfile` writes it.",
    ),
    Setting(
        name="log_level",
        type=str,
        default="INFO",
        check=_one_of("DEBUG", "INFO", "WARNING", "ERROR"),
        help="How much hutch itself logs.",
    ),
)

_BY_NAME = {s.name: s for s in SETTINGS}

if typing.TYPE_CHECKING:

    class Settings(msgspec.Struct, frozen=True, kw_only=True):
        """The parsed settings, frozen. Kept equal to `SETTINGS` by a test."""

        data_dir: str = ""
        run_dir: str = ""
        listen: str = ""
        region: str = ""
        account_id: str = ""
        vpc_cidr: str = ""
        ingress_address: str = ""
        ingress_ports: str = ""
        drivers: str = ""
        firecracker_program: str = ""
        host_clusters: str = ""
        host_silence_s: float = 0.0
        host_lost_after_s: float = 0.0
        task_api: str = ""
        cpu_overcommit: float = 0.0
        memory_reserve_mib: int = 0
        host_memory_mib: int = 0
        placement: str = ""
        strict_aws: bool = False
        accelerator: str = ""
        container_runtime: str = ""
        cpu_burst: str = ""
        vm_disk_mib_per_s: int = 0
        vm_user_ids: str = ""
        file_systems_dir: str = ""
        warm_pool: int = 0
        warm_pool_memory_mib: int = 0
        threat_detection: bool = False
        threat_rules: str = ""
        guest_dir: str = ""
        stopped_task_retention_s: int = 0
        kept_disks_mib: int = 0
        kept_disks_hours: int = 0
        image_cache_gib: int = 0
        prefetch_images: bool = False
        insecure_registries: str = ""
        registry_auth_file: str = ""
        log_level: str = ""

else:
    Settings = msgspec.defstruct(
        "Settings",
        [(s.name, s.type, s.default) for s in SETTINGS],
        frozen=True,
        kw_only=True,
        module=__name__,
    )


def load_settings(
    given: Mapping[str, Any] | None = None, environment: Mapping[str, str] | None = None
) -> "Settings":
    """Settings from flags (`given`, None values ignored), else the environment, else the defaults.

    Raises `Invalid` naming the flag or variable, the value and what is wrong with it.
    """
    environment = os.environ if environment is None else environment
    unknown = set(given or {}) - set(_BY_NAME)
    if unknown:
        raise Invalid(f"unknown setting {sorted(unknown)[0]!r}")
    values: dict[str, Any] = {}
    for setting in SETTINGS:
        value: Any = (given or {}).get(setting.name)
        source = setting.flag
        if value is None and setting.variable in environment:
            value, source = environment[setting.variable], setting.variable
        if value is None:
            continue
        values[setting.name] = _parse(setting, value, source)
    return Settings(**values)


_WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _parse(setting: Setting, value: Any, source: str) -> Any:
    try:
        parsed: Any = msgspec.convert(value, setting.type, strict=False)
    except msgspec.ValidationError:
        raise Invalid(f"{source}: {value!r} is not {_WORDS[setting.type]}") from None
    if setting.check and (problem := setting.check(parsed)):
        raise Invalid(f"{source}: {value!r} {problem}")
    return parsed
