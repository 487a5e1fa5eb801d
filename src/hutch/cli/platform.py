"""Commands about the platform itself: up, down, env, configure, doctor."""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from hutch.base.errors import Invalid
from hutch.cli.connection import AsJson, DataDir, PlatformAccess
from hutch.cli.firecracker_checks import firecracker_checks
from hutch.cli.jail_checks import jail_checks
from hutch.cli.output import console, print_json, print_table, reporting_errors
from hutch.client.errors import ClientError
from hutch.settings import SETTINGS, load_settings


def up(context: typer.Context) -> None:
    """Start the platform. Takes every setting as a flag: `hutch up --help` lists them."""
    if {"--help", "-h"} & set(context.args):
        _up_help()
        return
    with reporting_errors():
        detach, given = _parse_flags(context.args)
        try:
            settings = load_settings(given)
        except Invalid as error:
            raise typer.BadParameter(error.message) from None
        for setting in SETTINGS:
            os.environ[setting.variable] = str(getattr(settings, setting.name))
    # The platform is another program: this process becomes it, so that Ctrl-C and supervisors see the real thing.
    os.execv(sys.executable, [sys.executable, "-m", "hutch.apps.up", *(["--detach"] if detach else [])])


def _up_help() -> None:
    console.print(
        "Usage: hutch up [--detach] [SETTINGS]\n\nStart the platform, and run it until Ctrl-C, which stops its tasks, too. "
        "With --detach (-d) return when it is\nready; `hutch down` stops it.\n"
    )
    print_table(("FLAG", "DEFAULT", "MEANING"), [(s.flag, str(s.default) or '""', s.help) for s in SETTINGS])


def _parse_flags(arguments: list[str]) -> tuple[bool, dict[str, str]]:
    by_flag = {s.flag: s for s in SETTINGS}
    given: dict[str, str] = {}
    detach = False
    rest = list(arguments)
    while rest:
        flag, has_value, value = rest.pop(0).partition("=")
        if flag in ("--detach", "-d"):
            detach = True
            continue
        setting = by_flag.get(flag)
        if setting is None:
            raise typer.BadParameter(f"{flag} is no setting; `hutch up --help` lists them")
        if setting.type is bool and not has_value:
            value = "true"
        elif not has_value:
            if not rest:
                raise typer.BadParameter(f"{flag} needs a value")
            value = rest.pop(0)
        given[setting.name] = value
    return detach, given


def down(
    data_dir: DataDir = None,
    keep_tasks: Annotated[bool, typer.Option("--keep-tasks", help="Leave the tasks running.")] = False,
) -> None:
    """Stop the platform and its tasks, and remove all it made on the host."""
    with reporting_errors():
        settings = load_settings({"data_dir": data_dir})
    os.environ["HUTCH_DATA_DIR"] = settings.data_dir
    os.execv(
        sys.executable, [sys.executable, "-m", "hutch.apps.down", *(["--keep-tasks"] if keep_tasks else [])]
    )


def env(data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """Print the AWS_* variables that lead AWS tools to this platform: eval "$(hutch env)"."""
    with reporting_errors():
        access = PlatformAccess(data_dir)
    values = {
        "AWS_ENDPOINT_URL": access.endpoint,
        "AWS_ACCESS_KEY_ID": access.access_key_id,
        "AWS_SECRET_ACCESS_KEY": access.secret_access_key,
        "AWS_DEFAULT_REGION": access.region,
        "AWS_REGION": access.region,
        # CloudWatch Logs' live tail would otherwise look for a host named stream-127.0.0.1.
        "AWS_DISABLE_HOST_PREFIX_INJECTION": "true",
        "AWS_PAGER": "",
    }
    if json_output:
        print_json(values)
        return
    for name, value in values.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    # A session token of another account would make every signature wrong.
    sys.stdout.write("unset AWS_SESSION_TOKEN AWS_PROFILE\n")


def configure(
    data_dir: DataDir = None,
    profile: Annotated[str, typer.Option(help="Name of the profile.")] = "hutch",
) -> None:
    """Write an AWS profile for this platform (~/.aws/config and credentials)."""
    with reporting_errors():
        access = PlatformAccess(data_dir)
        directory = Path.home() / ".aws"
        directory.mkdir(mode=0o700, exist_ok=True)
        _write_profile(
            directory / "credentials",
            profile,
            {"aws_access_key_id": access.access_key_id, "aws_secret_access_key": access.secret_access_key},
        )
        section = profile if profile == "default" else f"profile {profile}"
        _write_profile(
            directory / "config", section, {"region": access.region, "endpoint_url": access.endpoint}
        )
    console.print(f"Profile {profile} is written: aws --profile {profile} ecs list-clusters")


def _write_profile(path: Path, section: str, values: dict[str, str]) -> None:
    """Set one section of an AWS configuration file. All else in it, comments too, is left as it is."""
    try:
        before = path.read_text()
    except FileNotFoundError:
        before = ""
    except (OSError, UnicodeDecodeError) as error:
        raise ClientError(f"{path} can't be read: {error}") from None
    temporary = path.with_name(path.name + ".hutch-tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as f:
        f.write(with_section(before, section, values))
    temporary.rename(path)


def with_section(text: str, section: str, values: dict[str, str]) -> str:
    """An ini file's text with these values in a section, which is appended if it is not there."""
    lines = text.splitlines()
    settings = [f"{name} = {value}" for name, value in values.items()]
    headers = [i for i, line in enumerate(lines) if line.startswith("[")]
    start = next((i for i in headers if lines[i].strip("[] \t").split() == section.split()), None)
    if start is None:
        lines += [*([""] if lines else []), f"[{section}]", *settings]
    else:
        end = next((i for i in headers if i > start), len(lines))
        # A setting that is replaced takes the indented lines that belong to it along.
        kept, replaced = [], False
        for line in lines[start + 1 : end]:
            if not line.startswith((" ", "\t")):
                replaced = line.partition("=")[0].strip() in values
            if not replaced:
                kept.append(line)
        lines[start + 1 : end] = [*settings, *kept]
    return "\n".join(lines) + "\n"


_PROGRAMS = (
    ("qemu-system-x86_64", "qemu-system-x86", "microVMs"),
    ("runc", "runc", "launch types EC2 and EXTERNAL"),
    ("conmon", "conmon", "launch types EC2 and EXTERNAL"),
    ("catatonit", "catatonit", "initProcessEnabled and pidMode of EC2 and EXTERNAL tasks"),
    ("mkfs.xfs", "xfsprogs", "volumes with an XFS file system"),
    ("skopeo", "skopeo", "image pulls"),
    ("umoci", "umoci", "unpacking images"),
    ("mkfs.erofs", "erofs-utils", "root disks"),
    ("mkfs.ext4", "e2fsprogs", "writable disks"),
    ("haproxy", "haproxy", "published ports"),
    ("nft", "nftables", "NAT and anti-spoofing"),
)
_FILE_SERVERS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")


def doctor(data_dir: DataDir = None, json_output: AsJson = False) -> None:
    """Say what this host lacks. Exit code 1 if something that is needed is missing."""
    with reporting_errors():
        settings = load_settings({"data_dir": data_dir})
    firecracker = firecracker_checks(settings.drivers, settings.firecracker_program, _search_path())
    checks = [*_host_checks(), *firecracker, *_space_checks(Path(settings.data_dir))]
    if json_output:
        print_json([{"check": c, "state": s, "detail": d} for c, s, d in checks])
    else:
        print_table(("", "CHECK", "DETAIL"), [(s, c, d) for c, s, d in checks])
    if any(state == "missing" for _, state, _ in checks):
        raise typer.Exit(1)


def _search_path() -> str:
    """Where programs are looked for."""
    return os.environ.get("PATH", "") + ":/usr/local/bin:/usr/sbin:/sbin"


def _host_checks() -> list[tuple[str, str, str]]:
    path = _search_path()
    found = [("root", "ok", "") if os.geteuid() == 0 else ("root", "missing", "run hutch as root")]
    for program, package, purpose in _PROGRAMS:
        where = shutil.which(program, path=path)
        found.append(
            (program, "ok", where) if where else (program, "missing", f"{purpose}: apt-get install {package}")
        )
    server = next((p for p in _FILE_SERVERS if os.access(p, os.X_OK)), "")
    lacking = (
        "file systems that tasks share (EFS): apt-get install qemu-system-common (Debian 12), or virtiofsd"
    )
    found.append(("virtiofsd", "ok", server) if server else ("virtiofsd", "missing", lacking))
    flags = Path("/proc/cpuinfo").read_text()
    if Path("/dev/kvm").exists() and (" vmx" in flags or " svm" in flags):
        found.append(("kvm", "ok", "microVMs run with hardware virtualisation (a probe guest decides)"))
    else:
        found.append(("kvm", "slower", "no hardware virtualisation: microVMs run in emulation"))
    for device, what in (("/dev/net/tun", "network of microVMs"), ("/dev/loop-control", "unpacking images")):
        exists = Path(device).exists()
        found.append(
            (device, "ok" if exists else "missing", "" if exists else f"{what}: load the kernel module")
        )
    return [*found, *jail_checks()]


def _space_checks(data_dir: Path) -> list[tuple[str, str, str]]:
    place = next(p for p in (data_dir, *data_dir.parents) if p.exists())
    free_gib = shutil.disk_usage(place).free / 2**30
    state = "ok" if free_gib > 5 else "missing"
    return [("disk", state, f"{free_gib:.0f} GiB free at {place}")]
