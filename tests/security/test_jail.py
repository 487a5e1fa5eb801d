"""A VM monitor that its guest has taken over. The very launcher, limits and devices of QEMU's jail, with a program in it
that tries to get out."""

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.microvm.jail import Confinement, JailRequest, MonitorJail
from hutch.host.kernel.cgroup import (
    CGROUP_MOUNT,
    CgroupLimits,
    host_cgroups,
    platform_cgroup,
    task_cgroup,
    whole_disk,
)
from hutch.host.kernel.jail import JailBind, Jailer, JailSpec
from hutch.host.kernel.jail_root import JailRoot, prepare_root
from hutch.host.kernel.process import ProcessRef, find_processes, is_alive, kill_and_wait, wait_gone
from hutch.host.kernel.users import LEASES, UserLeases

pytestmark = pytest.mark.needs("root", "qemu")
PYTHON = Path("/usr/bin/python3").resolve()
LIBRARY = Path("/usr/lib") / PYTHON.name
FILE_BYTES = 8 << 20
PAUSE = "import signal; signal.pause()"


class Prison:
    """A platform's jails, with a Python in them in place of QEMU."""

    def __init__(self, directory: Path, root: JailRoot) -> None:
        self.directory = directory
        self.root = root
        self.platform_id = f"t{secrets.token_hex(3)}"
        self.jail = MonitorJail(
            platform_id=self.platform_id, state_dir=directory / "state", confinement=Confinement()
        )

    def request(self, name: str, code: str, *arguments: str, fds: tuple[int, ...] = ()) -> JailRequest:
        return JailRequest(
            name=f"hutch-{self.platform_id}-{name}",
            argv=["python3", "-IBc", code, *arguments, f"hutch-{self.platform_id}-{name}"],
            pass_fds=fds,
            output_path=str(self.directory / f"{name}.out"),
            accelerator="tcg",
            vcpus=1,
            memory_mib=64,
            cpu_units=256,
            largest_file_bytes=FILE_BYTES,
        )

    def running(self, name: str, code: str, *, jail: MonitorJail | None = None) -> ProcessRef:
        """One that has told, from inside, that it runs."""
        read_end, write_end = os.pipe()
        try:
            request = self.request(name, f"import os; os.write({write_end}, b'r')\n{code}", fds=(write_end,))
            ref = (jail or self.jail).start(request, self.root)
        finally:
            os.close(write_end)
        with open(read_end, "rb") as told:
            assert told.read(1) == b"r", self.output(name)
        return ref

    def output(self, name: str) -> str:
        return (self.directory / f"{name}.out").read_text()

    def left(self) -> list[str]:
        """What is on the host of this platform's jails."""
        found = [str(p) for p in CGROUP_MOUNT.glob(f"**{platform_cgroup(self.platform_id)}")]
        found += [str(p) for p in CGROUP_MOUNT.glob(f"*{platform_cgroup(self.platform_id)}")]
        found += [str(p) for p in LEASES.glob("*") if self.platform_id in os.readlink(p)]
        found += [
            line for line in Path("/proc/mounts").read_text().splitlines() if str(self.directory) in line
        ]
        return found + [str(p) for p in find_processes(f"hutch-{self.platform_id}-a")]


@pytest.fixture(scope="module")
def python_root(tmp_path_factory: pytest.TempPathFactory) -> JailRoot:
    """A jail's root as QEMU's, with Python's library besides."""
    place = tmp_path_factory.mktemp("root")
    extra = sorted(LIBRARY.glob("lib-dynload/_ctypes.*.so"))
    root = asyncio.run(prepare_root(place, PYTHON.name, extra=extra, devices=("/dev/urandom",)))
    ignored = shutil.ignore_patterns("__pycache__", "lib-dynload", "test", "dist-packages", "ensurepip")
    shutil.copytree(LIBRARY, root.directory / str(LIBRARY)[1:], dirs_exist_ok=True, ignore=ignored)
    return root


@pytest.fixture
async def prison(tmp_path: Path, python_root: JailRoot) -> AsyncIterator[Prison]:
    made = Prison(tmp_path, python_root)
    yield made
    for name in ("a", "b"):
        await made.jail.remove(f"hutch-{made.platform_id}-{name}")
    made.jail.close()
    assert made.left() == []


@contextlib.contextmanager
def host_secrets(directory: Path) -> Iterator[dict[str, Any]]:
    """What a host has: a data directory, sockets of every kind with a listener."""
    secret = directory / "data" / "secret"
    secret.parent.mkdir(mode=0o755)
    secret.write_text("secret")
    abstract = f"@hutch-{secrets.token_hex(4)}"
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(socket.create_server(("", 0)))
        local = stack.enter_context(socket.socket(socket.AF_UNIX))
        local.bind(str(directory / "agent.sock"))
        hidden = stack.enter_context(socket.socket(socket.AF_UNIX))
        hidden.bind(abstract.replace("@", "\0"))
        for listener in (local, hidden):
            listener.listen(5)
        yield {
            "paths": [str(secret), "/etc/passwd", "/sys/", "/dev/mem", "/home/", "/proc/sys/kernel/hostname",
                      "/proc/kcore", "/run/"],
            "tcp": [("127.0.0.1", tcp.getsockname()[1]), ("198.51.100.1", 22)],
            "unix": [str(directory / "agent.sock"), abstract],
        }  # fmt: skip


async def test_a_monitor_that_was_taken_over_reaches_nothing(prison: Prison, tmp_path: Path) -> None:
    neighbour = prison.running("b", PAUSE)
    disk = os.open(tmp_path / "scratch.img", os.O_RDWR | os.O_CREAT)
    code = (Path(__file__).parent / "probe.py").read_text()
    with host_secrets(tmp_path) as there:
        given = {**there, "fds": [disk], "pids": [neighbour.pid, os.getpid()], "memory_bytes": 1 << 30}
        ref = prison.jail.start(prison.request("a", code, json.dumps(given), fds=(disk,)), prison.root)
        assert await wait_gone(ref) == 0, prison.output("a")
    found: dict[str, str] = json.loads(prison.output("a"))
    allowed = {name: result for name, result in found.items() if result.startswith("ok")}
    assert allowed == {}
    assert found["root"] == "bin dev lib lib64 proc sbin usr"
    # From within a chroot the kernel tells the whole path.
    assert found["descriptors"].endswith(str(tmp_path / "scratch.img"))
    # The last one is the directory that was listed.
    assert len(found["open"].split()) == 5 and str(disk) in found["open"].split(), found["open"]
    assert found["processes"] == "1" and found["mounts"] == "3" and found["environment"] == "{'PWD': '/'}"
    assert found["user"].endswith("[]") and "(0," not in found["user"]
    assert int(found["bomb"]) < 1 + 96, "as many threads as QEMU may need, and no more"
    assert found["eat"] == "killed by 9"
    assert int(found["grow"]) == FILE_BYTES
    assert is_alive(neighbour), "neither its neighbour's bombs nor its hunger touched it"
    os.close(disk)
    await kill_and_wait(neighbour)


async def test_no_two_jails_have_the_same_user(prison: Prison) -> None:
    refs = [prison.running(name, PAUSE) for name in ("a", "b")]
    status = [Path(f"/proc/{ref.pid}/status").read_text() for ref in refs]
    users = {line for text in status for line in text.splitlines() if line.startswith("Uid:")}
    assert len(users) == 2
    for text in status:
        capabilities = [line.split()[1] for line in text.splitlines() if line.startswith("Cap")]
        assert {int(c, 16) for c in capabilities} == {0}
        assert "NoNewPrivs:\t1" in text
    ours = {
        name: os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup")
    }
    theirs = [{name: os.readlink(f"/proc/{r.pid}/ns/{name}") for name in ours} for r in refs]
    for name, namespace in ours.items():
        assert len({namespace, *(t[name] for t in theirs)}) == 3, f"{name} namespaces are shared"


async def test_what_can_not_be_jailed_does_not_run_and_leaves_no_child(
    prison: Prison, tmp_path: Path
) -> None:
    broken = JailRoot(directory=tmp_path / "nowhere", program=prison.root.program)
    with pytest.raises(DriverError, match="nowhere: No such file"):
        prison.jail.start(prison.request("a", "pass"), broken)
    missing = JailRoot(directory=prison.root.directory, program="/usr/bin/no-such-program")
    ref = prison.jail.start(prison.request("a", "pass"), missing)
    assert await wait_gone(ref) == 127
    assert "no-such-program: No such file" in prison.output("a")
    children = [
        Path(f"/proc/{pid}/comm").read_text().strip()
        for task in Path("/proc/self/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    assert "bwrap" not in children


async def test_a_jail_is_found_and_removed_by_its_name_alone(prison: Prison, tmp_path: Path) -> None:
    """As after a crash of ours: nothing is known but the name."""
    fork = (
        "import os, signal; [os.fork() for _ in range(3)]; signal.signal(15, signal.SIG_IGN); signal.pause()"
    )
    ref = prison.running("a", fork)
    assert prison.left() != []
    later = MonitorJail(
        platform_id=prison.platform_id, state_dir=tmp_path / "state", confinement=Confinement()
    )
    await later.remove(f"hutch-{prison.platform_id}-a")
    assert not is_alive(ref)
    later.close()
    assert prison.left() == []
    assert await wait_gone(ref) in (-9, None)


async def test_a_host_proves_that_it_can_jail_before_it_offers_to(prison: Prison, tmp_path: Path) -> None:
    await prison.jail.check()
    prison.jail.close()
    assert prison.left() == []
    (root,) = (tmp_path / "state" / "jail").iterdir()
    stale = root.with_name("root-0123456789abcdef")
    stale.mkdir()
    (root / "usr/bin/qemu-system-x86_64").unlink()
    later = MonitorJail(
        platform_id=prison.platform_id, state_dir=tmp_path / "state", confinement=Confinement()
    )
    with pytest.raises(DriverError, match="qemu-system-x86_64: No such file"):
        await later.check()
    assert not stale.exists(), "what was before an upgrade goes when nothing runs in it"
    later.close()
    assert prison.left() == []


BURN = "import time; b = time.monotonic()\nwhile time.process_time() < 0.35: pass\nprint(time.monotonic() - b, flush=True)"


async def test_a_capped_task_gets_its_share_and_no_more(prison: Prison, tmp_path: Path) -> None:
    """A quarter of a CPU for 0.35 s of work: never done before 1.2 s, on however idle a host."""
    capped = MonitorJail(
        platform_id=prison.platform_id,
        state_dir=tmp_path / "state",
        # What is on no disk (a tmpfs, an overlay) can't be limited.
        confinement=Confinement(cap_cpu=True, disk_bytes_per_s=100 << 20 if whole_disk(tmp_path) else 0),
    )
    await capped.root()
    assert capped.caps_cpu
    read_end, write_end = os.pipe()
    waits = f"import os; os.read({read_end}, 1)\n"
    ref = capped.start(prison.request("a", waits + BURN, fds=(read_end,)), prison.root)
    capped.cap_cpu(f"hutch-{prison.platform_id}-a", 256)
    os.write(write_end, b"x")
    for fd in (read_end, write_end):
        os.close(fd)
    assert await wait_gone(ref) == 0
    assert float(prison.output("a")) > 1.0
    used_ns = capped.cpu_ns(f"hutch-{prison.platform_id}-a")
    assert used_ns is not None and used_ns > 350_000_000, "told also when all of it has ended"
    await capped.remove(f"hutch-{prison.platform_id}-a")
    free = prison.jail.start(prison.request("b", BURN), prison.root)
    assert await wait_gone(free) == 0
    group = task_cgroup(prison.platform_id, "b")[1:]
    statistics = [CGROUP_MOUNT / "cpu" / group / "cpu.stat", CGROUP_MOUNT / group / "cpu.stat"]
    text = next(p for p in statistics if p.exists()).read_text()
    assert "nr_throttled 0\n" in text, "without a cap it may take what the host has idle"


async def test_what_is_bound_is_all_it_sees_of_the_host(prison: Prison, tmp_path: Path) -> None:
    """As Firecracker's jail has it: a directory of its own, files to read, the host's network without sockets for it; and a
    device for the members of a group, as /dev/kvm is."""
    device = Path(f"/dev/hutch-{prison.platform_id}")
    os.mknod(device, stat.S_IFCHR, os.makedev(1, 3))
    try:
        os.chown(device, 0, 4242)
        device.chmod(0o660)
        await _what_is_bound(prison, tmp_path, str(device))
    finally:
        device.unlink()


async def _what_is_bound(prison: Prison, tmp_path: Path, device: str) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "given").write_text("content")
    base = await prepare_root(
        tmp_path / "root",
        PYTHON.name,
        extra=sorted(LIBRARY.glob("lib-dynload/_ctypes.*.so")),
        devices=("/dev/urandom", device),
        files=("/disks/disk0",),
        directories=("/run",),
    )
    library = prison.root.directory / str(LIBRARY)[1:]
    ignored = shutil.ignore_patterns("lib-dynload")
    shutil.copytree(library, base.directory / str(LIBRARY)[1:], dirs_exist_ok=True, ignore=ignored)
    code = """
import json, os, socket, sys
def outcome(work):
    try:
        work()
        return "done"
    except OSError as error:
        return type(error).__name__ if error.errno not in (30, 97) else os.strerror(error.errno)
listener = socket.socket(socket.AF_UNIX)
print(json.dumps({
    "given": open("/disks/disk0").read(),
    "bind": outcome(lambda: listener.bind("/run/api.sock")),
    "write given": outcome(lambda: open("/disks/disk0", "w")),
    "write root": outcome(lambda: open("/new", "w")),
    "internet": outcome(lambda: socket.socket(socket.AF_INET)),
    "links": sorted(os.listdir("/proc/self/ns")) and os.readlink("/proc/self/ns/net"),
    "root": sorted(os.listdir("/")),
    "groups": os.getgroups(),
    "device": outcome(lambda: open(sys.argv[1], "wb").write(b"x")),
}))
"""
    name = f"hutch-{prison.platform_id}-b"
    spec = JailSpec(
        name=name,
        arguments=["-IBc", code, device, name],
        pass_fds=(),
        output_path=str(prison.directory / "b.out"),
        root=base,
        devices=("/dev/urandom", device),
        binds=(
            JailBind(source=str(tmp_path / "own"), place="/run", writable=True),
            JailBind(source=str(tmp_path / "given"), place="/disks/disk0"),
        ),
        host_network=True,
        limits=CgroupLimits(cpu_units=256, memory_bytes=64 << 20, pids=8),
        largest_file_bytes=FILE_BYTES,
    )
    leases = UserLeases(*Confinement().user_ids)
    jailer = Jailer(platform_id=prison.platform_id, users=leases, cgroups=host_cgroups())
    try:
        ref = await asyncio.to_thread(jailer.start, spec)
        assert await wait_gone(ref) == 0, prison.output("b")
    finally:
        await jailer.remove(name)
        jailer.close()
    told = json.loads(prison.output("b"))
    assert told["given"] == "content" and told["bind"] == "done"
    assert (tmp_path / "own" / "api.sock").is_socket()
    assert (told["device"], told["groups"]) == ("done", [4242])
    assert told["write given"] == told["write root"] == os.strerror(30)
    assert told["internet"] == os.strerror(97)
    assert told["links"] == os.readlink("/proc/self/ns/net")
    assert not {"work", "home", "etc", "tmp"} & set(told["root"])
    assert (tmp_path / "given").read_text() == "content"
    assert (tmp_path / "own").stat().st_uid >= Confinement().user_ids[0]
