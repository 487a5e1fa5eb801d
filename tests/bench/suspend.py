"""Suspend, resume and fork of microVMs that serve HTTP: what each takes, and what is on the disk. Called by run.py; also
by itself: `python -m tests.bench.suspend`."""

import json
import statistics
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bench.restore import ROOT, WEB
from tests.support.platform import Platform

from hutch.client.client import HutchClient

SIZES = ((256, 256), (256, 512), (512, 1024))
"""(CPU units, MiB)."""
ROUNDS = 5
FORKS = 2


def bench_suspend(directory: Path, row: Callable[..., Any], rounds: int = ROUNDS) -> None:
    """Prints the rows."""
    directory.mkdir(exist_ok=True)
    platform = Platform(directory, warm_pool="0")
    platform.start()
    try:
        image = directory / "web.tar"
        _build_image(image)
        platform.hutch("image", "import", str(image), "localhost/web:latest")
        env = json.loads(platform.hutch("env", "--json").stdout)
        key = (env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"])
        row(
            f"microVMs serving HTTP, medians of {rounds}",
            "suspend, s", "on disk, MB", "resume, s", "to HTTP 200", f"fork x{FORKS}, s", "to HTTP 200",
        )  # fmt: skip
        with HutchClient(*key, "us-east-1") as client:
            for cpu, memory in SIZES:
                seen = _Size(platform, client, cpu, memory).measure(rounds)
                row(f"  {memory} MiB", *(f"{statistics.median(v):.3f}" for v in seen))
    finally:
        platform.stop()


def _build_image(path: Path) -> None:
    path.write_bytes((ROOT / "build/images/web.tar").read_bytes())


class _Size:
    """One size of task, measured."""

    def __init__(self, platform: Platform, client: HutchClient, cpu: int, memory: int) -> None:
        self._platform = platform
        self._client = client
        definition = {**WEB, "family": f"web{memory}", "cpu": str(cpu), "memory": str(memory)}
        client.call("ecs", "RegisterTaskDefinition", definition)
        self._family = f"web{memory}"

    def measure(self, rounds: int) -> tuple[list[float], ...]:
        """Suspend s, MB on disk, resume s, resume to HTTP 200 s, fork s, fork to the last HTTP 200 s."""
        answer = self._client.call(
            "ecs", "RunTask", {"taskDefinition": self._family, "launchType": "FARGATE"}
        )
        task = answer["tasks"][0]["taskArn"].rpartition("/")[2]
        url = self._url(task)
        for _ in range(5):
            get(url)
        seen: tuple[list[float], ...] = ([], [], [], [], [], [])
        for _ in range(rounds):
            seen[0].append(self._took("POST", f"/tasks/{task}/suspend"))
            seen[1].append(self._on_disk_mb(task))
            begun = time.monotonic()
            seen[2].append(self._took("POST", f"/tasks/{task}/resume"))
            get(url)
            seen[3].append(time.monotonic() - begun)
            self._fork(task, seen)
        self._stop(task)
        return seen

    def _fork(self, task: str, seen: tuple[list[float], ...]) -> None:
        begun = time.monotonic()
        forks = self._client.native("POST", f"/tasks/{task}/fork", body={"count": FORKS})["tasks"]
        seen[4].append(time.monotonic() - begun)
        for each in forks:
            get(self._url(each["task_id"]))
        seen[5].append(time.monotonic() - begun)
        for each in forks:
            self._stop(each["task_id"])

    def _took(self, method: str, path: str) -> float:
        begun = time.monotonic()
        self._client.native(method, path)
        return time.monotonic() - begun

    def _url(self, task: str) -> str:
        seen = self._client.native("GET", f"/tasks/{task}/wait", {"until": "RUNNING,STOPPED"})
        assert seen["last_status"] == "RUNNING", seen
        return f"http://{seen['address']}/"

    def _on_disk_mb(self, task: str) -> float:
        directory = self._platform.data_dir / "host/tasks" / task / "suspended"
        return sum(p.stat().st_blocks * 512 for p in directory.iterdir() if p.name != "base") / 1e6

    def _stop(self, task: str) -> None:
        self._client.call("ecs", "StopTask", {"task": task})
        self._client.native("GET", f"/tasks/{task}/wait", {"until": "STOPPED"})


def get(url: str) -> None:
    """Until it answers 200."""
    deadline = time.monotonic() + 30
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.005)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        bench_suspend(Path(scratch) / "suspend", lambda *cells: print(*cells, sep="  ", flush=True))
