"""hutch's own routes: what AWS's API has no words for. All are signed, with the service name `hutch`."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from hutch.api.gateway.native import NativeRequest, NativeRoute
from hutch.base.errors import HutchError, Invalid, NotFound, Unavailable
from hutch.control.ops.images import HostRequests, ImageOps
from hutch.control.ops.suspending import SuspendOps
from hutch.control.ops.tasks import TaskOps
from hutch.model.image import LocalImage
from hutch.model.record import Cause
from hutch.model.task import Task
from hutch.rules.image_reference import normalise_name

MAX_ARCHIVE_BYTES = 64 * 1024**3
MAX_LOG_LINES = 10_000
MAX_WAIT_S = 50.0
HOST_ANSWER_S = 3.0


class NativeApi:
    """The handlers of hutch's own routes."""

    def __init__(
        self,
        tasks: TaskOps,
        suspending: SuspendOps,
        images: ImageOps,
        fleet: HostRequests,
        host_of_task: Callable[[str], dict[str, Any] | None],
    ) -> None:
        self._host_of_task = host_of_task
        self._suspending = suspending
        self._tasks = tasks
        self._images = images
        self._fleet = fleet

    def routes(self) -> tuple[NativeRoute, ...]:
        return (
            NativeRoute(method="GET", template="/hutch/v1/images", handler=self.list_images),
            NativeRoute(
                method="POST",
                template="/hutch/v1/images",
                handler=self.import_image,
                max_body_bytes=MAX_ARCHIVE_BYTES,
                takes_file=True,
            ),
            NativeRoute(method="DELETE", template="/hutch/v1/images/{name*}", handler=self.remove_image),
            NativeRoute(method="GET", template="/hutch/v1/volumes", handler=self.list_volumes),
            NativeRoute(method="DELETE", template="/hutch/v1/volumes/{id*}", handler=self.remove_volume),
            NativeRoute(method="GET", template="/hutch/v1/disks", handler=self.list_disks),
            NativeRoute(method="DELETE", template="/hutch/v1/disks/{task}", handler=self.remove_disk),
            NativeRoute(method="GET", template="/hutch/v1/tasks/{task}/why", handler=self.why),
            NativeRoute(method="GET", template="/hutch/v1/tasks/{task}/wait", handler=self.wait),
            NativeRoute(method="GET", template="/hutch/v1/tasks/{task}/logs", handler=self.logs),
            NativeRoute(method="GET", template="/hutch/v1/tasks/{task}/stats", handler=self.stats),
            NativeRoute(method="POST", template="/hutch/v1/tasks/{task}/suspend", handler=self.suspend_task),
            NativeRoute(method="POST", template="/hutch/v1/tasks/{task}/resume", handler=self.resume_task),
            NativeRoute(method="POST", template="/hutch/v1/tasks/{task}/fork", handler=self.fork_task),
        )

    async def list_images(self, request: NativeRequest) -> dict[str, Any]:
        return {"images": [_image(i) for i in self._images.list()]}

    async def import_image(self, request: NativeRequest) -> dict[str, Any]:
        image = await self._images.import_archive(
            _cause(request, "image import"), Path(request.file_path), request.query.get("name", "")
        )
        return _image(image)

    async def remove_image(self, request: NativeRequest) -> dict[str, Any]:
        name = normalise_name(request.params["name"])
        await self._images.remove(_cause(request, "image rm"), name)
        return {}

    async def list_volumes(self, request: NativeRequest) -> dict[str, Any]:
        """The volumes that outlive their tasks, of all hosts that are connected."""
        found = []
        for host_id in self._fleet.connected_host_ids:
            answer = await self._fleet.request(host_id, "volume.list", {})
            found += [{**v, "host_id": host_id} for v in answer["volumes"]]
        return {"volumes": found}

    async def remove_volume(self, request: NativeRequest) -> dict[str, Any]:
        """Remove a volume on every connected host that has it."""
        volume_id = request.params["id"]
        hosts = [v["host_id"] for v in (await self.list_volumes(request))["volumes"] if v["id"] == volume_id]
        if not hosts:
            raise NotFound(f"no host has a volume {volume_id[:300]}; `hutch volume ls` lists them")
        for host_id in hosts:
            await self._fleet.request(host_id, "volume.remove", {"id": volume_id})
        return {}

    async def list_disks(self, request: NativeRequest) -> dict[str, Any]:
        """The disks of stopped tasks that are kept, of all hosts that are connected."""
        found = []
        for host_id in self._fleet.connected_host_ids:
            answer = await self._fleet.request(host_id, "disk.list", {})
            found += [{**d, "host_id": host_id} for d in answer["disks"]]
        return {"disks": found}

    async def remove_disk(self, request: NativeRequest) -> dict[str, Any]:
        """Drop the disk of a stopped task now."""
        task = self._tasks.find_anywhere(request.params["task"])
        if not task.is_stopped:
            raise Invalid(
                f"task {task.task_id} is {task.last_status}: its disk is its own until it has stopped"
            )
        if not task.host_id:
            raise NotFound(f"task {task.task_id} never came to a host, so it has no disk")
        await self._fleet.request(task.host_id, "disk.remove", {"task_id": task.task_id})
        return {}

    async def why(self, request: NativeRequest) -> dict[str, Any]:
        """The cause chain and the launch waterfall of a task, and how the shipping of its logs is; of a stopped one also what
        is known of its disk."""
        task = self._tasks.find_anywhere(request.params["task"])
        disk: dict[str, Any] = {}
        if task.is_stopped and task.host_id in self._fleet.connected_host_ids:
            # What is known without the host is told also if it has just gone.
            with contextlib.suppress(Unavailable):
                disk = await self._fleet.request(task.host_id, "disk.show", {"task_id": task.task_id})
        seen = self._why(task) | ({"disk": disk} if disk else {})
        return seen | {"log_drivers": await self._log_drivers(task)}

    async def _log_drivers(self, task: Task) -> dict[str, Any]:
        """By container, of those whose logs leave the host: driver, waiting_bytes, dropped_bytes, problem. Of a task that
        runs its host is asked; of others the host has told."""
        if task.last_status == "RUNNING" and task.host_id in self._fleet.connected_host_ids:
            try:
                async with asyncio.timeout(HOST_ANSWER_S):
                    answer = await self._fleet.request(
                        task.host_id, "task.log_drivers", {"task_id": task.task_id}
                    )
                return dict(answer["containers"])
            except (HutchError, TimeoutError):
                pass  # it has ended meanwhile, or the host is busy: what is known must do
        return {
            c.name: {
                "waiting_bytes": c.log_waiting_bytes,
                "dropped_bytes": c.log_dropped_bytes,
                "problem": c.log_problem,
            }
            for c in task.containers
            if c.log_waiting_bytes or c.log_dropped_bytes or c.log_problem
        }

    async def wait(self, request: NativeRequest) -> dict[str, Any]:
        """As `why`, as soon as the task has one of the statuses in `until` (comma separated), or after 50 s."""
        until = frozenset(request.query.get("until", "RUNNING,STOPPED").split(","))
        return self._why(await self._tasks.wait(request.params["task"], until, MAX_WAIT_S))

    async def logs(self, request: NativeRequest) -> dict[str, Any]:
        """The newest lines that the host kept of a container (query: container, tail)."""
        task = self._tasks.find_anywhere(request.params["task"])
        tail = request.query.get("tail", "100")
        if not tail.isdecimal() or len(tail) > 9 or not 1 <= int(tail) <= MAX_LOG_LINES:
            raise Invalid(f"tail must be between 1 and {MAX_LOG_LINES}")
        container = request.query.get("container", task.containers[0].name)
        if container not in {c.name for c in task.containers}:
            raise Invalid(f"task {task.task_id} has no container named {container}")
        return await self._fleet.request(
            task.host_id, "task.logs", {"task_id": task.task_id, "container": container, "tail": int(tail)}
        )

    async def stats(self, request: NativeRequest) -> dict[str, Any]:
        """What a running task uses."""
        task = self._tasks.find_anywhere(request.params["task"])
        return await self._fleet.request(task.host_id, "task.stats", {"task_id": task.task_id})

    async def suspend_task(self, request: NativeRequest) -> dict[str, Any]:
        """Take a running task out of memory; answered when it is."""
        return self._why(await self._suspending.suspend(request.params["task"]))

    async def resume_task(self, request: NativeRequest) -> dict[str, Any]:
        """Let a suspended task go on; answered when it does."""
        return self._why(
            await self._suspending.resume(_cause(request, "task resume"), request.params["task"])
        )

    async def fork_task(self, request: NativeRequest) -> dict[str, Any]:
        """Copies of a running task. Body: `{"count": 1}`."""
        count = request.body.get("count", 1) if isinstance(request.body, dict) else 1
        if not isinstance(count, int) or isinstance(count, bool):
            raise Invalid("count must be a whole number")
        cause = _cause(request, "task fork")
        forks = await self._suspending.fork(cause, request.params["task"], count)
        return {"tasks": [self._why(t) for t in forks]}

    def _why(self, task: Task) -> dict[str, Any]:
        host = None if task.is_stopped else self._host_of_task(task.host_id)
        return {**_why(task), "host_id": task.host_id, "host": host}


def _cause(request: NativeRequest, action: str) -> Cause:
    return Cause(id=request.request_id, actor=request.principal.arn, action=action)


def _image(image: LocalImage) -> dict[str, Any]:
    shape: dict[str, Any] = msgspec.to_builtins(image)
    shape.pop("version", None)
    return shape


def _why(task: Task) -> dict[str, Any]:
    return {
        "task_id": task.task_id,
        "cluster": task.cluster,
        "definition": f"{task.family}:{task.revision}",
        "launch_type": task.launch_type,
        "last_status": task.last_status,
        "desired_status": task.desired_status,
        "waiting_reason": task.waiting_reason,
        "stop_code": task.stop_code,
        "stopped_reason": task.stopped_reason,
        "created_at": task.created_at,
        "started_at": task.started_at,
        "suspended_at": task.suspended_at,
        "fork_of": task.fork_of,
        "stopped_at": task.stopped_at,
        "causes": [
            {"kind": c.kind, "text": c.text, "evidence": c.evidence, "fix": c.fix} for c in task.causes
        ],
        "phases": [
            {"name": p.name, "started_at": p.started_at, "ended_at": p.ended_at, "detail": p.detail}
            for p in task.phases
        ],
        "address": task.network.private_ipv4 if task.network else "",
        "endpoints": [f"http://{e.name}.localhost:{e.host_port}/" for e in task.endpoints],
        "containers": [
            {
                "name": c.name,
                "image": c.image,
                "status": c.last_status,
                "health": c.health_status,
                "exit_code": c.exit_code,
                "reason": c.reason,
            }
            for c in task.containers
        ],
    }
