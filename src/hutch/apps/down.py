"""Ends a running platform, or cleans up after one that was killed.

python -m hutch.apps.down [--keep-tasks]
"""

import argparse
import asyncio
import os
import signal
import sys

import msgspec

from hutch.apps.host import build_agent
from hutch.apps.paths import Paths
from hutch.apps.up import ORPHANS_END_S, running_platform
from hutch.base.errors import HutchError, Rejected
from hutch.base.log import configure_logging
from hutch.host.kernel.process import wait_gone
from hutch.host.lb.haproxy import HaproxyIngress
from hutch.settings import Settings, load_settings
from hutch.store.lockfile import LockFile


def main() -> int:
    """0 when nothing runs any more (or nothing did); 1 with one line of cause."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--keep-tasks", action="store_true")
    keep_tasks = parser.parse_args().keep_tasks
    try:
        settings = load_settings()
        configure_logging("ERROR")
        return asyncio.run(_down(settings, keep_tasks))
    except HutchError as error:
        print(f"hutch down: {error.message}", file=sys.stderr)
        return 1


async def _down(settings: Settings, keep_tasks: bool) -> int:
    paths = Paths(settings)
    running = running_platform(paths.platform)
    if running is not None:
        try:
            os.kill(running.supervisor.pid, signal.SIGTERM if keep_tasks else signal.SIGINT)
        except PermissionError:
            raise Rejected("the platform runs as another user: run it as that user, or as root") from None
        await wait_gone(running.supervisor)
        print("hutch is down" + ("; its tasks go on" if keep_tasks else ""))
        return 0
    if keep_tasks or not (paths.host / "tasks").exists():
        print("hutch is not running")
        return 0
    return await _clean_up(settings, paths)


async def _clean_up(settings: Settings, paths: Paths) -> int:
    """The platform was killed: stop what it left running, and remove it from the host."""
    lock = LockFile(paths.lock, f"the platform in {paths.data}")
    lock.acquire(patience_s=ORPHANS_END_S)
    try:
        # There is no API to lead tasks to, and the address for it may not be there any more.
        agent, ingress = build_agent(msgspec.structs.replace(settings, task_api="off"), paths)
        await agent.start()
        await agent.shut_down(keep_tasks=False)
        if isinstance(ingress, HaproxyIngress):
            await ingress.stop()
    finally:
        lock.release()
    print("hutch was not running; nothing of it is left on this host")
    return 0


if __name__ == "__main__":
    sys.exit(main())
