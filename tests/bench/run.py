"""`make bench`: hutch beside what it is to be compared with, in one run; medians. Nothing here asserts a time.

api      calls per second of hutch (fake driver) and of moto_server, same client, 8 processes
launch   RunTask to the first HTTP 200 for FARGATE, beside a bare QEMU boot of the same kernel to its agent
restore  the same with a static server: restored from a template, from the warm pool, and what it costs in memory
suspend  what suspend, resume and fork take of microVMs that serve HTTP, and what is on the disk
density  many tasks asked for at once, and what an idle one costs the host's memory
container  RunTask to RUNNING for EC2, beside a bare `runc run` of the same bundle and `podman run` of the same image
idle     start to ready, and the resident memory of the idle control plane
"""

import argparse
import json
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.bench.density import bench_density  # noqa: E402
from tests.bench.load import LoadClient  # noqa: E402
from tests.bench.restore import bench_restore  # noqa: E402
from tests.bench.suspend import bench_suspend  # noqa: E402
from tests.support.platform import BIN, Platform, free_port  # noqa: E402

from hutch.client.client import HutchClient  # noqa: E402
from hutch.wire.guest import CONTROL, FrameDecoder, encode_frame  # noqa: E402

CLIENTS = 8
SECONDS = 1.2
ROUNDS = 5
DEFINITION = {
    "family": "bench",
    "networkMode": "awsvpc",
    "requiresCompatibilities": ["FARGATE"],
    "cpu": "256",
    "memory": "512",
    "containerDefinitions": [{"name": "main", "image": "x", "essential": True, "memory": 128}],
}


def row(*cells: str) -> None:
    print(f"{cells[0]:44} " + " ".join(f"{c:>14}" for c in cells[1:]), flush=True)


def client_process(
    endpoint: str, key: str, secret: str, operation: str, given: dict[str, Any], counts: Any
) -> None:
    done = 0
    client = LoadClient(endpoint, key, secret, operation, given)
    client.call()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        client.call()
        done += 1
    client.close()
    counts.put(done)


def rate(endpoint: str, key: str, secret: str, operation: str, given: dict[str, Any]) -> float:
    """Calls per second that eight clients get out of a server together."""
    counts: Any = multiprocessing.Queue()
    started = [
        multiprocessing.Process(target=client_process, args=(endpoint, key, secret, operation, given, counts))
        for _ in range(CLIENTS)
    ]
    for process in started:
        process.start()
    total = sum(counts.get(timeout=60) for _ in started)
    for process in started:
        process.join()
    return float(total / SECONDS)


def wait_for(check: Callable[[], Any], timeout_s: float = 60) -> Any:
    end = time.monotonic() + timeout_s
    while True:
        try:
            return check()
        except OSError:
            if time.monotonic() > end:
                raise
            threading.Event().wait(0.02)


def bench_api(directory: Path) -> None:
    platform = Platform(directory, drivers="fake", host_memory_mib=str(2**40), cpu_overcommit="1000000")
    platform.start()
    moto_port = free_port()
    moto = subprocess.Popen(
        [str(BIN / "moto_server"), "-p", str(moto_port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: socket.create_connection(("127.0.0.1", moto_port)).close())
        env = json.loads(platform.hutch("env", "--json").stdout)
        servers = {
            "hutch": (env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"]),
            "moto": (f"http://127.0.0.1:{moto_port}", "AKIATEST", "secret"),
        }
        prepare_moto(servers["moto"])
        for name in servers:
            with HutchClient(*servers[name], "us-east-1") as client:
                client.call("ecs", "CreateCluster", {"clusterName": "default"})
                client.call("ecs", "RegisterTaskDefinition", DEFINITION)
        calls: list[tuple[str, dict[str, Any]]] = [
            ("DescribeClusters", {"clusters": ["default"]}),
            ("RegisterTaskDefinition", DEFINITION),
            ("RunTask", {"cluster": "default", "taskDefinition": "bench", "launchType": "FARGATE"}),
        ]
        row("API, 8 clients, calls/s", "hutch", "moto_server", "ratio")
        with_subnet = {"awsvpcConfiguration": {"subnets": [MOTO_SUBNET], "securityGroups": []}}
        for operation, given in calls:
            theirs = {**given, "networkConfiguration": with_subnet} if operation == "RunTask" else given
            pairs = [
                (rate(*servers["hutch"], operation, given), rate(*servers["moto"], operation, theirs))
                for _ in range(ROUNDS)
            ]
            ours, moto_rate = (statistics.median(r) for r in zip(*pairs, strict=True))
            row(f"  {operation}", f"{ours:.0f}", f"{moto_rate:.0f}", f"{ours / moto_rate:.1f}")
            if operation == "RunTask":
                wait_until_all_run(servers["hutch"])
    finally:
        moto.terminate()
        moto.wait()
        platform.stop()


def wait_until_all_run(server: tuple[str, str, str]) -> None:
    """What was acknowledged is really run: every task of the benchmark."""
    with HutchClient(*server, "us-east-1") as client:
        started = time.monotonic()
        while True:
            cluster = client.call("ecs", "DescribeClusters", {"clusters": ["default"]})["clusters"][0]
            if not cluster["pendingTasksCount"]:
                break
            threading.Event().wait(0.05)
        row(
            "  tasks that run then; after how long, s",
            str(cluster["runningTasksCount"]),
            f"{time.monotonic() - started:.1f}",
        )


MOTO_SUBNET = ""


def prepare_moto(server: tuple[str, str, str]) -> None:
    """moto's RunTask wants one of its own subnets."""
    global MOTO_SUBNET
    import boto3

    ec2 = boto3.client(
        "ec2",
        endpoint_url=server[0],
        aws_access_key_id=server[1],
        aws_secret_access_key=server[2],
        region_name="us-east-1",
    )
    MOTO_SUBNET = ec2.describe_subnets()["Subnets"][0]["SubnetId"]


def bare_boot_s(directory: Path) -> float:
    """QEMU with the same kernel and initramfs, no disks and no network, until PID 1 answers."""
    path = directory / "agent.sock"
    path.unlink(missing_ok=True)
    guest = ROOT / "build/guest"
    started = time.monotonic()
    qemu = subprocess.Popen(
        ["qemu-system-x86_64", "-M", "microvm,acpi=on", "-accel", "tcg", "-cpu", "max", "-m", "512", "-nodefaults",
         "-no-user-config", "-display", "none", "-no-reboot", "-kernel", str(guest / "vmlinuz"), "-initrd",
         str(guest / "initrd.img"), "-append", "console=ttyS0 quiet panic=-1", "-device", "virtio-serial-device",
         "-chardev", f"socket,id=c,path={path},server=on,wait=off", "-device",
         "virtserialport,chardev=c,name=hutch.agent"]
    )  # fmt: skip
    try:
        channel = socket.socket(socket.AF_UNIX)
        wait_for(lambda: channel.connect(str(path)))
        hello = {
            "id": 1,
            "op": "hello",
            "version": 1,
            "time_ns": time.time_ns(),
            "entropy": os.urandom(64).hex(),
        }
        channel.sendall(b"\0" + encode_frame(CONTROL, 0, json.dumps(hello).encode()))
        decoder = FrameDecoder()
        while not decoder.feed(channel.recv(65536)):
            pass
        return time.monotonic() - started
    finally:
        qemu.kill()
        qemu.wait()


def launch_s(platform: Platform, client: HutchClient) -> float:
    """RunTask accepted to the first HTTP 200 from the container, image cached; the task is stopped afterwards."""
    started = time.monotonic()
    answer = client.call("ecs", "RunTask", {"taskDefinition": "web", "launchType": "FARGATE"})
    task_id = answer["tasks"][0]["taskArn"].rpartition("/")[2]
    seen = client.native("GET", f"/tasks/{task_id}/wait", {"until": "RUNNING,STOPPED"})
    assert seen["last_status"] == "RUNNING", seen
    wait_for(lambda: urllib.request.urlopen(f"http://{seen['address']}/", timeout=10).read(), 30)
    took = time.monotonic() - started
    platform.hutch("stop", task_id)
    return took


def bench_launch(directory: Path, runs: int) -> None:
    platform = Platform(directory)
    platform.start()
    try:
        platform.hutch("image", "import", str(ROOT / "build/images/web.tar"), "localhost/web:latest")
        env = json.loads(platform.hutch("env", "--json").stdout)
        with HutchClient(
            env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], "us-east-1"
        ) as client:
            web = {"name": "web", "image": "localhost/web:latest", "portMappings": [{"containerPort": 80}]}
            client.call(
                "ecs",
                "RegisterTaskDefinition",
                {**DEFINITION, "family": "web", "containerDefinitions": [web]},
            )
            launch_s(platform, client)
            pairs = [(launch_s(platform, client), bare_boot_s(directory)) for _ in range(runs)]
    finally:
        platform.stop()
    launches, boots = zip(*pairs, strict=True)
    row(f"launch, median of {runs}, s", "hutch", "bare boot", "ratio")
    launch, boot = statistics.median(launches), statistics.median(boots)
    row("  RunTask to HTTP 200 (FARGATE, emulated)", f"{launch:.2f}", f"{boot:.2f}", f"{launch / boot:.2f}")


def running_s(platform: Platform, client: HutchClient, family: str) -> tuple[float, str]:
    """RunTask sent to RUNNING told, image cached, and the task's id: it runs on until the platform is stopped."""
    started = time.monotonic()
    answer = client.call("ecs", "RunTask", {"taskDefinition": family, "launchType": "EC2"})
    task_id = str(answer["tasks"][0]["taskArn"].rpartition("/")[2])
    seen = client.native("GET", f"/tasks/{task_id}/wait", {"until": "RUNNING,STOPPED"})
    took = time.monotonic() - started
    assert seen["last_status"] == "RUNNING", seen
    return took, task_id


def bare_runc_s(platform: Platform, task_id: str, directory: Path) -> float:
    """`runc run` of what the task's container was made from, with `true` in its place."""
    bundle = platform.data_dir / "host/tasks" / task_id / "box/starts/main/1"
    config = json.loads((bundle / "config.json").read_text())
    config["process"]["args"] = ["true"]
    config["linux"]["cgroupsPath"] = f"/hutch-bench-{task_id}"
    (directory / "config.json").write_text(json.dumps(config))
    started = time.monotonic()
    subprocess.run(
        ["runc", "run", "--bundle", str(directory), f"bench-{task_id}"], check=True, stdin=subprocess.DEVNULL
    )
    return time.monotonic() - started


class Podman:
    """podman with a storage of its own; None in place of a time if it is not installed."""

    def __init__(self, directory: Path) -> None:
        self._command = [
            "podman", "--root", str(directory / "root"), "--runroot", str(directory / "run"),
            "--cgroup-manager", "cgroupfs", "--events-backend", "none", "--runtime", "runc",
        ]  # fmt: skip
        self.there = shutil.which("podman") is not None

    def load(self, archive: Path) -> None:
        subprocess.run(
            [*self._command, "load", "--quiet", "--input", str(archive)], check=True, capture_output=True
        )

    def run_s(self) -> float:
        """`podman run --rm` of `true` without a network; its default limits may be more than this host lets it set."""
        started = time.monotonic()
        limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        command = [
            *self._command,
            "run",
            "--rm",
            "--network",
            "none",
            *limits,
            "localhost/web:latest",
            "true",
        ]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return time.monotonic() - started

    def close(self) -> None:
        subprocess.run([*self._command, "system", "reset", "--force"], check=True, capture_output=True)


def bench_container(directory: Path, runs: int) -> None:
    platform, podman = Platform(directory, drivers="container"), Podman(directory / "podman")
    platform.start()
    try:
        platform.hutch("image", "import", str(ROOT / "build/images/web.tar"), "localhost/web:latest")
        if podman.there:
            podman.load(ROOT / "build/images/web.tar")
        env = json.loads(platform.hutch("env", "--json").stdout)
        with HutchClient(
            env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], "us-east-1"
        ) as client:
            main = {
                "name": "main",
                "image": "localhost/web:latest",
                "memory": 64,
                "command": ["sleep", "1000"],
            }
            times: dict[str, list[float]] = {"none": [], "bridge": [], "runc": [], "podman": []}
            for mode in ("none", "bridge"):
                definition = {"family": f"bench-{mode}", "networkMode": mode, "containerDefinitions": [main]}
                client.call("ecs", "RegisterTaskDefinition", definition)
            for round_number in range(runs + 1):
                for mode in ("none", "bridge"):
                    took, task_id = running_s(platform, client, f"bench-{mode}")
                    if mode == "none":
                        times["runc"].append(bare_runc_s(platform, task_id, directory))
                    times[mode].append(took)
                if podman.there:
                    times["podman"].append(podman.run_s())
                if not round_number:
                    times = {name: [] for name in times}
    finally:
        if podman.there:
            podman.close()
        platform.stop()
    row(f"containers, median of {runs}, ms", "hutch", "runc run", "podman run")
    bare = statistics.median(times["runc"]) * 1000
    other = f"{statistics.median(times['podman']) * 1000:.0f}" if podman.there else "not installed"
    for mode, what in (("none", "without a network"), ("bridge", "on the bridge")):
        row(
            f"  RunTask to RUNNING (EC2), {what}",
            f"{statistics.median(times[mode]) * 1000:.0f}",
            f"{bare:.0f}",
            other,
        )
        other = ""


def bench_idle(directory: Path) -> None:
    platform = Platform(directory)
    times = []
    for _ in range(3):
        started = time.monotonic()
        platform.start()
        times.append(time.monotonic() - started)
        (pid,) = platform.pids("hutch.apps.control")
        status = Path(f"/proc/{pid}/status").read_text()
        resident_kib = int(next(x for x in status.splitlines() if x.startswith("VmRSS")).split()[1])
        platform.stop()
    row("idle", "figure")
    row("  hutch up --detach to ready, s (median of 3)", f"{statistics.median(times):.2f}")
    row("  control plane, resident, MB", f"{resident_kib / 1024:.0f}")


PARTS: dict[str, Callable[[Path, int], None]] = {
    "idle": lambda directory, runs: bench_idle(directory),
    "api": lambda directory, runs: bench_api(directory),
    "launch": bench_launch,
    "restore": lambda directory, runs: bench_restore(directory, runs, row),
    "suspend": lambda directory, runs: bench_suspend(directory / "suspend", row, runs),
    "density": lambda directory, runs: bench_density(directory / "density", row),
    "container": lambda directory, runs: bench_container(directory, 3 * runs),
}
"""What SPECIFICATION.md names, in the order in which `make bench` runs it."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--only", choices=tuple(PARTS))
    arguments = parser.parse_args()
    for name, part in PARTS.items():
        if arguments.only in (None, name):
            with tempfile.TemporaryDirectory(prefix="hutch-bench-") as directory:
                part(Path(directory), arguments.runs)


if __name__ == "__main__":
    main()
