"""How many microVMs a host takes: many asked for at once, and what each costs the host's memory while it is idle. Called
by run.py; by itself with the number of tasks: `python -m tests.bench.density 40`."""

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.restore import WEB, static_server
from tests.support.platform import Platform

from hutch.client.client import HutchClient

AT_ONCE = 20
IDLE_S = 20.0
"""After which a task counts as idle."""
PROMISED_MIB = 120_000
"""Memory that the platform may promise here: what tasks really take is what is to be found out."""


class Host:
    """What the whole machine and the processes of one platform use now."""

    def __init__(self, platform: Platform) -> None:
        self._platform = platform
        self.free_at_start_mb = available_mb()

    def used_mb(self) -> float:
        """Of the machine, since the start: page cache that can be given up does not count."""
        return self.free_at_start_mb - available_mb()

    def vms(self) -> list[dict[str, float]]:
        """Of each VM's process, in MB: PSS and its parts."""
        return [u for p in self._platform.pids("qemu-system") if (u := rollup_mb(p))]


def available_mb() -> float:
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemAvailable:"))
    return int(line.split()[1]) * 1024 / 1e6


def rollup_mb(pid: int) -> dict[str, float]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {x.split(":")[0]: int(x.split()[1]) * 1024 / 1e6 for x in lines}


def bench_density(directory: Path, row: Callable[..., Any], count: int = AT_ONCE) -> None:
    """Prints the rows."""
    directory.mkdir(exist_ok=True)
    platform = Platform(directory, warm_pool="0", host_memory_mib=str(PROMISED_MIB), cpu_overcommit="100")
    platform.start()
    try:
        platform.hutch(
            "image", "import", str(static_server(directory / "static.tar")), "localhost/web:latest"
        )
        env = json.loads(platform.hutch("env", "--json").stdout)
        key = (env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"])
        with HutchClient(*key, "us-east-1") as client:
            client.call("ecs", "RegisterTaskDefinition", WEB)
            _run(client, 1)  # makes the template
            host = Host(platform)
            begun = time.monotonic()
            tasks = _run(client, count)
            took_s = time.monotonic() - begun
            row(f"{count} FARGATE tasks (256, 512) asked for at once", "hutch")
            row("  all RUNNING after, s", f"{took_s:.2f}")
            _print_split(client, tasks, row)
            time.sleep(IDLE_S)
            vms = host.vms()
            pss = [v["Pss"] for v in vms]
            row("  idle task: PSS of its processes, MB", f"{statistics.median(pss):.1f}")
            parts = ("Pss_Anon", "Pss_Shmem", "Pss_File", "AnonHugePages")
            row("    of that, MB", " ".join(f"{p} {statistics.median(v[p] for v in vms):.1f}" for p in parts))
            row("  host memory taken by one more, MB", f"{host.used_mb() / count:.1f}")
            row("  100 such tasks, GiB", f"{host.used_mb() / count * 100 * 1e6 / 2**30:.1f}")
    finally:
        platform.stop()


def _run(client: HutchClient, count: int) -> list[str]:
    """Ask for so many tasks, and wait until all run."""
    tasks: list[str] = []
    for first in range(0, count, 10):
        given = {"taskDefinition": "web", "launchType": "FARGATE", "count": min(10, count - first)}
        tasks += [t["taskArn"].rpartition("/")[2] for t in client.call("ecs", "RunTask", given)["tasks"]]
    for task in tasks:
        while True:
            seen = client.native("GET", f"/tasks/{task}/wait", {"until": "RUNNING,STOPPED"})
            if seen["last_status"] in ("RUNNING", "STOPPED"):
                break
        assert seen["last_status"] == "RUNNING", seen
    return tasks


def _print_split(client: HutchClient, tasks: list[str], row: Callable[..., Any]) -> None:
    spent: dict[str, list[float]] = {}
    for task in tasks:
        for phase in client.native("GET", f"/tasks/{task}/why")["phases"]:
            if phase["ended_at"] is not None:
                spent.setdefault(phase["name"], []).append(phase["ended_at"] - phase["started_at"])
    text = " ".join(f"{n} {statistics.median(v):.2f}/{max(v):.2f}" for n, v in spent.items())
    row("  phases, median/longest, s", text)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        bench_density(Path(scratch) / "density", lambda *cells: print(*cells, flush=True), int(sys.argv[1]))
