"""Use cases of EventBridge Scheduler: schedules and their groups, and the history of their runs."""

from collections.abc import Sequence

from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, Invalid, LimitExceeded, NotFound
from hutch.control.events.publishing import forget_runs
from hutch.model.event import DeliveryCount, Schedule, ScheduleGroup, ScheduleRun
from hutch.model.record import Cause
from hutch.rules.events.due import planned_schedule
from hutch.rules.events.schedule import At, parse, zone
from hutch.rules.tags import merged
from hutch.store import tables
from hutch.store.contract import IndexKey, Reader, Store, Tx

DEFAULT_GROUP = "default"
MAX_SCHEDULES = 100_000
MAX_GROUPS = 500
_DEFAULT = ScheduleGroup(name=DEFAULT_GROUP, created_at=0.0, modified_at=0.0)


class ScheduleOps:
    """Scheduler's use cases. One instance per control plane."""

    def __init__(self, store: Store, clock: Clock, *, region: str, account_id: str) -> None:
        self._store = store
        self._clock = clock
        self.arn_prefix = f"arn:aws:scheduler:{region}:{account_id}:"

    def arn(self, schedule: Schedule) -> str:
        """A schedule's ARN."""
        return self.arn_prefix + schedule.owner

    async def create(self, cause: Cause, wanted: Schedule) -> Schedule:
        """Make a schedule. The same client token gives the same schedule again."""
        _check(wanted)

        def work(tx: Tx) -> Schedule:
            self._group(tx, wanted.group)
            before = tx.get(tables.SCHEDULES, wanted.group, wanted.name)
            if before is not None:
                if wanted.client_token and before.client_token == wanted.client_token:
                    return before
                raise AlreadyExists(f"Schedule {wanted.name} already exists.")
            if tx.count(tables.SCHEDULES) >= MAX_SCHEDULES:
                raise LimitExceeded(f"hutch keeps at most {MAX_SCHEDULES} schedules.")
            return tx.put(tables.SCHEDULES, self._started(wanted))

        return await self._store.write(cause, work)

    async def update(self, cause: Cause, wanted: Schedule) -> Schedule:
        """Replace a schedule: what is not given takes its default, as in AWS."""
        _check(wanted)

        def work(tx: Tx) -> Schedule:
            before = self._schedule(tx, wanted.group, wanted.name)
            after = self._started(wanted)
            return tx.put(
                tables.SCHEDULES, replace(after, version=before.version, created_at=before.created_at)
            )

        return await self._store.write(cause, work)

    def _started(self, wanted: Schedule) -> Schedule:
        """A rate without a start date runs at once, and from then on; with one, from there."""
        now = self._clock.now()
        anchor = wanted.start_at if wanted.start_at is not None else now
        schedule = replace(wanted, created_at=now, modified_at=now, anchor=anchor)
        return planned_schedule(schedule, now - 1e-6)

    def get(self, group: str, name: str) -> Schedule:
        """Raises `NotFound`."""
        with self._store.read() as reader:
            return self._schedule(reader, group, name)

    async def delete(self, cause: Cause, group: str, name: str) -> None:
        """Remove a schedule and the history of its runs. Raises `NotFound`."""

        def work(tx: Tx) -> None:
            schedule = self._schedule(tx, group, name)
            tx.delete(tables.SCHEDULES, group, name)
            forget_runs(tx, schedule.owner)

        await self._store.write(cause, work)

    def page(
        self, group: str, prefix: str, state: str, after: IndexKey | None, limit: int
    ) -> tuple[list[Schedule], bool]:
        """A page of schedules, of one group or ("") of all, and whether there are more."""
        found: list[Schedule] = []
        with self._store.read() as reader:
            if group:
                self._group(reader, group)
            while True:
                batch = reader.scan(tables.SCHEDULES, *((group,) if group else ()), after=after, limit=500)
                for schedule in batch:
                    if schedule.name.startswith(prefix) and state in ("", schedule.state):
                        found.append(schedule)
                        if len(found) > limit:
                            return found[:limit], True
                if len(batch) < 500:
                    return found, False
                after = (batch[-1].group, batch[-1].name)

    def runs(self, owner: str) -> tuple[list[ScheduleRun], DeliveryCount]:
        """The newest runs of a schedule or rule, newest first, and what was given up of it."""
        with self._store.read() as reader:
            runs = reader.scan(tables.SCHEDULE_RUNS, owner, reverse=True)
            return runs, reader.get(tables.DELIVERY_COUNTS, owner) or DeliveryCount(owner=owner)

    # -- groups

    async def create_group(self, cause: Cause, name: str, tags: dict[str, str]) -> ScheduleGroup:
        """Make a group."""

        def work(tx: Tx) -> ScheduleGroup:
            if name == DEFAULT_GROUP or tx.get(tables.SCHEDULE_GROUPS, name):
                raise AlreadyExists(f"Schedule group {name} already exists.")
            if tx.count(tables.SCHEDULE_GROUPS) >= MAX_GROUPS:
                raise LimitExceeded(f"hutch keeps at most {MAX_GROUPS} schedule groups.")
            now = self._clock.now()
            return tx.put(
                tables.SCHEDULE_GROUPS, ScheduleGroup(name=name, tags=tags, created_at=now, modified_at=now)
            )

        return await self._store.write(cause, work)

    async def delete_group(self, cause: Cause, name: str) -> None:
        """Remove a group with its schedules."""

        def work(tx: Tx) -> None:
            self._group(tx, name)
            if name == DEFAULT_GROUP:
                raise Invalid("The default schedule group can't be deleted.")
            for schedule in tx.scan(tables.SCHEDULES, name):
                tx.delete(tables.SCHEDULES, name, schedule.name)
                forget_runs(tx, schedule.owner)
            tx.delete(tables.SCHEDULE_GROUPS, name)

        await self._store.write(cause, work)

    def group(self, name: str) -> ScheduleGroup:
        """Raises `NotFound`."""
        with self._store.read() as reader:
            return self._group(reader, name)

    def groups(self, prefix: str) -> list[ScheduleGroup]:
        """All of them by name."""
        with self._store.read() as reader:
            found = [_DEFAULT, *reader.scan(tables.SCHEDULE_GROUPS)]
        return sorted((g for g in found if g.name.startswith(prefix)), key=lambda g: g.name)

    def tags(self, arn: str) -> dict[str, str]:
        """Of a group."""
        return dict(self.group(self._group_name(arn)).tags)

    async def change_tags(
        self, cause: Cause, arn: str, add: dict[str, str], remove: Sequence[str] = ()
    ) -> None:
        """TagResource, UntagResource."""
        name = self._group_name(arn)

        def work(tx: Tx) -> None:
            group = self._group(tx, name)
            if name == DEFAULT_GROUP:
                raise Invalid("hutch keeps no tags of the default schedule group.")
            after = {k: v for k, v in merged(group.tags, add).items() if k not in remove}
            if after != group.tags:
                tx.put(tables.SCHEDULE_GROUPS, replace(group, tags=after, modified_at=self._clock.now()))

        await self._store.write(cause, work)

    def _group_name(self, arn: str) -> str:
        prefix = f"{self.arn_prefix}schedule-group/"
        if not arn.startswith(prefix):
            raise NotFound(f"Schedule group {arn[:200]} does not exist.")
        return arn.removeprefix(prefix)

    @staticmethod
    def _group(reader: Reader, name: str) -> ScheduleGroup:
        group = _DEFAULT if name == DEFAULT_GROUP else reader.get(tables.SCHEDULE_GROUPS, name)
        if group is None:
            raise NotFound(f"Schedule group {name} does not exist.")
        return group

    @staticmethod
    def _schedule(reader: Reader, group: str, name: str) -> Schedule:
        schedule = reader.get(tables.SCHEDULES, group, name)
        if schedule is None:
            raise NotFound(f"Schedule {name} does not exist.")
        return schedule


def _check(wanted: Schedule) -> None:
    """Raises `Invalid`."""
    once = isinstance(parse(wanted.expression), At)
    zone(wanted.time_zone)
    start, end = wanted.start_at, wanted.end_at
    if not once and start is not None and end is not None and end <= start:
        raise Invalid("The EndDate you specify must come after the StartDate.")
