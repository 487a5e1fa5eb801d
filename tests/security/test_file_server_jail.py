"""A file server that its guest took over: root of a user namespace, in a jail. A program in its place tries to get out."""

import asyncio
import json
import os
import secrets
import shutil
from pathlib import Path

import pytest

from hutch.host.drivers.file_trees import FIRST_ID, ID_COUNT
from hutch.host.drivers.microvm.file_servers import LARGEST_FILE_BYTES
from hutch.host.drivers.microvm.jail import Confinement
from hutch.host.kernel.cgroup import CgroupLimits, host_cgroups
from hutch.host.kernel.jail import JailBind, Jailer, JailSpec
from hutch.host.kernel.jail_root import NSENTER, prepare_root
from hutch.host.kernel.process import wait_gone
from hutch.host.kernel.users import UserLeases

pytestmark = pytest.mark.needs("root", "qemu")
PYTHON = Path("/usr/bin/python3").resolve()
LIBRARY = Path("/usr/lib") / PYTHON.name
TRIES = """
import ctypes, json, os, socket, stat
libc = ctypes.CDLL(None, use_errno=True)
def outcome(work):
    try:
        return f"ok: {work()}"
    except OSError as error:
        return os.strerror(error.errno)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
print(json.dumps({
    "files": outcome(lambda: sorted(os.listdir("/share"))),
    "give away": outcome(lambda: os.chown("/share/own", 1000, 1000)),
    "outer root's": outcome(lambda: open("/share/of-root", "w")),
    "outer root": outcome(lambda: os.setuid(4294967294)),
    "beyond its ids": outcome(lambda: os.chown("/share/own", 70000, 0)),
    "device": outcome(lambda: os.mknod("/share/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))),
    "mount": outcome(lambda: call("mount", b"none", b"/share", b"tmpfs", 0, None)),
    "namespace": outcome(lambda: call("unshare", 0x10000000)),
    "root": sorted(os.listdir("/")),
    "write root": outcome(lambda: open("/new", "w")),
    "host setting": outcome(lambda: open("/proc/sys/kernel/core_pattern", "w")),
    "internet": outcome(lambda: socket.socket(socket.AF_INET)),
    "processes": sorted(int(p) for p in os.listdir("/proc") if p.isdigit()),
}))
"""


async def test_it_reaches_its_own_files_and_nothing_else(tmp_path: Path) -> None:
    platform_id = f"t{secrets.token_hex(3)}"
    share = tmp_path / "private" / "share"
    share.mkdir(parents=True)
    (tmp_path / "private").chmod(0o700)
    for name, owner in (("own", FIRST_ID), ("of-root", 0)):
        (share / name).touch(mode=0o600)
        os.chown(share / name, owner, owner)
    os.chown(share, FIRST_ID, FIRST_ID)
    root = await prepare_root(
        tmp_path / "root",
        PYTHON.name,
        extra=[Path(NSENTER), *sorted(LIBRARY.glob("lib-dynload/_ctypes.*.so"))],
        devices=(),
        directories=("/share",),
    )
    ignored = shutil.ignore_patterns("lib-dynload", "site-packages", "__pycache__", "test")
    shutil.copytree(LIBRARY, root.directory / str(LIBRARY)[1:], dirs_exist_ok=True, ignore=ignored)
    name, output = f"hutch-{platform_id}-x.fs0", tmp_path / "out"
    spec = JailSpec(
        name=name,
        arguments=["-IBc", TRIES],
        pass_fds=(),
        output_path=str(output),
        root=root,
        binds=(JailBind(source=str(share), place="/share", writable=True),),
        limits=CgroupLimits(cpu_units=256, memory_bytes=64 << 20, pids=8),
        largest_file_bytes=LARGEST_FILE_BYTES,
        inner_ids=(FIRST_ID, ID_COUNT),
    )
    leases = UserLeases(*Confinement().user_ids)
    jailer = Jailer(platform_id=platform_id, users=leases, cgroups=host_cgroups())
    try:
        ref = await asyncio.to_thread(jailer.start, spec)
        assert await wait_gone(ref) == 0, output.read_text()
    finally:
        await jailer.remove(name)
        jailer.close()
    told = json.loads(output.read_text())
    assert told.pop("processes") == [1]
    assert set(told.pop("root")) <= {"bin", "sbin", "lib", "lib64", "usr", "proc", "share"}
    assert told == {
        "files": "ok: ['of-root', 'own']",
        "give away": "ok: None",
        "outer root's": "Permission denied",
        "outer root": "Invalid argument",
        "beyond its ids": "Invalid argument",
        "device": "Operation not permitted",
        "mount": "Operation not permitted",
        "namespace": "Operation not permitted",
        "write root": "Read-only file system",
        "host setting": "Permission denied",
        "internet": "Address family not supported by protocol",
    }
    assert (share / "own").stat().st_uid == FIRST_ID + 1000
