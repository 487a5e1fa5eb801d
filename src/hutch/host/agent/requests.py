"""What the control plane asks of a host beside its assignments: each verb, and how its arguments are understood."""

from typing import Any

import msgspec

from hutch.base.errors import HutchError, Invalid
from hutch.host.agent.execs import TaskExecs
from hutch.host.agent.filesystems import HostFileSystems
from hutch.host.agent.kept import KeptDisks
from hutch.host.agent.link import ControlLink
from hutch.host.agent.prefetch import ImagePrefetch
from hutch.host.agent.preflight import HostPreflight
from hutch.host.agent.snapshots import Snapshots
from hutch.host.agent.tasks import HostTasks
from hutch.host.agent.volumes import HostVolumes
from hutch.host.drivers.contract import HostFault
from hutch.host.images.contract import ImageStore
from hutch.wire import fleet as wire


class Requests:
    """Answers them, over the connection that they came by."""

    def __init__(
        self,
        *,
        link: ControlLink,
        tasks: HostTasks,
        execs: TaskExecs,
        images: ImageStore,
        prefetch: ImagePrefetch,
        preflight: HostPreflight,
        snapshots: Snapshots,
        kept: KeptDisks,
        volumes: HostVolumes,
        file_systems: HostFileSystems,
    ) -> None:
        self._link = link
        self._tasks = tasks
        self._execs = execs
        self._images = images
        self._prefetch = prefetch
        self._preflight = preflight
        self._snapshots = snapshots
        self._kept = kept
        self._volumes = volumes
        self._file_systems = file_systems

    async def answer(self, request: wire.Request) -> None:
        """Do what is asked, and say what came of it."""
        try:
            result = await self._serve(request.verb, request.arguments)
            self._link.send(wire.Reply(request_id=request.request_id, result=result))
        except HostFault as fault:
            text = f"{fault.message}; {fault.fix}" if fault.fix else fault.message
            self._link.send(wire.Reply(request_id=request.request_id, error_kind=fault.kind, error=text))
        except (HutchError, OSError) as error:
            self._link.send(wire.Reply(request_id=request.request_id, error_kind="Failed", error=str(error)))

    async def _serve(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if verb == "task.exec":
            return await self._execs.open(arguments)
        if verb == "image.import":
            fact = await self._images.import_archive(arguments["path"], arguments.get("name") or None)
            built: dict[str, Any] = msgspec.to_builtins(fact)
            return built
        if verb == "image.prefetch":
            return await self._prefetch.run(arguments)
        if verb == "task.preflight":
            return await self._preflight.run(arguments)
        if verb == "image.remove":
            return {"removed": await self._images.remove(arguments["name"])}
        if verb == "volume.list":
            return {"volumes": await self._volumes.told()}
        if verb == "volume.remove":
            await self._volumes.remove(arguments["id"])
            return {}
        if verb == "disk.list":
            return {"disks": msgspec.to_builtins(self._kept.all())}
        if verb == "disk.show":
            shown: dict[str, Any] = msgspec.to_builtins(self._kept.describe(arguments["task_id"]))
            return shown
        if verb == "disk.remove":
            await self._kept.remove(arguments["task_id"])
            return {}
        if verb == "disk_snapshot.make":
            await self._volumes.make_snapshot(arguments["volume_id"], arguments["snapshot_id"])
            return {}
        if verb == "disk_snapshot.remove":
            await self._volumes.remove_snapshot(arguments["snapshot_id"])
            return {}
        if verb == "filesystem.remove":
            await self._file_systems.remove(arguments["id"])
            return {}
        if verb == "filesystem.sizes":
            return {"sizes": await self._file_systems.sizes(arguments["ids"])}
        if verb == "task.logs":
            return await self._tasks.read_logs(
                arguments["task_id"], arguments["container"], arguments["tail"]
            )
        if verb == "task.log_drivers":
            return {"containers": self._tasks.running(arguments["task_id"]).log_drivers()}
        if verb == "task.stats":
            built = msgspec.to_builtins(await self._tasks.running(arguments["task_id"]).stats())
            return built
        if verb == "task.suspend":
            await self._tasks.running(arguments["task_id"]).suspend()
            return {}
        if verb == "task.resume":
            await self._tasks.running(arguments["task_id"]).resume()
            return {}
        if verb == "task.snapshot":
            await self._snapshot(arguments["task_id"], arguments["snapshot_id"], arguments["uses"])
            return {}
        if verb == "snapshot.remove":
            await self._snapshots.remove(arguments["snapshot_id"])
            return {}
        raise Invalid(f"unknown request {verb!r}")

    async def _snapshot(self, task_id: str, snapshot_id: str, uses: int) -> None:
        runner = self._tasks.running(task_id)
        path = self._snapshots.expect(snapshot_id, int(uses))
        try:
            await runner.snapshot(path)
        except BaseException:
            await self._snapshots.remove(snapshot_id)
            raise
