"""A real platform for tests: its own data directory, port and address range; started and ended with the hutch command."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from tests.support.claims import Claim, free_port
from tests.support.looking import LIMIT_S, look_until

from hutch.client.client import HutchClient
from hutch.client.errors import Unreachable

BIN = Path(sys.executable).parent
_SESSION = boto3.session.Session()
"""One for all: it has read the services' models, which takes longer than most calls. Clients are made one at a time."""
_SESSION_LOCK = threading.Lock()


class Platform:
    """`hutch up` in a directory. Use `stop` in a finally."""

    def __init__(self, directory: Path, **settings: str) -> None:
        self.data_dir = directory / "data"
        self._aws_environment: dict[str, str] = {}
        self._network = Claim("network", range(100, 199))
        self._ingress = Claim("ingress", range(300, 320))
        self.environment = {
            "PATH": f"{BIN}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(directory),
            "HUTCH_DATA_DIR": str(self.data_dir),
            "HUTCH_RUN_DIR": str(directory / "run"),
            "HUTCH_LISTEN": f"127.0.0.1:{free_port()}",
            "HUTCH_VPC_CIDR": f"10.{self._network.number}.0.0/16",
            "HUTCH_INGRESS_PORTS": f"{self._ingress.number}00-{self._ingress.number}99",
            **{f"HUTCH_{k.upper()}": v for k, v in settings.items()},
        }

    def hutch(
        self, *arguments: str, check: bool = True, timeout_s: float = 180
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(BIN / "hutch"), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        if check:
            assert done.returncode == 0, f"hutch {arguments}: {done.stderr}\n{done.stdout}\n{self.log()}"
        return done

    def start(self) -> None:
        self.hutch("up", "--detach")

    def stop(self) -> None:
        self.hutch("down")

    def log(self) -> str:
        path = self.data_dir / "hutch.log"
        return path.read_text()[-6000:] if path.exists() else ""

    def aws_environment(self) -> dict[str, str]:
        """The platform's environment and what `hutch env` prints, which is asked once: it stays as it is."""
        if not self._aws_environment:
            self._aws_environment = json.loads(self.hutch("env", "--json").stdout)
        return {**self.environment, **self._aws_environment}

    def native(self) -> HutchClient:
        """A client of hutch's own routes. Close it."""
        env = self.aws_environment()
        return HutchClient(
            env["AWS_ENDPOINT_URL"], env["AWS_ACCESS_KEY_ID"], env["AWS_SECRET_ACCESS_KEY"], env["AWS_REGION"]
        )

    def until(self, status: str, *tasks: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Wait until tasks (ARNs, ids) have a status, RUNNING or STOPPED; what `hutch why` knows of the last one. The platform
        tells as soon as it is so, where a waiter of the SDK looks again after whole seconds. One that is being started
        again meanwhile is waited for. Fails if a task has stopped that was to run."""
        with self.native() as client:

            def look(task: str) -> dict[str, Any] | None:
                try:
                    seen = client.native("GET", f"/tasks/{task}/wait", {"until": f"{status},STOPPED"})
                except Unreachable:
                    return None
                if seen["last_status"] == status:
                    return seen
                assert seen["last_status"] != "STOPPED", seen
                return None

            found = [look_until(partial(look, task.rpartition("/")[2]), limit_s) for task in tasks]
        assert found[-1] is not None
        return found[-1]

    def client(self, service: str, *, attempts: int = 12) -> Any:
        """A client of the SDK for a service, which tries often enough to live through a restart."""
        env = self.aws_environment()
        with _SESSION_LOCK:
            return _SESSION.client(
                service,
                endpoint_url=env["AWS_ENDPOINT_URL"],
                region_name=env["AWS_REGION"],
                aws_access_key_id=env["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=env["AWS_SECRET_ACCESS_KEY"],
                config=Config(
                    retries={"total_max_attempts": attempts, "mode": "standard"}, inject_host_prefix=False
                ),
            )

    @property
    def platform_id(self) -> str:
        """What is in the name of everything that the platform makes on the host."""
        path = self.data_dir / "host" / "platform-id"
        return path.read_text().strip() if path.exists() else "not started yet"

    def pids(self, module: str) -> list[int]:
        """Processes of this platform that run a module of ours, or (by name) a program."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            ours = (
                f"HUTCH_DATA_DIR={self.data_dir}\0".encode() in environment
                or self.platform_id in command
                or str(self.data_dir) in command
            )
            if module in command and ours and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found

    def leftovers(self) -> list[str]:
        """What of this platform is still on the host; empty after `stop`."""
        platform_id = self.platform_id
        links = subprocess.run(["/sbin/ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
        rules = subprocess.run(
            ["/usr/sbin/nft", "list", "tables"], capture_output=True, text=True, check=True
        ).stdout
        found = [
            line
            for line in links.splitlines()
            if f"hutch-{platform_id}" in line or f" h{platform_id[:4]}" in line
        ]
        found += [line for line in rules.splitlines() if platform_id in line]
        found += [
            line for line in Path("/proc/mounts").read_text().splitlines() if str(self.data_dir) in line
        ]
        found += [f"process {pid}" for pid in self.pids("qemu-system") + self.pids("hutch.apps")]
        found += [f"process {pid}" for pid in self.pids("conmon")]
        # `rglob` would follow tasks that come and go: a platform's groups are all below one.
        found += [str(p) for p in Path("/sys/fs/cgroup").glob(f"*/hutch-{platform_id}")]
        found += [str(p) for p in Path("/sys/fs/cgroup").glob(f"hutch-{platform_id}")]
        users = Path("/run/hutch/vm-users")
        found += [f"user {p.name}" for p in users.glob("*") if platform_id in os.readlink(p)]
        namespaces = Path("/var/run/netns")
        if namespaces.exists():
            found += [str(p) for p in namespaces.iterdir() if platform_id in p.name]
        return found


@contextmanager
def running(directory: Path, **settings: str) -> Iterator[Platform]:
    """A platform that is up; it is ended however its use goes."""
    platform = Platform(directory, **settings)
    platform.start()
    try:
        yield platform
    finally:
        platform.stop()
