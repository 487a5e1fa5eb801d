"""The control plane process: store, use cases, controllers, fleet and API, put together.

Run by the supervisor as `python -m hutch.apps.control --ready-fd N`; settings come in the environment.
"""

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Coroutine
from functools import partial
from typing import Any

import uvicorn

from hutch.api.aws.ec2 import service as ec2
from hutch.api.aws.ecs import service as ecs
from hutch.api.aws.ecs.access import EcsAccess
from hutch.api.aws.efs import service as efs
from hutch.api.aws.iam import service as iam
from hutch.api.aws.logs import service as logs_api
from hutch.api.aws.s3 import service as s3
from hutch.api.aws.secretsmanager import service as secretsmanager
from hutch.api.aws.ssm import service as ssm
from hutch.api.aws.sts import service as sts
from hutch.api.gateway.app import Gateway
from hutch.api.gateway.onewrite import GatheringHttpProtocol
from hutch.api.gateway.paging import Paging
from hutch.api.native import NativeApi
from hutch.api.native_check import NativeCheck
from hutch.api.native_exec import NativeExec
from hutch.api.native_hosts import HostApi
from hutch.api.sessions.app import MAX_MESSAGE_BYTES, SessionSockets
from hutch.apps.collector import calm_collector
from hutch.apps.events import EventParts
from hutch.apps.paths import Paths, reachable_address
from hutch.apps.supervised import watch_supervisor
from hutch.base.clock import Clock, SystemClock
from hutch.base.errors import HutchError, InUse, Invalid
from hutch.base.ids import IdSource, RandomIds
from hutch.base.log import configure_logging, get_logger
from hutch.control.authorizer import Authorizer
from hutch.control.controllers.definitions import DefinitionLoop
from hutch.control.controllers.host_loss import HostLossLoop
from hutch.control.controllers.membership import MembershipLoop
from hutch.control.controllers.placement import PlacementLoop
from hutch.control.controllers.prefetch import PrefetchLoop
from hutch.control.controllers.retention import RetentionLoop
from hutch.control.controllers.secrets import SecretExpiryLoop
from hutch.control.exec_sessions import ExecSessions
from hutch.control.execution_roles import ExecutionRoles
from hutch.control.fleet import Fleet
from hutch.control.host_session import FleetContext
from hutch.control.identity import Identity
from hutch.control.launch_secrets import LaunchSecrets
from hutch.control.ops.disk_snapshots import DiskSnapshotOps
from hutch.control.ops.filesystems import FileSystemOps
from hutch.control.ops.host_loss import HostLossOps
from hutch.control.ops.hosts import HostOps
from hutch.control.ops.images import ImageOps
from hutch.control.ops.logs import LogOps
from hutch.control.ops.objects import ObjectOps
from hutch.control.ops.parameters import ParameterOps
from hutch.control.ops.placing import PlacementLimits
from hutch.control.ops.platform import ensure_platform
from hutch.control.ops.secrets import SecretOps, values_exist
from hutch.control.ops.sts import StsOps
from hutch.control.ops.suspending import SuspendOps
from hutch.control.ops.tagging import TagOps
from hutch.control.ops.taskroles import TaskRoles
from hutch.control.ops.tasks import TaskOps
from hutch.control.preflight import Preflight
from hutch.control.sessions import SessionTokens
from hutch.control.surroundings import TaskAddresses
from hutch.control.vault import open_vault
from hutch.host.network.bridge import networks_in_use
from hutch.rules.netplan import pick_vpc_cidr
from hutch.settings import Settings, load_settings
from hutch.store.logs import LogStore
from hutch.store.sqlite import SqliteStore

log = get_logger(__name__)

NICE_VALUE = -5


def main() -> int:
    """Run until SIGTERM. Exit code 0 after an orderly end, 1 with one line of cause if it can't start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ready-fd", type=int, default=-1)
    parser.add_argument("--supervisor-fds", default="")
    arguments = parser.parse_args()
    settings = load_settings()
    configure_logging(settings.log_level)
    _outrank_tasks()
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_run(settings, arguments.ready_fd, arguments.supervisor_fds))
    except HutchError as error:
        log.error("control plane can't go on", reason=error.message)
        return 1
    return 0


def _outrank_tasks() -> None:
    """Tasks may keep every CPU busy; the API must answer all the same (it starts no programs that would inherit this)."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, NICE_VALUE)
    except OSError as error:
        log.info("the API runs at the priority of everything else", reason=str(error))


def _loop_factory() -> Any:
    import uvloop

    return uvloop.new_event_loop


async def _run(settings: Settings, ready_fd: int, supervisor_fds: str) -> None:
    watch_supervisor(supervisor_fds)
    paths = Paths(settings)
    paths.make()
    paths.clear_uploads()
    clock, ids = SystemClock(), RandomIds()
    store = SqliteStore(paths.state)
    log_store = LogStore(paths.logs)
    await store.open()
    try:
        await log_store.open()
        await _compose(settings, paths, store, log_store, clock, ids, ready_fd)
    finally:
        await log_store.close()
        await store.close()


async def _compose(
    settings: Settings,
    paths: Paths,
    store: SqliteStore,
    log_store: LogStore,
    clock: Clock,
    ids: IdSource,
    ready_fd: int,
) -> None:
    """Put the control plane together and serve."""
    region, account_id = settings.region, settings.account_id
    cidr = settings.vpc_cidr
    platform = await ensure_platform(
        store,
        clock,
        ids,
        region=region,
        account_id=account_id,
        vpc_cidr=pick_vpc_cidr(await networks_in_use()) if cidr == "auto" else cidr,
    )
    limits = placement_limits(settings)
    hosts = HostOps(
        store, clock, ids, clusters=tuple(settings.host_clusters.split(",")), default_zone=f"{region}a"
    )
    await hosts.all_disconnected()
    logs = LogOps(log_store, clock)
    vault = open_vault(paths.secrets_key, ids, values_exist=values_exist(store))
    identity = Identity(store, clock, ids, vault, account_id=account_id)
    await identity.ensure_root_key(paths.credentials)
    authorizer = Authorizer(store, clock, account_id=account_id)
    sts_ops = StsOps(store, clock, SessionTokens(vault, ids), authorizer, account_id=account_id)
    secrets = SecretOps(store, vault, clock, ids, region=region, account_id=account_id)
    parameters = ParameterOps(store, vault, clock, region=region, account_id=account_id)
    objects = ObjectOps(store, vault, clock, ids)
    roles = ExecutionRoles(sts_ops, authorizer, clock, region=region, account_id=account_id)
    launch_secrets = LaunchSecrets(
        secrets, parameters, objects, roles, logs.group_exists, region=region, account_id=account_id
    )
    tasks = TaskOps(
        store,
        clock,
        ids,
        limits=limits,
        wait_for_placement=settings.placement == "wait",
        strict_aws=settings.strict_aws,
    )
    events = EventParts(store, tasks, logs, clock, ids, region=region, account_id=account_id)
    fleet = Fleet(
        FleetContext(
            store=store,
            clock=clock,
            ids=ids,
            hosts=hosts,
            logs=logs,
            findings=events.findings,
            launch_secrets=launch_secrets,
            task_roles=TaskRoles(
                store,
                clock,
                sts_ops,
                region=region,
                account_id=account_id,
                path_key=platform.identity.token_key,
            ),
            addresses=TaskAddresses(
                path_key=platform.identity.token_key,
                api_of_host=f"http://{reachable_address(settings.listen)}"
                if settings.task_api == "on"
                else "",
            ),
            region=region,
            account_id=account_id,
            platform_id=platform.identity.platform_id,
            vpc_cidr=platform.vpc_cidr,
            silence_s=settings.host_silence_s,
        )
    )
    suspending = SuspendOps(store, clock, ids, tasks, fleet, limits=limits)
    paging = Paging(platform.identity.token_key)
    sessions = ExecSessions(store, clock, ids, fleet)
    execs = NativeExec(tasks, sessions, authorizer, region=region, account_id=account_id)
    host_loss = HostLossLoop(store, hosts, clock, ids, lost_after_s=settings.host_lost_after_s)
    host_api = HostApi(hosts, HostLossOps(store, clock), host_loss.gives_up_at)
    preflight = Preflight(
        store,
        fleet,
        launch_secrets,
        roles,
        logs,
        clock,
        ids,
        limits=limits,
        region=region,
        account_id=account_id,
    )
    checks = NativeCheck(store, preflight, authorizer, EcsAccess(store, TagOps(store), region, account_id))
    app = Gateway(
        services=[
            ecs.service(
                store,
                clock,
                ids,
                tasks,
                paging,
                sessions,
                region=region,
                account_id=account_id,
                strict_aws=settings.strict_aws,
            ),
            logs_api.service(logs, paging, clock, ids, region=region, account_id=account_id),
            secretsmanager.service(secrets, paging),
            ssm.service(parameters, paging, sessions),
            iam.service(store, clock, ids, vault, paging, account_id=account_id),
            sts.service(sts_ops),
            ec2.service(
                store,
                paging,
                DiskSnapshotOps(store, clock, ids, fleet),
                region=region,
                account_id=account_id,
            ),
            efs.service(
                FileSystemOps(store, clock, ids, fleet, region=region, account_id=account_id),
                paging,
                account_id=account_id,
            ),
            s3.service(objects, paging, region=region, account_id=account_id),
            *events.services(paging),
        ],
        identity=identity,
        authorizer=authorizer,
        ids=ids,
        clock=clock,
        region=region,
        account_id=account_id,
        native_routes=(
            *NativeApi(tasks, suspending, ImageOps(store, fleet), fleet, host_api.of_task).routes(),
            *host_api.routes(),
            *events.routes(),
            *execs.routes(),
            *checks.routes(),
        ),
        upload_directory=paths.uploads,
        websockets=SessionSockets(sessions, clock, ids),
    )
    retention = RetentionLoop(
        store, logs, clock, ids, stopped_task_retention_s=settings.stopped_task_retention_s
    )
    loops: list[Coroutine[Any, Any, None]] = [
        PlacementLoop(store, clock, ids, limits).run(),
        retention.run(),
        MembershipLoop(store, hosts).run(),
        host_loss.run(),
        DefinitionLoop(store, ids).run(),
        SecretExpiryLoop(secrets, ids).run(),
        fleet.dispatch_changes(),
        *events.loops(),
    ]
    if settings.prefetch_images:
        tell = partial(events.tell, "Image Prefetch")
        prefetch = PrefetchLoop(store, fleet, launch_secrets, tell, region=region, account_id=account_id)
        loops.append(prefetch.run())
    await _serve(settings, paths, app, fleet, loops, ready_fd)


async def _serve(
    settings: Settings,
    paths: Paths,
    app: Any,
    fleet: Fleet,
    loops: list[Coroutine[Any, Any, None]],
    ready_fd: int,
) -> None:
    """Serve the API and the fleet until SIGTERM, or until a loop fails (a bug: better to start anew)."""
    host, _, port = settings.listen.rpartition(":")
    config = uvicorn.Config(
        app,
        host=host.strip("[]"),
        port=int(port),
        log_config=None,
        access_log=False,
        lifespan="off",
        http=GatheringHttpProtocol,
        proxy_headers=False,
        ws="websockets-sansio",
        ws_max_size=MAX_MESSAGE_BYTES,
        ws_per_message_deflate=False,
        # A client that is made to wait answers no pings either. They are sent, so that TCP finds out who is gone.
        ws_ping_timeout=None,
        server_header=False,
        timeout_graceful_shutdown=3,
        backlog=1024,
    )
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stop.set)
    with contextlib.suppress(FileNotFoundError):
        paths.fleet_socket.unlink()
    await fleet.listen(str(paths.fleet_socket))
    try:
        sockets = [_bind(host.strip("[]"), int(port))]
    except HutchError:
        for unused in loops:
            unused.close()
        raise
    running: list[asyncio.Task[Any]] = [asyncio.create_task(c) for c in loops]
    api: asyncio.Task[Any] = asyncio.create_task(server._serve(sockets))
    stopper: asyncio.Task[Any] = asyncio.create_task(stop.wait())
    calm_collector()
    _tell_ready(ready_fd, settings)
    done, _ = await asyncio.wait([api, stopper, *running], return_when=asyncio.FIRST_COMPLETED)
    server.should_exit = True
    for task in running:
        task.cancel()
    await fleet.close()
    await asyncio.gather(api, return_exceptions=True)
    await asyncio.gather(*running, return_exceptions=True)
    stopper.cancel()
    for task in done:
        if task is not stopper and task in running:
            task.result()


def _bind(host: str, port: int) -> socket.socket:
    """The API's socket. Raises `InUse` or `Invalid` naming the address."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        kind = InUse if error.errno == errno.EADDRINUSE else Invalid
        raise kind(f"can't listen on {host}:{port}: {error.strerror}; choose another with --listen") from None
    bound.set_inheritable(False)
    return bound


def _tell_ready(ready_fd: int, settings: Settings) -> None:
    log.info("control plane ready", endpoint=f"http://{settings.listen}")
    if ready_fd >= 0:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)


def placement_limits(settings: Settings) -> PlacementLimits:
    """The settings that placement goes by."""
    first, _, last = settings.ingress_ports.partition("-")
    return PlacementLimits(
        cpu_overcommit=settings.cpu_overcommit,
        memory_reserve_mib=settings.memory_reserve_mib,
        ingress_ports=(int(first), int(last or first)),
    )


if __name__ == "__main__":
    sys.exit(main())
