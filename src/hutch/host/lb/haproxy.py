"""The platform's HAProxy: one process that leads published host ports to tasks. It outlives the agent.

A change is a new configuration and a hitless reload: the new process takes the listening sockets over from the old one
(`-x`), which ends when its last connection does.
"""

import asyncio
import resource
import socket
from pathlib import Path

import msgspec

from hutch.base.log import get_logger
from hutch.host.drivers.contract import HostFault
from hutch.host.images.archives import write_atomically
from hutch.host.kernel.process import ProcessRef, is_alive, kill_and_wait, process_ref, wait_gone
from hutch.host.kernel.run import CommandFailed, run
from hutch.rules.lbplan import MAX_CONNECTIONS, PublishedEndpoint, configuration
from hutch.wire.fleet import TaskSpec

log = get_logger(__name__)

PROGRAM = "/usr/sbin/haproxy"


class HaproxyIngress:
    """`hutch.host.agent.runner.Ingress` with HAProxy. `directory` is its own, on the run file system."""

    def __init__(self, directory: Path, *, bind_address: str) -> None:
        self._directory = directory
        self._bind_address = bind_address
        self._endpoints: dict[str, tuple[PublishedEndpoint, ...]] = {}
        self._applied: str | None = None
        self._lock = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    @property
    def _socket(self) -> Path:
        return self._directory / "haproxy.sock"

    def adopt(self, tasks: tuple[TaskSpec, ...]) -> None:
        """What an earlier agent published: part of the next configuration from the start."""
        for task in tasks:
            if task.publish:
                self._endpoints[task.task_id] = _endpoints_of(task)

    async def publish(self, task: TaskSpec) -> None:
        """Make the task's published ports reachable. Raises `HostFault` (PortInUse, IngressFault)."""
        endpoints = _endpoints_of(task)
        if self._endpoints.get(task.task_id) != endpoints:
            before = {e.host_port for es in self._endpoints.values() for e in es}
            for endpoint in endpoints:
                if endpoint.host_port not in before and self._running() is None:
                    self._check_port(endpoint.host_port)
            self._endpoints[task.task_id] = endpoints
        try:
            await self._apply()
        except HostFault:
            self._endpoints.pop(task.task_id, None)
            raise

    async def withdraw(self, task_id: str) -> None:
        """Take the task's ports back."""
        if self._endpoints.pop(task_id, None) is not None:
            await self._apply()

    async def close(self) -> None:
        """Stop watching; HAProxy goes on."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
            self._watch = None

    async def stop(self) -> None:
        """End HAProxy and remove its files."""
        await self.close()
        if (ref := self._running()) is not None:
            await kill_and_wait(ref, term_timeout_s=5)
        for name in ("haproxy.pid", "haproxy.sock", "haproxy.cfg", "haproxy.json"):
            (self._directory / name).unlink(missing_ok=True)
        self._applied = None

    async def _apply(self) -> None:
        """Bring HAProxy to what is published now; callers that come together share one reload."""
        async with self._lock:
            endpoints = [e for es in self._endpoints.values() for e in es]
            if not endpoints:
                await self.stop()
                return
            text = configuration(
                endpoints,
                bind_address=self._bind_address,
                stats_socket=str(self._socket),
                max_connections=_max_connections(),
            )
            old = self._running()
            if text == self._applied and old is not None:
                return
            await self._start(text, old)
            self._applied = text

    async def _start(self, text: str, old: ProcessRef | None) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        config, pid_file = self._directory / "haproxy.cfg", self._directory / "haproxy.pid"
        write_atomically(config, text.encode())
        argv = [PROGRAM, "-D", "-f", str(config), "-p", str(pid_file)]
        if old is not None:
            argv += ["-sf", str(old.pid)]
            if self._socket.exists():
                argv += ["-x", str(self._socket)]
        try:
            await run(argv, timeout_s=20)
        except CommandFailed as failure:
            raise self._fault(failure) from None
        ref = process_ref(int(pid_file.read_text().split()[0]))
        if ref is None:
            raise HostFault("IngressFault", "HAProxy ended at once", fix=f"try: haproxy -c -f {config}")
        write_atomically(self._directory / "haproxy.json", msgspec.json.encode(ref))
        await self.close()
        self._watch = asyncio.create_task(self._keep_alive(ref))

    async def _keep_alive(self, ref: ProcessRef) -> None:
        """Start HAProxy again when it ends without having been told to."""
        await wait_gone(ref)
        if self._running() is None and self._endpoints:
            log.warning("HAProxy ended, starting it again", pid=ref.pid)
            self._applied = None
            self._watch = None
            try:
                await self._apply()
            except HostFault as fault:
                log.error("HAProxy can't be started again", reason=fault.message)

    def _running(self) -> ProcessRef | None:
        """The process that serves now, also if an earlier agent started it."""
        try:
            ref = msgspec.json.decode((self._directory / "haproxy.json").read_bytes(), type=ProcessRef)
        except (OSError, msgspec.DecodeError):
            return None
        return ref if is_alive(ref) else None

    def _check_port(self, port: int) -> None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._bind_address, port))
            except OSError as error:
                raise self._port_fault(port, error.strerror or str(error)) from None

    def _port_fault(self, port: int, why: str) -> HostFault:
        return HostFault(
            "PortInUse",
            f"host port {port} can't be published on {self._bind_address}: {why}",
            fix="end the program that listens there, or publish on another port",
            aws_prefix="ResourceInitializationError",
        )

    def _fault(self, failure: CommandFailed) -> HostFault:
        for line in failure.message.splitlines():
            if "cannot bind socket" in line and ":" in line:
                port = line.rstrip("]").rpartition(":")[2].strip(" ])")
                if port.isdecimal():
                    return self._port_fault(int(port), "another program listens there")
        return HostFault(
            "IngressFault",
            f"HAProxy refused the configuration: {failure.message[-300:]}",
            fix="install haproxy 2.4 or newer" if failure.returncode == 127 else "",
            aws_prefix="ResourceInitializationError",
        )


def _max_connections() -> int:
    """As many as this process's hard limit of open files allows: each takes two, and not every host lets it be raised."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS
        if hard == resource.RLIM_INFINITY
        else min(MAX_CONNECTIONS, max(100, (hard - 500) // 3))
    )


def _endpoints_of(task: TaskSpec) -> tuple[PublishedEndpoint, ...]:
    address = task.interface.address if task.interface is not None else "127.0.0.1"
    return tuple(
        PublishedEndpoint(
            host_port=p.host_port, task_id=task.task_id, container_port=p.container_port, address=address
        )
        for p in task.publish
    )
