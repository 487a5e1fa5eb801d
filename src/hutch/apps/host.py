"""The host agent process: drivers, images, network and ingress, put together.

Run by the supervisor as `python -m hutch.apps.host`; settings come in the environment. SIGTERM: let go of the tasks and
end. SIGINT: stop all tasks, remove everything from the host, end.
"""

import argparse
import asyncio
import contextlib
import hashlib
import signal
import socket
import sys
from pathlib import Path

import uvloop

from hutch.apps.collector import calm_collector
from hutch.apps.paths import Paths, guest_dir, reachable_address
from hutch.apps.supervised import watch_supervisor
from hutch.apps.threats import load_threat_rules
from hutch.base.clock import SystemClock
from hutch.base.errors import HutchError, Invalid
from hutch.base.ids import RandomIds
from hutch.base.log import configure_logging, get_logger
from hutch.base.units import GIB, MIB
from hutch.host.agent.agent import AgentContext, HostAgent
from hutch.host.agent.context import Ingress
from hutch.host.agent.driverwatch import program_directories
from hutch.host.agent.kept import KeptLimits
from hutch.host.drivers.contract import Driver
from hutch.host.drivers.fake import FakeDriver
from hutch.host.drivers.fake_host import FakeImages, FakeIngress, FakeNetwork
from hutch.host.drivers.microvm.jail import Confinement
from hutch.host.images.contract import ImageStore
from hutch.host.images.store import DiskImageStore
from hutch.host.lb.haproxy import HaproxyIngress
from hutch.host.network.bridge import BridgeNetwork
from hutch.host.network.contract import HostNetwork
from hutch.rules import netplan
from hutch.rules.lbplan import TaskApi
from hutch.settings import Settings, load_settings

log = get_logger(__name__)


def main() -> int:
    """Run until a signal. Exit code 0 after an orderly end, 1 if it can't start."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--supervisor-fds", default="")
    supervisor_fds = parser.parse_args().supervisor_fds
    settings = load_settings()
    configure_logging(settings.log_level)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(settings, supervisor_fds))
    except HutchError as error:
        log.error("host agent can't go on", reason=error.message)
        return 1
    return 0


async def _run(settings: Settings, supervisor_fds: str) -> None:
    watch_supervisor(supervisor_fds)
    paths = Paths(settings)
    paths.make()
    agent, ingress = build_agent(settings, paths)
    ended = asyncio.Event()
    keep_tasks = True

    def on_signal(keep: bool) -> None:
        nonlocal keep_tasks
        keep_tasks = keep
        ended.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_signal, True)
    loop.add_signal_handler(signal.SIGINT, on_signal, False)
    await agent.start()
    calm_collector()
    serving = asyncio.create_task(agent.serve())
    waiting = asyncio.create_task(ended.wait())
    await asyncio.wait({serving, waiting}, return_when=asyncio.FIRST_COMPLETED)
    if serving.done():
        waiting.cancel()
        serving.result()
    await agent.shut_down(keep_tasks=keep_tasks)
    if isinstance(ingress, HaproxyIngress):
        await (ingress.close() if keep_tasks else ingress.stop())
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def build_agent(settings: Settings, paths: Paths) -> tuple[HostAgent, Ingress]:
    """The agent with the backends that the settings ask for."""
    clock, ids = SystemClock(), RandomIds()
    platform_id = platform_id_of(paths)
    names = [n.strip() for n in settings.drivers.split(",") if n.strip()]
    fake = names == ["fake"]
    drivers = tuple(_driver(n, settings, paths, platform_id) for n in names)
    images: ImageStore = FakeImages()
    network: HostNetwork = FakeNetwork()
    ingress: Ingress = FakeIngress()
    if not fake:
        images = DiskImageStore(
            paths.images,
            clock=clock,
            cache_bytes=settings.image_cache_gib * GIB,
            insecure_registries=tuple(r for r in settings.insecure_registries.split(",") if r),
            auth_file=Path(settings.registry_auth_file) if settings.registry_auth_file else None,
        )
        api = _task_api(settings, platform_id)
        network = BridgeNetwork(
            platform_id=platform_id, state_path=paths.host / "ip_forward", task_api=api is not None
        )
        ingress = HaproxyIngress(paths.run / "ingress", bind_address=settings.ingress_address, task_api=api)
    context = AgentContext(
        host_id=_host_id(paths, ids.hex(17)),
        name=socket.gethostname(),
        state_directory=paths.host,
        drivers=drivers,
        images=images,
        network=network,
        ingress=ingress,
        clock=clock,
        control_socket=paths.fleet_socket,
        install_places=() if fake else (*program_directories(), guest_dir(settings)),
        memory_mib=settings.host_memory_mib,
        kept_disks=KeptLimits(
            bytes=settings.kept_disks_mib * MIB,
            life_s=min(settings.kept_disks_hours * 3600, settings.stopped_task_retention_s),
        ),
        threat_rules=load_threat_rules(settings),
    )
    return HostAgent(context), ingress


def _task_api(settings: Settings, platform_id: str) -> TaskApi | None:
    """Where tasks find the platform's API, if they are to."""
    if settings.task_api == "off":
        return None
    return TaskApi(
        address=netplan.TASK_ENDPOINT[0],
        port=netplan.TASK_API_PORT,
        link=netplan.bridge_name(platform_id),
        server=reachable_address(settings.listen),
    )


def _driver(name: str, settings: Settings, paths: Paths, platform_id: str) -> Driver:
    clock = SystemClock()
    if name == "fake":
        return FakeDriver(clock=clock)
    if name == "microvm":
        from hutch.host.drivers.microvm.driver import MicrovmDriver
        from hutch.host.drivers.microvm.warm import WarmLimits

        return MicrovmDriver(
            platform_id=platform_id,
            guest_dir=guest_dir(settings),
            state_dir=paths.host,
            accelerator=settings.accelerator,
            clock=clock,
            confinement=_confinement(settings),
            warm=WarmLimits(count=settings.warm_pool, memory_mib=settings.warm_pool_memory_mib),
            file_systems_dir=Path(settings.file_systems_dir) if settings.file_systems_dir else None,
        )
    if name == "firecracker":
        from hutch.host.drivers.firecracker.driver import FirecrackerDriver

        return FirecrackerDriver(
            platform_id=platform_id,
            program=settings.firecracker_program,
            guest_dir=guest_dir(settings),
            state_dir=paths.host / "firecracker",
            clock=clock,
            confinement=_confinement(settings),
        )
    if name == "container":
        from hutch.host.drivers.container.driver import ContainerDriver

        return ContainerDriver(
            platform_id=platform_id,
            state_dir=paths.host / "container",
            runtime=settings.container_runtime,
            toolbox=guest_dir(settings) / "toolbox",
            clock=clock,
            cap_cpu=_caps_cpu(settings),
        )
    raise Invalid(f"--drivers: {name!r} is not one of microvm, container, firecracker, fake")


def _caps_cpu(settings: Settings) -> bool:
    """Whether no task may have more CPU than its share, asked for by it or not."""
    return settings.strict_aws if settings.cpu_burst == "auto" else settings.cpu_burst == "off"


def _confinement(settings: Settings) -> Confinement:
    """What this host's owner decided about the jails of VM monitors."""
    first, _, last = settings.vm_user_ids.partition("-")
    return Confinement(
        user_ids=(int(first), int(last)),
        cap_cpu=_caps_cpu(settings),
        disk_bytes_per_s=settings.vm_disk_mib_per_s * MIB,
    )


def _host_id(paths: Paths, fresh: str) -> str:
    """This host's id, made once."""
    path = paths.host / "host-id"
    if not path.exists():
        path.write_text(f"i-{fresh}")
    return path.read_text().strip()


def platform_id_of(paths: Paths) -> str:
    """The platform's id: it names everything that is made on the host."""
    path = paths.host / "platform-id"
    if not path.exists():
        path.write_text(hashlib.sha256(f"{paths.data}\0{paths.data.stat().st_ino}".encode()).hexdigest()[:8])
    return path.read_text().strip()


if __name__ == "__main__":
    sys.exit(main())
