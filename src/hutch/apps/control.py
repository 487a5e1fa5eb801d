"""The control plane process: stores, use cases, loops, fleet and API, from their opening to their end.

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

from hutch.api.gateway.onewrite import GatheringHttpProtocol
from hutch.api.sessions.app import MAX_MESSAGE_BYTES
from hutch.apps.api import gateway
from hutch.apps.collector import calm_collector
from hutch.apps.paths import Paths
from hutch.apps.supervised import watch_supervisor
from hutch.apps.usecases import UseCases, open_use_cases
from hutch.base.clock import SystemClock
from hutch.base.errors import HutchError, InUse, Invalid
from hutch.base.ids import RandomIds
from hutch.base.log import configure_logging, get_logger
from hutch.control.controllers.definitions import DefinitionLoop
from hutch.control.controllers.membership import MembershipLoop
from hutch.control.controllers.placement import PlacementLoop
from hutch.control.controllers.prefetch import PrefetchLoop
from hutch.control.controllers.retention import RetentionLoop
from hutch.control.controllers.secrets import SecretExpiryLoop
from hutch.control.fleet import Fleet
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
        cases = await open_use_cases(settings, paths, store, log_store, clock, ids)
        await _serve(settings, paths, gateway(cases, paths.uploads), cases.fleet, _loops(cases), ready_fd)
    finally:
        await log_store.close()
        await store.close()


def _loops(cases: UseCases) -> list[Coroutine[Any, Any, None]]:
    """What runs for ever besides the API."""
    store, clock, ids, fleet = cases.store, cases.clock, cases.ids, cases.fleet
    retention_s = cases.settings.stopped_task_retention_s
    loops: list[Coroutine[Any, Any, None]] = [
        PlacementLoop(store, clock, ids, cases.limits).run(),
        RetentionLoop(store, cases.logs, clock, ids, stopped_task_retention_s=retention_s).run(),
        MembershipLoop(store, cases.hosts).run(),
        cases.host_loss.run(),
        DefinitionLoop(store, ids).run(),
        SecretExpiryLoop(cases.secrets, ids).run(),
        fleet.dispatch_changes(),
        *cases.events.loops(),
    ]
    if cases.settings.prefetch_images:
        tell = partial(cases.events.tell, "Image Prefetch")
        loops.append(PrefetchLoop(store, fleet, cases.launch_secrets, tell, **cases.where).run())
    return loops


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
    server = _api_server(app, host.strip("[]"), int(port))
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


def _api_server(app: Any, host: str, port: int) -> uvicorn.Server:
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
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
    return server


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


if __name__ == "__main__":
    sys.exit(main())
