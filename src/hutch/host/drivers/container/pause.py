"""The process that holds the namespaces which the containers of a task share: a container of its own with an empty root,
in which nothing but a static program waits and reaps. It has no conmon: it says nothing, and ends with its sandbox."""

import asyncio
import os
from pathlib import Path
from typing import Any

import msgspec

from hutch.host.drivers.container.plan import PAUSE, Places
from hutch.host.drivers.container.rooms import make_bundle
from hutch.host.drivers.container.runtime import Runtime
from hutch.host.drivers.contract import DriverError, RootImage
from hutch.host.drivers.oci_config import OciContext, build_oci_config
from hutch.host.kernel.process import ProcessRef, is_alive, process_ref
from hutch.host.kernel.run import start_child
from hutch.wire.taskspec import ContainerSpec

_START_TIMEOUT_S = 30.0
_FILE = "pause.json"


def pause_config(group: str, program: str, root: Path) -> dict[str, Any]:
    """Its `config.json`: no capabilities, no volumes, one process."""
    container = ContainerSpec(
        name=PAUSE, container_id=PAUSE, image="", entry_point=("/pause", "-P"), capabilities_drop=("ALL",)
    )
    context = OciContext(
        cgroup_path=f"{group}/{PAUSE}",
        hostname="pause",
        namespaces=tuple({"type": t} for t in ("mount", "uts", "cgroup", "network", "pid", "ipc")),
        files={},
        volumes={},
        owns_kernel=False,
        hard_nofile=1024,
        pids=16,
    )
    config = build_oci_config(container, RootImage(reference="", digest="", config={}), context)
    bind = {"destination": "/pause", "type": "bind", "source": program, "options": ["bind", "ro"]}
    config["mounts"] = [bind, *config["mounts"]]
    config["root"] = {"path": str(root), "readonly": False}
    return config


async def start_pause(runtime: Runtime, places: Places, group: str, identity: str, program: str) -> None:
    """Start it and remember its process. Raises `DriverError`; what was made is the caller's to remove."""
    bundle = places.start(PAUSE, 1)
    root = bundle / "root"
    await asyncio.to_thread(make_bundle, bundle, pause_config(group, program, root))
    await asyncio.to_thread(root.mkdir)
    pid_file = bundle / "pid"
    words = ["run", "--detach", "--bundle", str(bundle), "--pid-file", str(pid_file), identity]
    await _run_detached(runtime.command(places.runtime, *words), bundle / "runtime.log")
    ref = process_ref(int(pid_file.read_text()))
    if ref is None:
        raise DriverError("NamespacesNotMade", "the process that holds the task's namespaces ended at once")
    (places.box / _FILE).write_bytes(msgspec.json.encode(ref))


async def _run_detached(argv: list[str], output: Path) -> None:
    """Run a program that leaves a process behind, which keeps the output open: so it is a file."""
    fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        child = await start_child(argv, stdout=fd, stderr=fd)
    finally:
        os.close(fd)
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            code = await child.wait()
    except BaseException:
        await child.kill()
        raise
    if code != 0:
        said = (await asyncio.to_thread(output.read_bytes))[-2000:].decode("utf-8", "replace").strip()
        raise DriverError(
            "NamespacesNotMade",
            f"the namespaces that the task's containers share can't be made: {said or f'exit code {code}'}",
            aws_prefix="ResourceInitializationError",
        )


def pause_pid(places: Places) -> int:
    """Its process, which is certainly still that one. Raises `DriverError` if it is gone."""
    try:
        ref = msgspec.json.decode((places.box / _FILE).read_bytes(), type=ProcessRef)
    except (OSError, msgspec.DecodeError):
        ref = None
    if ref is None or not is_alive(ref):
        raise DriverError(
            "NamespacesGone",
            "the process that holds the namespaces which the task's containers share is gone",
            fix="start the task again",
            aws_prefix="CannotStartContainerError",
        )
    return ref.pid
