"""Restored microVMs, side by side with bare cold boots of the same kernel: launches with the warm pool off and on, the
restore itself, and what an idle task costs the host's memory. Called by run.py."""

import asyncio
import importlib.util
import io
import json
import shutil
import socket
import statistics
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.platform import Platform

from hutch.base.clock import SystemClock
from hutch.client.client import HutchClient
from hutch.host.drivers.microvm.qemu import kernel_arguments
from hutch.host.kernel.tsc import host_tsc_khz
from hutch.wire.guest import CONTROL, FrameDecoder, encode_frame

ROOT = Path(__file__).resolve().parents[2]
WEB = {
    "family": "web",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": "256",
    "memory": "512",
    "containerDefinitions": [
        {"name": "web", "image": "localhost/web:latest", "portMappings": [{"containerPort": 80}]}
    ],
}
PAUSE_S = 4.0
"""Between launches with the warm pool on: a second of quiet, then a spare is made."""


def static_server(out: Path) -> Path:
    """An image of one file: a static busybox, which serves a page."""
    busybox = shutil.which("busybox")
    assert busybox is not None, "install busybox-static"
    root = io.BytesIO()
    with tarfile.open(fileobj=root, mode="w") as tar:
        for name in ("bin", "www"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for name, data in (("bin/httpd", Path(busybox).read_bytes()), ("www/index.html", b"It runs.\n")):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    plain = out.with_suffix(".root")
    plain.write_bytes(root.getvalue())
    described = importlib.util.spec_from_file_location("web_image", ROOT / "examples/web/build.py")
    assert described is not None and described.loader is not None
    web_image = importlib.util.module_from_spec(described)
    described.loader.exec_module(web_image)
    web_image.CONFIG = {
        "Cmd": ["/bin/httpd", "-f", "-p", "80", "-h", "/www"],
        "WorkingDir": "/",
        "StopSignal": "SIGKILL",
    }
    web_image.write_archive(plain, out)
    return out


def bare_boot_s(directory: Path, tsc_khz: int) -> float:
    """QEMU with the same kernel, its arguments and initramfs, no disks and no network, until PID 1 answers. (Without the
    counter's frequency one boot of six hangs on a busy host.)"""
    path = directory / "agent.sock"
    path.unlink(missing_ok=True)
    guest = ROOT / "build/guest"
    started = time.monotonic()
    qemu = subprocess.Popen(
        ["qemu-system-x86_64", "-M", "microvm,acpi=on", "-accel", "tcg", "-cpu", "max,la57=off", "-m", "616", "-nodefaults",
         "-no-user-config", "-display", "none", "-no-reboot", "-kernel", str(guest / "vmlinuz"), "-initrd",
         str(guest / "initrd.img"), "-append", kernel_arguments("tcg", tsc_khz), "-device", "virtio-serial-device",
         "-chardev", f"socket,id=c,path={path},server=on,wait=off", "-device",
         "virtserialport,chardev=c,name=hutch.agent"]
    )  # fmt: skip
    try:
        with socket.socket(socket.AF_UNIX) as channel:
            channel.settimeout(20)
            while channel.connect_ex(str(path)):
                time.sleep(0.005)
            hello = {"id": 1, "op": "hello", "version": 1, "time_ns": time.time_ns(), "entropy": "00" * 64}
            channel.sendall(b"\0" + encode_frame(CONTROL, 0, json.dumps(hello).encode()))
            decoder = FrameDecoder()
            while not decoder.feed(channel.recv(65536)):
                pass
        return time.monotonic() - started
    finally:
        qemu.kill()
        qemu.wait()


class Launches:
    """One platform and what its launches took."""

    def __init__(self, directory: Path, warm_pool: int) -> None:
        directory.mkdir()
        self.directory = directory
        self.platform = Platform(directory, warm_pool=str(warm_pool))
        self.warm_pool = warm_pool
        self.times: list[float] = []
        self.phases: dict[str, list[float]] = {}
        self.pss_mb: list[float] = []
        self.client: HutchClient | None = None

    def start(self) -> None:
        self.platform.start()
        self.platform.hutch(
            "image", "import", str(static_server(self.directory / "static.tar")), "localhost/web:latest"
        )
        env = json.loads(self.platform.hutch("env", "--json").stdout)
        key = (env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"])
        self.client = HutchClient(*key, "us-east-1")
        self.client.call("ecs", "RegisterTaskDefinition", WEB)
        self.launch()
        self.times.clear()
        self.phases.clear()

    def launch(self) -> None:
        """RunTask accepted to the first HTTP 200 from the container; the task is stopped afterwards."""
        if self.warm_pool:
            time.sleep(PAUSE_S)
        assert self.client is not None
        started = time.monotonic()
        answer = self.client.call("ecs", "RunTask", {"taskDefinition": "web", "launchType": "FARGATE"})
        self._spent("API: RunTask", started)
        task_id = answer["tasks"][0]["taskArn"].rpartition("/")[2]
        seen = self.client.native("GET", f"/tasks/{task_id}/wait", {"until": "RUNNING,STOPPED"})
        assert seen["last_status"] == "RUNNING", seen
        self._spent("API: to RUNNING", started)
        _answer(f"http://{seen['address']}/")
        self._spent("API: to HTTP 200", started)
        self.times.append(time.monotonic() - started)
        self._note(task_id)
        self.platform.hutch("stop", task_id)

    def _spent(self, name: str, started: float) -> None:
        self.phases.setdefault(name, []).append(time.monotonic() - started)

    def _note(self, task_id: str) -> None:
        why = json.loads(self.platform.hutch("why", task_id, "--json").stdout)
        for phase in why["phases"]:
            if phase["ended_at"] is not None:
                spent = phase["ended_at"] - phase["started_at"]
                self.phases.setdefault(phase["name"], []).append(spent)
        pids = [p for p in self.platform.pids("qemu-system") if _is_task(p, task_id)]
        self.pss_mb.append(sum(_pss_mb(p) for p in pids))

    def end(self) -> None:
        if self.client is not None:
            self.client.close()
        self.platform.stop()


def _answer(url: str) -> None:
    deadline = time.monotonic() + 15
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.005)


def _is_task(pid: int, task_id: str) -> bool:
    return task_id in Path(f"/proc/{pid}/cmdline").read_text()


def _pss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(x.split()[1]) for x in lines if x.startswith("Pss:")) * 1024 / 1e6


def bench_restore(directory: Path, runs: int, row: Callable[..., Any]) -> None:
    """Prints the rows. A bare boot follows each launch: first those with the pool off, then those with it on."""
    cold, warm = Launches(directory / "cold", 0), Launches(directory / "warm", 1)
    tsc_khz = asyncio.run(host_tsc_khz(SystemClock())) or 0
    boots = []
    for side in (cold, warm):
        try:
            side.start()
            for _ in range(runs):
                side.launch()
                boots.append(bare_boot_s(directory, tsc_khz))
        finally:
            side.end()
    boot = statistics.median(boots)
    row(f"microVM, medians of {runs}, s", "hutch", "bare boot", "ratio")
    for label, values in (
        ("RunTask to HTTP 200, restored", cold.times),
        ("RunTask to HTTP 200, warm pool", warm.times),
        ("jail made, up to QEMU's execution", cold.phases["jail"]),
        ("template restored, QEMU to agent", cold.phases["restore"]),
    ):
        took = statistics.median(values)
        row(f"  {label}", f"{took:.3f}", f"{boot:.3f}", f"{took / boot:.2f}")
    row("  memory of an idle task that is the only one (PSS), MB", f"{statistics.median(cold.pss_mb):.0f}")
    for name, side in (("restored", cold), ("warm", warm)):
        spent = {n: round(statistics.median(v) * 1000) for n, v in side.phases.items()}
        row(f"  phases, ms, {name}", " ".join(f"{n} {ms}" for n, ms in spent.items()))
