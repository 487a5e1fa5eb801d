"""The supervisor: starts the control plane and the host agent, starts either again when it ends, ends both on a signal.

    python -m hutch.apps.up [--detach]

SIGTERM ends the platform and leaves the tasks running; SIGINT (Ctrl-C, `hutch down`) stops the tasks first. It holds no
state: killed at any moment, the next one takes over what is there.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from random import Random

import msgspec

from hutch.apps.paths import Paths, settings_environment
from hutch.apps.threats import load_threat_rules
from hutch.base.errors import HutchError, Invalid
from hutch.base.log import configure_logging, get_logger
from hutch.base.retry import backoff_seconds
from hutch.host.kernel.process import ProcessRef, process_ref
from hutch.host.kernel.run import spawn_child, spawn_daemon
from hutch.settings import Settings, load_settings
from hutch.store.lockfile import LockFile

log = get_logger(__name__)

READY_TIMEOUT_S = 60.0
HEALTHY_AFTER_S = 10.0
STOP_TIMEOUT_S = 600.0
ORPHANS_END_S = 30.0
"""For how long the children of a supervisor that was killed may take to end."""
CONTROL_STOP_TIMEOUT_S = 20.0


class RunningPlatform(msgspec.Struct, frozen=True, kw_only=True):
    """`platform.json` in the data directory: how to find a running platform."""

    supervisor: ProcessRef
    endpoint: str
    region: str
    account_id: str


def main() -> int:
    """0 after an orderly end; 1 with one line of cause if the platform can't start; 3 if it runs already."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--detach", action="store_true")
    parser.add_argument("--ready-fd", type=int, default=-1)
    arguments = parser.parse_args()
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        look_at_surroundings(settings)
        paths = Paths(settings)
        paths.make()
        if arguments.detach:
            return _detach(settings, paths)
        return asyncio.run(Supervisor(settings, paths, arguments.ready_fd).run())
    except HutchError as error:
        print(f"hutch up: {error.message}", file=sys.stderr)
        return 3 if type(error).__name__ == "InUse" else 1


def look_at_surroundings(settings: Settings) -> None:
    """What only the host agent needs, looked at here so that a mistake is told to who starts it. Raises `Invalid`."""
    if os.geteuid() != 0 and settings.drivers != "fake":
        raise Invalid("only root can make networks and microVMs: run it as root")
    load_threat_rules(settings)
    if settings.registry_auth_file:
        try:
            with open(settings.registry_auth_file, "rb"):
                pass
        except OSError as error:
            raise Invalid(
                f"--registry-auth-file: {settings.registry_auth_file} can't be read: {error.strerror}"
            ) from None


def _detach(settings: Settings, paths: Paths) -> int:
    """Start the supervisor in a session of its own; return when the platform is ready or has said why not."""
    lock = LockFile(paths.lock, f"the platform in {paths.data}")
    lock.acquire(patience_s=ORPHANS_END_S)
    lock.release()
    read_fd, write_fd = os.pipe()
    started = time.monotonic()
    log_size = paths.output.stat().st_size if paths.output.exists() else 0
    spawn_daemon(
        [sys.executable, "-m", "hutch.apps.up", "--ready-fd", str(write_fd)],
        output_path=str(paths.output),
        environment=settings_environment(settings),
        pass_fds=(write_fd,),
    )
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as f:
        answer = f.readline()
    if answer.strip() == b"ready":
        print(f"hutch is ready at http://{settings.listen} ({time.monotonic() - started:.1f} s)")
        return 0
    with paths.output.open("rb") as f:
        f.seek(log_size)
        tail = f.read()[-3000:].decode("utf-8", "replace")
    reason = _reason(tail)
    words = f"{reason} (see {paths.output})" if reason else f"no reason given; {paths.output} says:\n{tail}"
    print(f"hutch up: the platform did not start: {words}", file=sys.stderr)
    return 1


def _reason(output: str) -> str:
    """The last cause that a log tells of; empty if there is none."""
    found = ""
    for line in output.splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            found = msgspec.json.decode(line, type=_LogLine).reason or found
    return found


class _LogLine(msgspec.Struct, frozen=True):
    reason: str = ""


class Supervisor:
    """Keeps the two processes of a platform alive."""

    def __init__(self, settings: Settings, paths: Paths, ready_fd: int) -> None:
        self._settings = settings
        self._paths = paths
        self._ready_fd = ready_fd
        self._lock = LockFile(paths.lock, f"the platform in {paths.data}")
        self._environment = settings_environment(settings)
        self._stop = asyncio.Event()
        self._stop_tasks = False
        self._children: dict[str, asyncio.subprocess.Process] = {}
        self._alive_fd, self._alive_write_fd = os.pipe()

    async def run(self) -> int:
        """Until a signal. Raises `InUse` if another supervisor has this platform."""
        self._lock.acquire(patience_s=ORPHANS_END_S)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_signal, False)
        loop.add_signal_handler(signal.SIGINT, self._on_signal, True)
        self._write_platform()
        try:
            if not await self._start_control(first=True):
                return 1
            keepers = [
                asyncio.create_task(self._keep("control")),
                asyncio.create_task(self._keep("host")),
            ]
            if self._ready_fd >= 0:
                os.write(self._ready_fd, b"ready\n")
                os.close(self._ready_fd)
            await self._stop.wait()
            await self._end()
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
        finally:
            self._paths.platform.unlink(missing_ok=True)
            self._lock.release()
        return 0

    def _on_signal(self, stop_tasks: bool) -> None:
        self._stop_tasks = self._stop_tasks or stop_tasks
        self._stop.set()

    def _write_platform(self) -> None:
        ref = process_ref(os.getpid())
        assert ref is not None
        document = RunningPlatform(
            supervisor=ref,
            endpoint=f"http://{self._settings.listen}",
            region=self._settings.region,
            account_id=self._settings.account_id,
        )
        temporary = self._paths.platform.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(document))
        temporary.rename(self._paths.platform)

    async def _start_control(self, *, first: bool = False) -> bool:
        """Start the control plane and wait until it is ready; whether it is."""
        read_fd, write_fd = os.pipe()
        argv = [sys.executable, "-m", "hutch.apps.control", "--ready-fd", str(write_fd), *self._held()]
        self._children["control"] = await spawn_child(
            argv, environment=self._environment, pass_fds=(write_fd, self._alive_fd, self._lock.fd)
        )
        os.close(write_fd)
        reader = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read_fd, "rb")
        )
        try:
            answer = await asyncio.wait_for(reader.readline(), READY_TIMEOUT_S)
        except TimeoutError:
            answer = b""
        finally:
            transport.close()
        if answer.strip() != b"ready" and first:
            await self._end_child("control", signal.SIGKILL, 1)
        return answer.strip() == b"ready"

    async def _start_host(self) -> None:
        argv = [sys.executable, "-m", "hutch.apps.host", *self._held()]
        self._children["host"] = await spawn_child(
            argv, environment=self._environment, pass_fds=(self._alive_fd, self._lock.fd)
        )

    def _held(self) -> tuple[str, str]:
        return ("--supervisor-fds", f"{self._alive_fd},{self._lock.fd}")

    async def _keep(self, name: str) -> None:
        """Start a child again whenever it ends; more slowly if it keeps ending."""
        if name == "host":
            await self._start_host()
        delays = backoff_seconds(0.2, 10.0, Random(name))
        while not self._stop.is_set():
            began = time.monotonic()
            code = await self._children[name].wait()
            if self._stop.is_set():
                return
            log.error("process ended, starting it again", process=name, exit_code=code)
            if time.monotonic() - began > HEALTHY_AFTER_S:
                delays = backoff_seconds(0.2, 10.0, Random(name))
            await asyncio.sleep(next(delays))
            if name == "host":
                await self._start_host()
            else:
                await self._start_control()

    async def _end(self) -> None:
        """The host agent first: what it reports last is still taken in."""
        log.info("stopping", stop_tasks=self._stop_tasks)
        await self._end_child("host", signal.SIGINT if self._stop_tasks else signal.SIGTERM, STOP_TIMEOUT_S)
        await self._end_child("control", signal.SIGTERM, CONTROL_STOP_TIMEOUT_S)

    async def _end_child(self, name: str, signum: int, timeout_s: float) -> None:
        child = self._children.get(name)
        if child is None or child.returncode is not None:
            return
        child.send_signal(signum)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(child.wait(), timeout_s)
            return
        log.error("process did not end in time, killing it", process=name)
        child.kill()
        await child.wait()


def running_platform(platform_file: Path) -> RunningPlatform | None:
    """The platform that this file tells of, if it runs."""
    try:
        found = msgspec.json.decode(platform_file.read_bytes(), type=RunningPlatform)
    except (OSError, msgspec.DecodeError):
        return None
    return found if process_ref(found.supervisor.pid) == found.supervisor else None


if __name__ == "__main__":
    sys.exit(main())
