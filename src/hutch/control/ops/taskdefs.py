"""Use cases of task definitions."""

import re
from typing import Any

from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.model.record import Cause
from hutch.model.taskdef import Family, TaskDefinition
from hutch.rules.taskdef.register import register
from hutch.store import tables
from hutch.store.contract import IndexKey, Reader, Store, Tx

MAX_DELETE = 10
ACTIVE, INACTIVE, DELETE_IN_PROGRESS = "ACTIVE", "INACTIVE", "DELETE_IN_PROGRESS"
_STILL_ACTIVE = (
    "The specified task definition is still in ACTIVE status. Please deregister the target and try again."
)
_NOT_THERE = (
    "The specified task definition does not exist. Specify a valid account, family, revision and try again."
)
_NO_REVISION = (
    "The specified task definition identifier is invalid. Specify a valid name or ARN and try again."
)
_REFERENCE = re.compile(
    r"(?:arn:aws[a-z-]*:ecs:[a-z0-9-]*:[0-9]*:task-definition/)?([A-Za-z0-9_-]{1,255})(?::([0-9]{1,10}))?"
)


class TaskDefinitionOps:
    """Task definition use cases."""

    def __init__(self, store: Store, clock: Clock, *, strict_aws: bool) -> None:
        self._store = store
        self._clock = clock
        self._strict_aws = strict_aws

    async def register(self, cause: Cause, given: dict[str, Any], tags: dict[str, str]) -> TaskDefinition:
        """The next revision of a family. Raises `Invalid` with AWS's words."""
        checked = register(given, strict_aws=self._strict_aws)

        def work(tx: Tx) -> TaskDefinition:
            family = tx.get(tables.FAMILIES, checked.family) or Family(name=checked.family, latest_revision=0)
            revision = family.latest_revision + 1
            tx.put(
                tables.FAMILIES, replace(family, latest_revision=revision, latest_active_revision=revision)
            )
            return tx.put(
                tables.TASK_DEFINITIONS,
                TaskDefinition(
                    family=checked.family,
                    revision=revision,
                    registered_at=self._clock.now(),
                    registered_by=cause.actor,
                    compatibilities=checked.compatibilities,
                    requires_attributes=checked.requires_attributes,
                    document=checked.document,
                    tags=tags,
                    warnings=checked.warnings,
                ),
            )

        return await self._store.write(cause, work)

    def describe(self, reference: str) -> TaskDefinition:
        """A revision, whatever its status. Raises AWS's `Unable to describe task definition.`"""
        with self._store.read() as reader:
            found = find_task_definition(reader, reference)
        if found is None:
            raise Invalid("Unable to describe task definition.", code="ClientException")
        return found

    async def deregister(self, cause: Cause, reference: str) -> TaskDefinition:
        """ACTIVE to INACTIVE: what runs goes on, nothing new starts from it."""

        def work(tx: Tx) -> TaskDefinition:
            if ":" not in reference.rpartition("/")[2]:
                raise Invalid("Invalid revision number. Number: null", code="ClientException")
            found = find_task_definition(tx, reference)
            if found is None:
                raise Invalid("The specified task definition does not exist.", code="ClientException")
            if found.status != ACTIVE:
                return found
            changed = replace(found, status=INACTIVE, deregistered_at=self._clock.now())
            stored = tx.put(tables.TASK_DEFINITIONS, changed)
            _update_family(tx, found.family)
            return stored

        return await self._store.write(cause, work)

    async def delete(
        self, cause: Cause, references: list[str]
    ) -> tuple[list[TaskDefinition], list[tuple[str, str]]]:
        """INACTIVE to DELETE_IN_PROGRESS; (deleted, [(reference, reason)]).

        `remove_unused` takes the record away when no task needs it any more.
        """
        if not 1 <= len(references) <= MAX_DELETE:
            raise Invalid(f"taskDefinitions must name 1 to {MAX_DELETE} revisions.")

        def work(tx: Tx) -> tuple[list[TaskDefinition], list[tuple[str, str]]]:
            deleted, failures = [], []
            for reference in references:
                found = find_task_definition(tx, reference)
                if not _names_revision(reference):
                    failures.append((reference, _NO_REVISION))
                elif found is None:
                    failures.append((reference, _NOT_THERE))
                elif found.status == ACTIVE:
                    failures.append((reference, _STILL_ACTIVE))
                else:
                    changed = replace(found, status=DELETE_IN_PROGRESS, delete_requested_at=self._clock.now())
                    deleted.append(tx.put(tables.TASK_DEFINITIONS, changed))
            return deleted, failures

        return await self._store.write(cause, work)

    def page(
        self, family: str, status: str, after: IndexKey | None, limit: int, *, newest_first: bool
    ) -> tuple[list[TaskDefinition], bool]:
        """A page in order of family and revision, and whether there are more."""
        with self._store.read() as reader:
            page: list[TaskDefinition] = []
            prefix = (family,) if family else ()
            while True:
                batch = reader.scan(
                    tables.TASK_DEFINITIONS, *prefix, after=after, limit=500, reverse=newest_first
                )
                for definition in batch:
                    if definition.status == status:
                        if len(page) == limit:
                            return page, True
                        page.append(definition)
                if len(batch) < 500:
                    return page, False
                after = tables.TASK_DEFINITIONS.key(batch[-1])

    def families(
        self, prefix: str, status: str, after: IndexKey | None, limit: int
    ) -> tuple[list[str], bool]:
        """A page of family names. ACTIVE: with an active revision; INACTIVE: without one; ALL: both."""
        with self._store.read() as reader:
            page: list[str] = []
            for family in reader.scan(tables.FAMILIES, after=after):
                active = family.latest_active_revision is not None
                if family.name.startswith(prefix) and status in ("ALL", ACTIVE if active else INACTIVE):
                    if not active and not reader.scan(tables.TASK_DEFINITIONS, family.name, limit=1):
                        continue  # all its revisions were deleted; the record only keeps the count
                    if len(page) == limit:
                        return page, True
                    page.append(family.name)
            return page, False


def _names_revision(reference: str) -> bool:
    match = _REFERENCE.fullmatch(reference)
    return match is not None and match.group(2) is not None


def find_task_definition(reader: Reader, reference: str) -> TaskDefinition | None:
    """A revision by `family` (its newest ACTIVE one), `family:revision` or ARN."""
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        return None
    name, revision = match.group(1), match.group(2)
    if revision is None:
        family = reader.get(tables.FAMILIES, name)
        if family is None or family.latest_active_revision is None:
            return None
        revision = str(family.latest_active_revision)
    return reader.get(tables.TASK_DEFINITIONS, name, f"{int(revision):010d}")


def resolve_task_definition(reader: Reader, reference: str) -> TaskDefinition:
    """The revision to run. Raises AWS's words if there is none."""
    found = find_task_definition(reader, reference)
    if found is None:
        raise Invalid("TaskDefinition not found.", code="ClientException")
    return found


def remove_unused(tx: Tx) -> tuple[int, frozenset[IndexKey]]:
    """Remove revisions whose deletion was asked for and that no task needs; a unit of work.

    A task needs its revision until it is stopped. Returns how many were removed, and for each that was not the key
    of one task that needs it.
    """
    doomed = tx.scan(tables.TASK_DEFINITIONS, DELETE_IN_PROGRESS, index="by_status")
    needed: dict[tuple[str, int], IndexKey] = {}
    if doomed:
        for index in ("by_host", "unplaced"):
            for task in tx.scan(tables.TASKS, index=index):
                needed[(task.family, task.revision)] = (task.cluster, task.task_id)
    witnesses = set()
    removed = 0
    for definition in doomed:
        witness = needed.get((definition.family, definition.revision))
        if witness is not None:
            witnesses.add(witness)
        else:
            tx.delete(tables.TASK_DEFINITIONS, *tables.TASK_DEFINITIONS.key(definition))
            removed += 1
    return removed, frozenset(witnesses)


def _update_family(tx: Tx, name: str) -> None:
    family = tx.get(tables.FAMILIES, name)
    assert family is not None
    newest = next(
        (d.revision for d in tx.scan(tables.TASK_DEFINITIONS, name, reverse=True) if d.status == ACTIVE),
        None,
    )
    if newest != family.latest_active_revision:
        tx.put(tables.FAMILIES, replace(family, latest_active_revision=newest))
