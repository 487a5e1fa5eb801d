"""Tags of ECS resources, whatever kind they are."""

from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from hutch.base.errors import Invalid, NotFound
from hutch.model.record import Cause
from hutch.rules.arns import parse_resource
from hutch.rules.tags import merged
from hutch.store import tables
from hutch.store.contract import Reader, Store, Table, Tx

_KINDS: dict[str, tuple[Table[Any], int]] = {
    "cluster": (tables.CLUSTERS, 1),
    "task": (tables.TASKS, 2),
    "container-instance": (tables.CONTAINER_INSTANCES, 2),
    "task-definition": (tables.TASK_DEFINITIONS, 1),
}


class TagOps:
    """TagResource, UntagResource, ListTagsForResource."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def tag(self, cause: Cause, arn: str, tags: dict[str, str]) -> None:
        await self._change(cause, arn, lambda before: merged(before, tags))

    async def untag(self, cause: Cause, arn: str, keys: Sequence[str]) -> None:
        if any(k.startswith("aws:") for k in keys):
            raise Invalid("Tags that start with 'aws:' cannot be removed.")
        await self._change(cause, arn, lambda before: {k: v for k, v in before.items() if k not in keys})

    def list(self, arn: str) -> dict[str, str]:
        with self._store.read() as reader:
            tags: dict[str, str] = _find(reader, arn)[1].tags
            return tags

    async def _change(
        self, cause: Cause, arn: str, change: Callable[[dict[str, str]], dict[str, str]]
    ) -> None:
        def work(tx: Tx) -> None:
            table, record = _find(tx, arn)
            after = change(record.tags)
            if after != record.tags:
                tx.put(table, replace(record, tags=after))

        await self._store.write(cause, work)


def _find(reader: Reader, arn: str) -> tuple[Table[Any], Any]:
    kind, parts = parse_resource(arn)
    if kind not in _KINDS or len(parts) != _KINDS[kind][1]:
        raise Invalid(f"hutch keeps no tags for {arn[:200]}.")
    table = _KINDS[kind][0]
    key = parts
    if kind == "task-definition":
        family, _, revision = parts[0].partition(":")
        if not revision.isdecimal() or len(revision) > 10:
            raise Invalid("The ARN of a task definition must have a revision.")
        key = (family, f"{int(revision):010d}")
    record = reader.get(table, *key)
    if kind == "cluster" and record is not None and record.status == "INACTIVE":
        raise Invalid("The specified cluster is inactive. Specify an active cluster and try again.")
    if record is None:
        if kind == "cluster":
            raise NotFound("Cluster not found.", code="ClusterNotFoundException")
        raise Invalid("The specified resource was not found.", code="InvalidParameterException")
    return table, record
