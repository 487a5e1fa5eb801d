"""One task's sandbox on the shared kernel, as this host agent sees it: its containers, and what to tell of them."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from hutch.base.clock import Clock
from hutch.base.log import get_logger
from hutch.host.drivers.container.ending import exit_status, shim_ended
from hutch.host.drivers.container.plan import Places, runtime_id
from hutch.host.drivers.container.rooms import forget
from hutch.host.drivers.container.shim import exit_code
from hutch.host.drivers.contract import (
    ContainerExited,
    DriverError,
    ExitStatus,
    SandboxEvent,
    SandboxExited,
    SandboxGone,
    SandboxSpec,
)
from hutch.host.kernel.container_cgroups import ContainerCgroups
from hutch.host.kernel.kmsg import oom_kill_record, oom_kill_record_of_group
from hutch.host.kernel.process import ProcessRef, is_alive, wait_gone

log = get_logger(__name__)
T = TypeVar("T")
STARTED_FILE = "started.json"
ENDED_FILE = "ended.json"


class Start(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One start of a container; kept in its bundle as `started.json` once it runs."""

    container: str
    number: int
    runtime_id: str
    shim: ProcessRef
    init_pid: int
    started_at: float
    group: str
    running: bool = True


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How a start ended: `ended.json`, for an agent that comes later."""

    status: ExitStatus
    at: float


class Box:
    """One sandbox. Made by the driver; all verbs from one event loop."""

    def __init__(self, spec: SandboxSpec, group: str, groups: ContainerCgroups, clock: Clock) -> None:
        self.spec = spec
        self.places = Places(Path(spec.directory))
        self.group = group
        self.starts: dict[str, Start] = {}
        self.ended: SandboxExited | None = None
        self._groups = groups
        self._clock = clock
        self._events: asyncio.Queue[SandboxEvent | None] = asyncio.Queue()
        self._over = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._next_exec = 1

    def next_number(self, name: str) -> int:
        """The number of a new start. Raises `DriverError` if the container runs."""
        known = self.starts.get(name)
        if known is not None and known.running:
            raise DriverError("ContainerRunning", f'container "{name}" runs already')
        return max(_numbers(self.places.starts(name)), default=0) + 1

    def add(self, start: Start) -> None:
        """A container runs: remember it, watch it."""
        self.starts[start.container] = start
        self._run(self._watch(start))

    def running(self, name: str) -> Start:
        """The start of a container that runs. Raises `DriverError`."""
        start = self.starts.get(name)
        if start is None or not start.running:
            raise DriverError("ContainerNotRunning", f'container "{name}" does not run')
        return start

    def bundle(self, start: Start) -> Path:
        return self.places.start(start.container, start.number)

    def new_exec_directory(self, start: Start) -> Path:
        """A directory for the files of one further process in a container. What an earlier agent left is replaced."""
        directory = self.bundle(start) / f"exec-{self._next_exec}"
        self._next_exec += 1
        self.remove_exec_directory(directory)
        directory.mkdir(mode=0o700)
        return directory

    def remove_exec_directory(self, directory: Path) -> None:
        """Remove such a directory."""
        shutil.rmtree(directory, ignore_errors=True)

    def load(self) -> list[tuple[str, int]]:
        """Learn from the files what an earlier agent started. Returns the starts that it was killed in the middle
        of: they are to be discarded."""
        unfinished = []
        for container in self.spec.task.containers:
            for number in sorted(_numbers(self.places.starts(container.name))):
                path = self.places.start(container.name, number) / STARTED_FILE
                try:
                    start = msgspec.json.decode(path.read_bytes(), type=Start)
                except (FileNotFoundError, msgspec.DecodeError):
                    unfinished.append((container.name, number))
                else:
                    self.starts[container.name] = start
        return unfinished

    def watch_all(self) -> None:
        """After `load`: what has ended becomes an event, the rest is watched."""
        for start in self.starts.values():
            bundle = self.bundle(start)
            ended = read_ended(bundle)
            start.running = ended is None and exit_code(bundle, start.runtime_id) is None
            if ended is not None:
                self._tell_exit(start, ended)
            self._run(self._watch(start) if ended is None else self._sweep(start))

    def lost(self) -> SandboxExited | None:
        """After `load`: the event for a container whose conmon ended without a word while nobody was there."""
        for start in self.starts.values():
            bundle = self.bundle(start)
            gone = not is_alive(start.shim)
            if gone and read_ended(bundle) is None and exit_code(bundle, start.runtime_id) is None:
                record = oom_kill_record(start.shim.pid)
                return shim_ended(start.container, None, record, self._clock.now())
        return None

    async def _watch(self, start: Start) -> None:
        returncode = await wait_gone(start.shim)
        told = exit_code(self.bundle(start), start.runtime_id)
        if told is None:
            await self._shim_died(start, returncode)
            return
        ended = await asyncio.to_thread(self._settle, start, *told)
        if self.ended is None:
            start.running = False
            self._tell_exit(start, ended)
        await self._sweep(start)

    def _settle(self, start: Start, code: int, at: float) -> Ended:
        kills = self._groups.oom_kills(start.group)
        record = oom_kill_record_of_group(start.group) if kills else None
        ended = Ended(status=exit_status(code, kills, record, start.container), at=at)
        (self.bundle(start) / ENDED_FILE).write_bytes(msgspec.json.encode(ended))
        return ended

    async def _sweep(self, start: Start) -> None:
        """Remove what a start leaves on the host; the container's files stay for the next one."""
        try:
            await self._groups.remove(start.group)
        except OSError as error:
            # `destroy` removes the group above it, and tells if it can't.
            log.warning("control group not removed", group=start.group, reason=str(error))
        await asyncio.to_thread(forget, self.places, start.runtime_id)

    async def _shim_died(self, start: Start, returncode: int | None) -> None:
        """Without conmon nobody reads the container's output or learns how it ends: the sandbox is over."""
        if self.ended is not None:
            return
        record = oom_kill_record(start.shim.pid) if returncode in (None, -9) else None
        self.ended = shim_ended(start.container, returncode, record, self._clock.now())
        log.warning("sandbox ended", task=self.spec.task.task_id, kind=self.ended.kind, text=self.ended.text)
        try:
            await self._groups.remove(self.group)
        except OSError as error:
            log.warning("control group not removed", group=self.group, reason=str(error))
        for each in self.starts.values():
            each.running = False
        self._events.put_nowait(self.ended)
        self._over.set()

    def _tell_exit(self, start: Start, ended: Ended) -> None:
        self._events.put_nowait(
            ContainerExited(
                container=start.container, runtime_id=start.runtime_id, status=ended.status, at=ended.at
            )
        )

    async def events(self) -> AsyncIterator[SandboxEvent]:
        """Events in order, each once; ends after `SandboxExited`, and when the sandbox is let go of."""
        while (event := await self._events.get()) is not None:
            yield event
            if isinstance(event, SandboxExited):
                return

    async def while_alive(self, work: Coroutine[Any, Any, T]) -> T:
        """Do something for as long as the sandbox is there. Raises `SandboxGone` when it ends, after `work` has
        ended too."""
        task = asyncio.ensure_future(work)
        over = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait({task, over}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
        finally:
            for each in (task, over):
                each.cancel()
            await asyncio.gather(task, over, return_exceptions=True)
        raise self.gone()

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or was let go of."""
        return self._over.is_set()

    def gone(self) -> SandboxGone:
        """The end of the sandbox as an error."""
        if self.ended is None:
            return SandboxGone("SandboxReleased", "the sandbox was destroyed or let go of")
        return SandboxGone(self.ended.kind, self.ended.text, fix=self.ended.fix, evidence=self.ended.evidence)

    async def release(self) -> None:
        """Let go of the sandbox without touching it; iterators of events end."""
        self._over.set()
        self._events.put_nowait(None)
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._ended_work)

    def _ended_work(self, task: asyncio.Task[None]) -> None:
        self._background.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            text = f"the host agent could not watch a container: {error}"
            log.error("container not watched", task=self.spec.task.task_id, reason=repr(error))
            self.ended = SandboxExited(at=self._clock.now(), kind="DriverFailed", text=text)
            self._events.put_nowait(self.ended)
            self._over.set()


def read_ended(bundle: Path) -> Ended | None:
    """How a start ended, if an agent has seen it."""
    try:
        return msgspec.json.decode((bundle / ENDED_FILE).read_bytes(), type=Ended)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def start_id(spec: SandboxSpec, name: str, number: int) -> str:
    """The runtime id of a start of one of the task's containers."""
    return runtime_id(spec.task.task_id, name, number)


def _numbers(starts: Path) -> list[int]:
    if not starts.is_dir():
        return []
    return [int(p.name) for p in starts.iterdir() if p.name.isdecimal()]
