"""One connection of one host: takes reports in, sends assignments out.

What a host reports is applied to the store in order, many reports in one unit of work, and acknowledged when it is
durable. What a host should do is read from the store: everything on connect, then record by record. Losing any message
does no harm; the next connect repeats it.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import HutchError, Invalid, NotFound, Unavailable
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.launch_file_systems import with_file_systems
from hutch.control.launch_refusals import LaunchRefused, unspeakable
from hutch.control.launch_secrets import LaunchSecrets, stop_unlaunched
from hutch.control.observed import observed_task
from hutch.control.ops.findings import FindingOps
from hutch.control.ops.hosts import HostOps
from hutch.control.ops.logs import LogOps
from hutch.control.ops.placing import settle_suspension, store_stopped
from hutch.control.ops.taskroles import TaskRoles
from hutch.control.surroundings import TaskAddresses
from hutch.control.taskspec import task_spec, with_credentials
from hutch.model.host import HostReports
from hutch.model.record import Cause
from hutch.model.task import STOPPED, Task
from hutch.rules import lifecycle
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx
from hutch.wire import fleet as wire
from hutch.wire.codec import MessageWriter, read_message
from hutch.wire.taskspec import TaskSpec

log = get_logger(__name__)

MAX_ASSIGNMENTS_BYTES = wire.MAX_MESSAGE_BYTES // 2
"""The tasks of a host that are assigned with one message; there are their ids, and those of others, besides."""
MAX_REPORTS_PER_WRITE = 256
REQUEST_TIMEOUT_S = 900.0
ALIVE_PER_SILENCE = 3
"""How many times a host says that it is alive in the time after which its silence counts."""
OVERSLEPT_S = 1.0
"""Woken so much later than asked for, it was this process that did not run."""


class FleetContext(msgspec.Struct, frozen=True, kw_only=True):
    """What every session needs."""

    store: Store
    clock: Clock
    ids: IdSource
    hosts: HostOps
    logs: LogOps
    findings: FindingOps
    launch_secrets: LaunchSecrets
    task_roles: TaskRoles
    addresses: TaskAddresses
    region: str
    account_id: str
    platform_id: str
    vpc_cidr: str
    silence_s: float = 15.0
    """A host that says nothing for so long is not connected any more."""


class HostSession:
    """One connection of one host."""

    def __init__(
        self,
        context: FleetContext,
        hello: wire.Hello,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._context = context
        self._hello = hello
        self._reader = reader
        self._writer = writer
        self._messages = MessageWriter(writer)
        self.host_id = hello.host_id
        self._reports: asyncio.Queue[wire.Report] = asyncio.Queue(maxsize=4096)
        self._log_batches: asyncio.Queue[wire.LogBatch] = asyncio.Queue(maxsize=256)
        self._findings: asyncio.Queue[wire.FindingBatch] = asyncio.Queue(maxsize=64)
        self._refused: asyncio.Queue[tuple[Task, LaunchRefused]] = asyncio.Queue()
        self._assigned: dict[str, str] = {}
        """Task ids, and their clusters."""
        self._stopping: set[str] = set()
        self._pending: dict[str, asyncio.Future[wire.Reply]] = {}
        self._heard_at = asyncio.get_running_loop().time()
        self._listens = True

    @property
    def silent_s(self) -> float:
        """For how long nothing has come from the host; nothing, while what came is still being taken in."""
        return asyncio.get_running_loop().time() - self._heard_at if self._listens else 0.0

    async def welcome(self) -> None:
        """Record the host and take it in."""
        acked = await self._context.hosts.connected(self.host_id, self._hello.fingerprint)
        await self._context.hosts.images_reported(self.host_id, self._hello.local_images)
        with self._context.store.read() as reader:
            subnets = tuple((s.cidr, gateway_of(s.cidr)) for s in reader.scan(tables.SUBNETS))
        self._send(
            wire.Welcome(
                host_id=self.host_id,
                acked_seq=acked,
                platform_id=self._context.platform_id,
                vpc_cidr=self._context.vpc_cidr,
                subnets=subnets,
                alive_every_s=self._context.silence_s / ALIVE_PER_SILENCE,
            )
        )

    async def run(self) -> None:
        """Serve the connection until it ends."""
        works = (
            self._receive(),
            self._apply_reports(),
            self._store_logs(),
            self._store_findings(),
            self._stop_refused(),
            self._watch_silence(),
        )
        parts = [asyncio.create_task(w) for w in works]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            for future in self._pending.values():
                if not future.done():
                    future.set_exception(Unavailable("the host's connection ended before it answered"))
        # Whichever part ended first says why: most often that the connection did.
        done.pop().result()

    def close(self) -> None:
        """End the connection, once what is queued has been handed to it. `run` ends with it."""
        self._messages.flush()
        self._writer.close()

    def send_all(self) -> None:
        """Everything this host should run, whole."""
        assign: list[TaskSpec] = []
        stop: list[wire.Stop] = []
        later: list[wire.Assign | wire.Stop] = []
        size = 0
        with self._context.store.read() as reader:
            for task in reader.scan(tables.TASKS, self.host_id, index="by_host"):
                spec = self._spec(reader, task)
                if spec is None:
                    continue
                size += len(msgspec.msgpack.encode(spec))
                fits = size <= MAX_ASSIGNMENTS_BYTES
                if fits:
                    assign.append(spec)
                else:
                    later.append(wire.Assign(task=spec))
                self._assigned[task.task_id] = task.cluster
                if task.desired_status == STOPPED:
                    self._stopping.add(task.task_id)
                    (stop if fits else later).append(_stop(task))
        names = tuple(m.task.task_id for m in later if isinstance(m, wire.Assign))
        self._send(wire.Assignments(tasks=tuple(assign), stop=tuple(stop), later=names))
        for message in later:
            self._send(message)

    def send_task(self, reader: Reader, task: Task) -> None:
        """Bring the host up to date about one task of its own."""
        if task.is_stopped:
            self._assigned.pop(task.task_id, None)
            self._stopping.discard(task.task_id)
            self._send(wire.Forget(task_id=task.task_id))
            return
        if task.task_id not in self._assigned:
            spec = self._spec(reader, task)
            if spec is None:
                return
            self._assigned[task.task_id] = task.cluster
            self._send(wire.Assign(task=spec))
        if task.desired_status == STOPPED and task.task_id not in self._stopping:
            self._stopping.add(task.task_id)
            self._send(_stop(task))

    async def request(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """Ask the host to do something; its result. Raises `NotFound` or `Invalid` as it answered, `Unavailable` if its
        connection ends first."""
        request_id = self._context.ids.hex(16)
        future: asyncio.Future[wire.Reply] = asyncio.get_running_loop().create_future()
        self._pending[request_id] = future
        try:
            self._send(wire.Request(request_id=request_id, verb=verb, arguments=arguments))
            reply = await asyncio.wait_for(future, REQUEST_TIMEOUT_S)
        finally:
            del self._pending[request_id]
        if reply.error:
            kind = NotFound if reply.error_kind in ("NotFound", "ImageNotFound") else Invalid
            raise kind(reply.error, code=reply.error_kind)
        return reply.result

    def _spec(self, reader: Reader, task: Task) -> TaskSpec | None:
        definition = reader.get(tables.TASK_DEFINITIONS, task.family, f"{task.revision:010d}")
        if definition is None:
            log.error(
                "task has no definition", task=task.task_id, definition=f"{task.family}:{task.revision}"
            )
            return None
        subnet = reader.get(tables.SUBNETS, task.network.subnet_id) if task.network else None
        try:
            spec = task_spec(
                task, definition, subnet, region=self._context.region, account_id=self._context.account_id
            )
        except Exception:
            # One task that nothing can be made of must not keep the host from all its others.
            log.exception("task can't be told to its host", task=task.task_id)
            self._refused.put_nowait((task, unspeakable(definition.name)))
            return None
        spec = self._context.addresses.add(spec, task, subnet)
        spec = with_credentials(spec, self._context.task_roles.credentials_id(task, definition))
        if task.desired_status == STOPPED:
            return spec
        try:
            spec = with_file_systems(reader, spec, definition, self._context.region)
            return self._context.launch_secrets.fill(reader, spec, definition, task.overrides)
        except LaunchRefused as refused:
            if task.task_id in self._assigned or task.task_id in self._hello.task_ids:
                # It runs already: what its containers were started with is theirs.
                return spec
            self._refused.put_nowait((task, refused))
            return None

    async def _stop_refused(self) -> None:
        """End the tasks that can't be launched for want of a secret."""
        while True:
            task, refused = await self._refused.get()
            cause = Cause(id=f"{self.host_id}/{task.task_id}", actor="control", action="launch")
            await stop_unlaunched(self._context.store, cause, task, refused, self._context.clock.now())

    def _send(self, message: wire.ToHost) -> None:
        self._messages.send(message)

    async def _receive(self) -> None:
        while True:
            self._listens = True
            message = await read_message(self._reader, wire.FromHost)
            self._heard_at = asyncio.get_running_loop().time()
            self._listens = False
            if isinstance(message, wire.Report):
                await self._reports.put(message)
            elif isinstance(message, wire.LogBatch):
                await self._log_batches.put(message)
            elif isinstance(message, wire.FindingBatch):
                await self._findings.put(message)
            elif isinstance(message, wire.Refreshed):
                await self._context.hosts.connected(self.host_id, message.fingerprint)
            elif isinstance(message, wire.Reply):
                future = self._pending.get(message.request_id)
                if future and not future.done():
                    future.set_result(message)

            elif isinstance(message, wire.CredentialsWanted):
                self._send(self._credentials(message))

    async def _watch_silence(self) -> None:
        """Raise `Unavailable` when nothing was heard of the host for too long: it hangs, or the way to it is cut."""
        loop = asyncio.get_running_loop()
        while (left_s := self._context.silence_s - self.silent_s) > 0:
            wake_at = loop.time() + left_s
            await asyncio.sleep(left_s)
            if loop.time() - wake_at > OVERSLEPT_S:
                # What it said meanwhile may lie unread.
                self._heard_at = loop.time()
        # What it was told and did not read would keep the connection open.
        self._writer.transport.abort()
        raise Unavailable(f"nothing was heard of the host for {self.silent_s:.0f} s (--host-silence-s)")

    def _credentials(self, wanted: wire.CredentialsWanted) -> wire.CredentialsGiven:
        """Credentials of a task's role: a host gets those of its own tasks only."""
        try:
            with self._context.store.read() as reader:
                found = reader.scan(tables.TASKS, wanted.task_id, index="by_id")
            if not found or found[0].host_id != self.host_id:
                raise NotFound(f"task {wanted.task_id[:40]} is not on this host")
            given = self._context.task_roles.credentials(found[0].cluster, found[0].task_id)
        except HutchError as error:
            return wire.CredentialsGiven(request_id=wanted.request_id, error=error.message)
        return wire.CredentialsGiven(
            request_id=wanted.request_id,
            role_arn=given.role_arn,
            access_key_id=given.credentials.access_key_id,
            secret_access_key=given.credentials.secret_access_key,
            session_token=given.credentials.session_token,
            expires_at=given.credentials.expires_at,
        )

    async def _apply_reports(self) -> None:
        while True:
            reports = await _drain(self._reports, MAX_REPORTS_PER_WRITE)
            newest = reports[-1].seq
            # Facts are whole: of several about one task only the newest says anything.
            latest = list({r.facts.task_id: r for r in reports}.values())
            cause = Cause(id=f"{self.host_id}/{newest}", actor=f"host:{self.host_id}", action="report")
            forget = await self._context.store.write(cause, self._reports_work(latest, newest))
            self._send(wire.Ack(seq=newest))
            for task_id in forget:
                self._send(wire.Forget(task_id=task_id))

    def _reports_work(self, reports: list[wire.Report], newest: int) -> Callable[[Tx], list[str]]:
        def work(tx: Tx) -> list[str]:
            forget: list[str] = []
            for report in reports:
                task = self._find(tx, report.facts.task_id)
                if task is None or task.host_id != self.host_id or task.is_stopped:
                    if report.facts.status == STOPPED:
                        forget.append(report.facts.task_id)
                    continue
                after = settle_suspension(tx, lifecycle.observed(task, observed_task(report.facts)))
                if after is not task:
                    store_stopped(tx, task, after)
            so_far = tx.get(tables.HOST_REPORTS, self.host_id) or HostReports(host_id=self.host_id)
            if so_far.last_seq < newest:
                tx.put(tables.HOST_REPORTS, replace(so_far, last_seq=newest))
            return forget

        return work

    def _find(self, reader: Reader, task_id: str) -> Task | None:
        cluster = self._assigned.get(task_id)
        if cluster is not None:
            return reader.get(tables.TASKS, cluster, task_id)
        return next(iter(reader.scan(tables.TASKS, task_id, index="by_id")), None)

    async def _store_logs(self) -> None:
        while True:
            batches = await _drain(self._log_batches, 64)
            answers = await asyncio.gather(*(self._ingest(b) for b in batches))
            for batch, error in zip(batches, answers, strict=True):
                self._send(wire.LogAck(batch=batch.batch, error=error))

    async def _store_findings(self) -> None:
        while True:
            batches = await _drain(self._findings, 16)
            await self._context.findings.record(self.host_id, batches)
            for batch in batches:
                self._send(wire.FindingsAck(batch=batch.batch))

    async def _ingest(self, batch: wire.LogBatch) -> str:
        """Store a batch; what another try would not change is answered as an error, not raised."""
        try:
            await self._context.logs.ingest(batch.group, batch.stream, batch.create_group, batch.events)
        except Unavailable:
            raise
        except HutchError as error:
            return error.message
        return ""


async def _drain(queue: "asyncio.Queue[Any]", most: int) -> list[Any]:
    """Wait for an item, then take what is there besides, up to `most`."""
    items = [await queue.get()]
    while len(items) < most and not queue.empty():
        items.append(queue.get_nowait())
    return items


def gateway_of(cidr: str) -> str:
    """The first address of a subnet, where the bridge answers: "172.31.16.0/20" gives "172.31.16.1"."""
    head, _, last = cidr.partition("/")[0].rpartition(".")
    return f"{head}.{int(last) + 1}"


def _stop(task: Task) -> wire.Stop:
    return wire.Stop(task_id=task.task_id, stop_code=task.stop_code, reason=task.stopped_reason)
