"""The platform's HAProxy: one process that leads published host ports to tasks. It outlives the agent.

A change is a new configuration and a hitless reload: the new process takes the listening sockets over from the old one
(`-x`), which ends when its last connection does. So there may be several processes, all of which have our configuration
file on their command line: the one of the pid file serves, the others drain. What it serves is in `haproxy.json`, so
that an agent that starts anew knows of all tasks' endpoints before each of them is published again.
"""

import asyncio
import os
import pwd
import resource
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import msgspec

from hutch.base.log import get_logger
from hutch.base.retry import backoff_seconds
from hutch.host.drivers.contract import HostFault
from hutch.host.images.archives import write_atomically
from hutch.host.kernel.listeners import listen_on_link, tcp_listener
from hutch.host.kernel.process import ProcessRef, find_processes, kill_and_wait, send_signal, wait_gone
from hutch.host.kernel.run import CommandFailed, run
from hutch.rules.lbplan import MAX_CONNECTIONS, PublishedEndpoint, TaskApi, configuration
from hutch.wire.taskspec import TaskSpec

log = get_logger(__name__)

PROGRAM = "/usr/sbin/haproxy"
USER = "haproxy"
"""Made by Debian's package."""
MAX_DRAINING = 8
"""Processes that may wait for their last connections; beyond it the oldest are ended, or they would fill the memory."""
_START_LIMIT_S = 20.0
_FILES = ("haproxy.pid", "haproxy.sock", "haproxy.cfg", "haproxy.json")


class _State(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """`haproxy.json`: what the process serves."""

    serving: ProcessRef | None = None
    configuration: str = ""
    api: bool = False
    """Whether it serves the platform's API to tasks."""
    endpoints: dict[str, tuple[PublishedEndpoint, ...]] = {}


class HaproxyIngress:
    """`hutch.host.agent.context.Ingress` with HAProxy. `directory` is its own, on the run file system."""

    def __init__(self, directory: Path, *, bind_address: str, task_api: TaskApi | None = None) -> None:
        """`task_api`: where tasks are to find the platform's API, once `serve_api` is called; None: nowhere."""
        self._directory = directory
        self._config = directory / "haproxy.cfg"
        self._socket = directory / "haproxy.sock"
        self._bind_address = bind_address
        self._task_api = task_api
        self._serves_api = False
        self._wanted: dict[str, tuple[PublishedEndpoint, ...]] = {}
        self._state: _State | None = None
        self._lock = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    async def serve_api(self) -> None:
        """The bridge is there: let tasks reach the platform's API from now on. Raises `HostFault` (PortInUse,
        IngressFault); published ports are not touched by that."""
        async with self._lock:
            before = self._load().api
            if self._task_api is not None and not (before and await self._processes()):
                self._check_api(self._task_api)
            self._serves_api = self._task_api is not None
        if self._serves_api or before:
            try:
                await self._apply()
            except HostFault:
                self._serves_api = False
                raise

    async def listeners(self, ports: Sequence[int]) -> Mapping[int, str]:
        """See the contract."""
        own = await self._processes()
        found = {}
        for port in ports:
            listener = await asyncio.to_thread(tcp_listener, self._bind_address, port, but=own)
            if listener is not None:
                found[port] = f"{listener.program} (process {listener.pid})"
        return found

    async def publish(self, task: TaskSpec, *, is_asleep: bool = False) -> None:
        """Make the task's published ports reachable, or say otherwise of a task that is published whether it is asleep.
        Raises `HostFault` (PortInUse, IngressFault).

        `network_mode` "host": the task listens on the host itself, at the container port.
        """
        address = task.interface.address if task.interface is not None else "127.0.0.1"
        endpoints = tuple(
            PublishedEndpoint(
                host_port=p.host_port,
                task_id=task.task_id,
                container_port=p.container_port,
                address=address,
                is_asleep=is_asleep,
            )
            for p in task.publish
        )
        async with self._lock:
            self._load()
            before = self._wanted.get(task.task_id, ())
            held = {e.host_port for e in before}
            await self._check_ports([e.host_port for e in endpoints if e.host_port not in held])
            self._wanted[task.task_id] = endpoints
        try:
            await self._apply()
        except HostFault:
            if before:
                self._wanted[task.task_id] = before
            else:
                self._wanted.pop(task.task_id, None)
            raise

    async def withdraw(self, task_id: str) -> None:
        """Take the task's ports back; its connections go on until either end closes them."""
        async with self._lock:
            self._load()
            known = self._wanted.pop(task_id, None)
        if known is not None:
            await self._apply()

    async def close(self) -> None:
        """Stop watching; HAProxy goes on."""
        watch, self._watch = self._watch, None
        if watch is not None and watch is not asyncio.current_task():
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)

    async def stop(self) -> None:
        """End HAProxy, draining processes included, and remove its files."""
        await self.close()
        async with self._lock:
            processes = await self._processes()
            await asyncio.gather(*(kill_and_wait(p, term_timeout_s=5) for p in processes))
            for name in _FILES:
                (self._directory / name).unlink(missing_ok=True)
            self._wanted.clear()
            self._serves_api = False
            self._state = _State()

    def _load(self) -> _State:
        """What is served, also if an earlier agent began it."""
        if self._state is None:
            self._state = _State()
            path = self._directory / "haproxy.json"
            try:
                self._state = msgspec.json.decode(path.read_bytes(), type=_State)
            except FileNotFoundError:
                pass
            except msgspec.DecodeError as error:
                log.warning("ingress file unreadable, endpoints come back one by one", reason=str(error))
            self._wanted = dict(self._state.endpoints)
            self._serves_api = self._state.api and self._task_api is not None
        return self._state

    async def _apply(self) -> None:
        """Bring HAProxy to what is published now; callers that come together share one reload."""
        async with self._lock:
            state = self._load()
            wanted, api = dict(self._wanted), self._serves_api
            text = configuration(
                [e for endpoints in wanted.values() for e in endpoints],
                bind_address=self._bind_address,
                stats_socket=str(self._socket),
                max_connections=_max_connections(),
                user=_user(),
                task_api=self._task_api if api else None,
            )
            processes = await self._processes()
            serving = state.serving if state.serving in processes else None
            if not any(wanted.values()) and not api:
                for process in processes:
                    send_signal(process, signal.SIGUSR1)  # ends after its last connection
                serving, text = None, ""
            elif serving is None or text != state.configuration:
                serving = await self._start(text, processes)
            after = _State(serving=serving, configuration=text, api=api, endpoints=wanted)
            if after != state:
                # Well below a millisecond on the run file system, and no caller may see a half-known state.
                write_atomically(self._directory / "haproxy.json", msgspec.json.encode(after))
                self._state = after
            if self._watch is None or after.serving != state.serving:
                await self.close()
                if serving is not None:
                    self._watch = asyncio.create_task(self._keep_alive(serving))

    async def _start(self, text: str, old: tuple[ProcessRef, ...]) -> ProcessRef:
        """A new process in the place of the old ones, which drain from now on."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        pid_file = self._directory / "haproxy.pid"
        write_atomically(self._config, text.encode())
        argv = [PROGRAM, "-D", "-f", str(self._config), "-p", str(pid_file)]
        if old:
            argv += ["-sf", *(str(p.pid) for p in old)]
        try:
            takes_over = ["-x", str(self._socket)] if old and self._socket.exists() else []
            try:
                await run([*argv, *takes_over], timeout_s=_START_LIMIT_S)
            except CommandFailed as failure:
                if not takes_over or b"old process" not in failure.stderr:
                    raise
                await run(
                    argv, timeout_s=_START_LIMIT_S
                )  # the one that should hand its sockets over is dying
        except CommandFailed as failure:
            raise self._fault(failure) from None
        now = await self._processes()
        started = next((p for p in now if str(p.pid) in pid_file.read_text().split()), None)
        if started is None:
            raise HostFault("IngressFault", "HAProxy ended at once", fix=f"try: haproxy -c -f {self._config}")
        draining = sorted((p for p in now if p != started), key=lambda p: p.start_ticks, reverse=True)
        for process in draining[MAX_DRAINING:]:
            log.warning("draining HAProxy ended with connections open", pid=process.pid)
            send_signal(process, signal.SIGTERM)
        return started

    async def _keep_alive(self, ref: ProcessRef) -> None:
        """Start HAProxy again when it ends without having been told to."""
        await wait_gone(ref)
        async with self._lock:
            if self._load().serving != ref:
                return  # it was replaced
        for delay_s in backoff_seconds(0.1, 30.0, Random(ref.pid)):
            log.warning("HAProxy ended, starting it again", pid=ref.pid)
            try:
                await self._apply()
                return
            except HostFault as fault:
                log.error("HAProxy can't be started again", reason=fault.message, fix=fault.fix)
            await asyncio.sleep(delay_s)

    async def _processes(self) -> tuple[ProcessRef, ...]:
        return await asyncio.to_thread(find_processes, str(self._config))

    async def _check_ports(self, ports: list[int]) -> None:
        """Before HAProxy tries: it would make the old process pause its listeners for the time of its tries."""
        for port, program in (await self.listeners(ports)).items():
            raise self._port_fault(port, f"{program} listens there")

    def _check_api(self, api: TaskApi) -> None:
        """As above. Other platforms listen at the same address, each on its own bridge, so only trying tells."""
        try:
            listen_on_link(api.address, api.port, api.link).close()
        except OSError as error:
            raise HostFault(
                "PortInUse",
                f"tasks can't reach the API: {api.address}:{api.port} can't be listened on: {error.strerror}",
                fix=f"find who listens on port {api.port} of every address, and let it listen on fewer",
            ) from None

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
                    said = line.partition("cannot bind socket")[2].partition("[")[0]
                    why = said.strip().removesuffix("for").strip(" ()")
                    return self._port_fault(int(port), why or "another program listens there")
        return HostFault(
            "IngressFault",
            f"HAProxy refused the configuration: {failure.message[-300:]}",
            fix="apt-get install haproxy"
            if failure.returncode == 127
            else f"try: haproxy -c -f {self._config}",
            aws_prefix="ResourceInitializationError",
        )


def _user() -> str:
    """Whom HAProxy becomes after it has bound its ports: nobody that owns anything, if we may choose."""
    if os.geteuid() != 0:
        return ""
    try:
        return pwd.getpwnam(USER).pw_name
    except KeyError:
        return ""


def _max_connections() -> int:
    """As many as this process's hard limit of open files allows: each takes two, and not every host lets it be raised."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS
        if hard == resource.RLIM_INFINITY
        else min(MAX_CONNECTIONS, max(100, (hard - 500) // 3))
    )
