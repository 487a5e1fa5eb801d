"""Has the hosts make the images of new task definitions ready, before a task is run of them. Only with
`--prefetch-images`; a task never waits for it, and pulls what it needs as without.

Whatever comes of it is an event (`Image Prefetch`) and a line in the log. What is under way when the control plane ends
is not taken up again: the next RunTask does.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.units import GIB
from hutch.control.launch_refusals import LaunchRefused
from hutch.control.launch_secrets import LaunchSecrets
from hutch.control.ops.images import HostRequests
from hutch.control.taskspec import ARCHITECTURES, DEFAULT_EPHEMERAL_GIB
from hutch.model.taskdef import TaskDefinition
from hutch.rules.execution_role import role_of
from hutch.store import tables
from hutch.store.contract import Store
from hutch.wire.image_requests import ImageWanted, PrefetchedImage, PrefetchWanted

log = get_logger(__name__)

MAX_AT_ONCE = 2
"""Definitions; each host takes one image at a time."""
MAX_WAITING = 100
SESSION_NAME = "image-prefetch"
"""As whom registry credentials are read, if the definition has an execution role."""
_TABLES = frozenset({tables.TASK_DEFINITIONS.name})

Tell = Callable[[dict[str, Any], str], Awaitable[None]]
"""Publishes an event's detail, about a resource (ARN)."""


class PrefetchLoop:
    """Level-triggered it is not: what was registered while no control plane ran is left to RunTask."""

    def __init__(
        self,
        store: Store,
        hosts: HostRequests,
        secrets: LaunchSecrets,
        tell: Tell,
        *,
        region: str,
        account_id: str,
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._secrets = secrets
        self._tell = tell
        self._prefix = f"arn:aws:ecs:{region}:{account_id}:task-definition/"
        self._waiting: asyncio.Queue[tuple[str, ...]] = asyncio.Queue(maxsize=MAX_WAITING)

    async def run(self) -> None:
        """For ever."""
        works = [asyncio.create_task(self._work()) for _ in range(MAX_AT_ONCE)]
        works.append(asyncio.create_task(self._follow()))
        try:
            done, _ = await asyncio.wait(works, return_when=asyncio.FIRST_COMPLETED)
            done.pop().result()
        finally:
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)

    async def _follow(self) -> None:
        seen = self._store.last_seq()
        while True:
            await self._store.wait_for_change(seen, _TABLES)
            changes = self._store.changes(seen)
            if changes is None:
                seen = self._store.last_seq()
                continue
            for change in changes:
                if change.table in _TABLES and change.version == 1:
                    self._enqueue(change.key)
            seen = changes[-1].seq if changes else seen

    def _enqueue(self, key: tuple[str, ...]) -> None:
        try:
            self._waiting.put_nowait(key)
        except asyncio.QueueFull:
            log.warning("images not prefetched", definition=key[0], reason=f"{MAX_WAITING} others wait")

    async def _work(self) -> None:
        while True:
            key = await self._waiting.get()
            with self._store.read() as reader:
                definition = reader.get(tables.TASK_DEFINITIONS, *key)
            if definition is not None and definition.status == "ACTIVE":
                await self._prefetch(definition)

    async def _prefetch(self, definition: TaskDefinition) -> None:
        """On all connected hosts, side by side."""
        try:
            wanted = self._wanted(definition)
        except LaunchRefused as refused:
            failed = PrefetchedImage(
                reference=str(refused.link.evidence.get("container", "")),
                error_kind=refused.link.kind,
                error=refused.message,
                fix=refused.link.fix,
            )
            await self._publish(definition, "", [failed])
            return
        arguments: dict[str, Any] = msgspec.to_builtins(wanted)
        hosts = self._hosts.connected_host_ids
        await asyncio.gather(*(self._on_host(definition, h, arguments) for h in hosts))

    def _wanted(self, definition: TaskDefinition) -> PrefetchWanted:
        """What hosts are asked for. Raises `LaunchRefused`."""
        document = definition.document
        containers = document["containerDefinitions"]
        private = any(c.get("repositoryCredentials") for c in containers)
        role = self._secrets.assume(role_of({}, document), SESSION_NAME) if private else None
        with self._store.read() as reader:
            logins = [self._secrets.registry_login(reader, c, role) for c in containers]
        images = {
            (c["image"], login): ImageWanted(reference=c["image"], credentials=login)
            for c, login in zip(containers, logins, strict=True)
        }
        platform = document.get("runtimePlatform", {})
        disk_gib = document.get("ephemeralStorage", {}).get("sizeInGiB", DEFAULT_EPHEMERAL_GIB)
        return PrefetchWanted(
            images=tuple(images.values()),
            launch_types=_launch_types(definition),
            architecture=ARCHITECTURES[platform.get("cpuArchitecture", "X86_64")],
            max_bytes=disk_gib * GIB,
        )

    async def _on_host(self, definition: TaskDefinition, host_id: str, arguments: dict[str, Any]) -> None:
        try:
            answer = await self._hosts.request(host_id, "image.prefetch", arguments)
            done = msgspec.convert(answer["images"], list[PrefetchedImage])
        except (HutchError, TimeoutError) as error:
            text = str(error) or "the host did not answer in time"
            done = [
                PrefetchedImage(reference=i["reference"], error_kind="Failed", error=text)
                for i in arguments["images"]
            ]
        if done:
            await self._publish(definition, host_id, done)

    async def _publish(self, definition: TaskDefinition, host_id: str, images: list[PrefetchedImage]) -> None:
        arn = self._prefix + definition.name
        for image in images:
            if image.error:
                log.warning(
                    "image not prefetched",
                    definition=definition.name,
                    image=image.reference,
                    host=host_id,
                    reason=image.error,
                )
        detail = {
            "taskDefinitionArn": arn,
            "hostId": host_id,
            "result": "FAILED" if any(i.error for i in images) else "SUCCEEDED",
            "images": [_shape(i) for i in images],
        }
        try:
            await self._tell(detail, arn)
        except HutchError as error:
            log.warning("event not published", definition=definition.name, reason=error.message)


def _launch_types(definition: TaskDefinition) -> tuple[str, ...]:
    """Those that the definition is meant for; where it does not say, a microVM if it can be run in one."""
    required = tuple(definition.document.get("requiresCompatibilities", ()))
    able = definition.compatibilities
    return required or (("FARGATE",) if "FARGATE" in able else able)


def _shape(image: PrefetchedImage) -> dict[str, Any]:
    if image.error:
        return {"image": image.reference, "kind": image.error_kind, "reason": image.error, "fix": image.fix}
    return {"image": image.reference, "digest": image.digest, "seconds": image.took_s}
