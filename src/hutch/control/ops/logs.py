"""Use cases of CloudWatch Logs. Limits and messages: the service model and reference I."""

import contextlib
import re
from collections.abc import Sequence

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, Invalid, NotFound
from hutch.rules.logfilter import parse_filter
from hutch.rules.tags import merged
from hutch.store.log_records import LogGroup, LogStream, StoredEvent
from hutch.store.log_subscription import Subscription
from hutch.store.logs import EVENT_OVERHEAD_BYTES, LogStore
from hutch.wire.facts import LogEvent

MAX_BATCH_BYTES = 1_048_576
MAX_BATCH_EVENTS = 10_000
MAX_SPAN_MS = 24 * 3600 * 1000
TOO_OLD_MS = 14 * 24 * 3600 * 1000
TOO_NEW_MS = 2 * 3600 * 1000
MAX_PAGE_BYTES = 1_048_576
GROUPS_PER_READ = 500
RETENTION_DAYS = frozenset(
    (1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653)
)
FAR_FUTURE_MS = 2**53
_GROUP = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}")
_STREAM = re.compile(r"[^:*]{1,512}")


class Rejected(msgspec.Struct, frozen=True, kw_only=True):
    """Which events of a batch were left out (indexes into it)."""

    too_new_start: int | None = None
    too_old_end: int | None = None
    expired_end: int | None = None


class LogOps:
    """Log use cases."""

    def __init__(self, store: LogStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def _now_ms(self) -> int:
        return int(self._clock.now() * 1000)

    async def create_group(self, name: str, log_class: str, tags: dict[str, str]) -> None:
        _check_group(name)
        await self._store.create_group(
            LogGroup(
                name=name,
                created_ms=self._now_ms(),
                retention_days=None,
                log_class=log_class,
                tags=tags,
                stored_bytes=0,
            )
        )

    async def delete_group(self, name: str) -> None:
        _check_group(name)
        await self._store.delete_group(name)

    def group_exists(self, name: str) -> bool:
        """Whether there is a log group of this name."""
        return bool(self._store.groups(name, after="", limit=1, exact=True))

    def groups(self, prefix: str, pattern: str, after: str, limit: int) -> tuple[list[LogGroup], bool]:
        """A page of groups, and whether there are more."""
        found = self._store.groups(prefix, after=after, limit=limit + 1, pattern=pattern)
        return found[:limit], len(found) > limit

    def groups_like(
        self, pattern: str, log_class: str, after: str, limit: int
    ) -> tuple[list[LogGroup], bool]:
        """ListLogGroups: a page of groups by name pattern ("" for all: up to five of `text` or `^text`, with `|`)."""
        terms = pattern.split("|")
        found: list[LogGroup] = []
        while True:
            batch = self._store.groups("", after=after, limit=GROUPS_PER_READ)
            for group in batch:
                named = not pattern or any(
                    group.name.startswith(t[1:]) if t.startswith("^") else t in group.name for t in terms
                )
                if named and log_class in ("", group.log_class):
                    if len(found) == limit:
                        return found, True
                    found.append(group)
            if len(batch) < GROUPS_PER_READ:
                return found, False
            after = batch[-1].name

    async def set_retention(self, name: str, days: int | None) -> None:
        if days is not None and days not in RETENTION_DAYS:
            raise Invalid(f"retentionInDays must be one of {', '.join(map(str, sorted(RETENTION_DAYS)))}.")
        await self._store.set_retention(name, days)

    async def change_tags(self, name: str, add: dict[str, str], remove: Sequence[str] = ()) -> None:
        tags = merged({k: v for k, v in self._store.group(name).tags.items() if k not in remove}, add)
        await self._store.set_tags(name, tags)

    def tags(self, name: str) -> dict[str, str]:
        return self._store.group(name).tags

    async def create_stream(self, group: str, name: str) -> None:
        _check_group(group)
        _check_stream(name)
        await self._store.create_stream(group, name, self._now_ms())

    async def delete_stream(self, group: str, name: str) -> None:
        await self._store.delete_stream(group, name)

    def streams(
        self,
        group: str,
        prefix: str,
        *,
        by_last_event: bool,
        descending: bool,
        after: tuple[int, str] | None,
        limit: int,
    ) -> tuple[list[LogStream], tuple[int, str] | None]:
        """A page of a group's streams, ordered, and where to go on (None at the end)."""
        self._store.group(group)
        found = self._store.streams(
            group,
            prefix=prefix,
            after=after,
            limit=limit + 1,
            by_last_event=by_last_event,
            descending=descending,
        )
        if len(found) <= limit:
            return found, None
        last = found[limit - 1]
        return found[:limit], ((last.last_ms or 0) if by_last_event else 0, last.name)

    async def put(self, group: str, stream: str, events: Sequence[tuple[int, str]]) -> Rejected:
        """PutLogEvents: (timestamp in ms, message) pairs in order of time."""
        self._store.stream(group, stream)
        if len(events) > MAX_BATCH_EVENTS:
            raise Invalid(f"logEvents can have at most {MAX_BATCH_EVENTS} items.")
        if sum(len(m.encode()) + EVENT_OVERHEAD_BYTES for _, m in events) > MAX_BATCH_BYTES:
            raise Invalid(f"Upload too large: a batch can have at most {MAX_BATCH_BYTES} bytes.")
        times = [t for t, _ in events]
        if times != sorted(times):
            raise Invalid("Log events in a single PutLogEvents request must be in chronological order.")
        if times and times[-1] - times[0] > MAX_SPAN_MS:
            raise Invalid(
                "The batch of log events in a single PutLogEvents request cannot span more than 24 hours."
            )
        now, days = self._now_ms(), self._store.group(group).retention_days
        expired = sum(1 for t in times if days is not None and t < now - days * 86_400_000)
        old = max(expired, sum(1 for t in times if t < now - TOO_OLD_MS))
        new = next((i for i, t in enumerate(times) if t > now + TOO_NEW_MS), len(times))
        accepted = events[old:new]
        if accepted:
            await self._store.write_events(group, stream, accepted, now, create_stream=False)
        return Rejected(
            too_new_start=new if new < len(times) else None,
            too_old_end=old if old and old > expired else None,
            expired_end=expired or None,
        )

    async def ingest(self, group: str, stream: str, create_group: bool, events: Sequence[LogEvent]) -> None:
        """Events of a task's container: the stream is made as needed, the group only if its options say so."""
        pairs = [(e.timestamp_ms, e.message) for e in events]
        try:
            await self._store.write_events(group, stream, pairs, self._now_ms(), create_stream=True)
        except NotFound:
            if not create_group:
                raise NotFound(
                    f"log group {group} does not exist: create it, or set awslogs-create-group to true"
                ) from None
            # Somebody else may have made it meanwhile, which is what we want.
            with contextlib.suppress(AlreadyExists):
                await self.create_group(group, "STANDARD", {})
            await self._store.write_events(group, stream, pairs, self._now_ms(), create_stream=True)

    def get(
        self,
        group: str,
        stream: str,
        *,
        start_ms: int | None,
        end_ms: int | None,
        after: tuple[int, int] | None,
        backward: bool,
        limit: int,
    ) -> list[StoredEvent]:
        """Events of one stream in order of time: the ones after a position, or (backward) the last ones before it."""
        found = self._store.read_events(
            self._store.stream(group, stream),
            start_ms=start_ms or 0,
            end_ms=FAR_FUTURE_MS if end_ms is None else end_ms,
            after=after,
            limit=limit,
            max_bytes=MAX_PAGE_BYTES,
            reverse=backward,
        )
        return found[::-1] if backward else found

    def filter(
        self,
        group: str,
        *,
        names: Sequence[str],
        prefix: str,
        start_ms: int | None,
        end_ms: int | None,
        pattern: str,
        after: tuple[int, int] | None,
        limit: int,
    ) -> tuple[list[StoredEvent], tuple[int, int] | None]:
        """FilterLogEvents: what matches in a bounded piece of the events (maybe nothing), and where to go on (None at
        the end)."""
        self._store.group(group)
        matches = parse_filter(pattern)
        for name in names:
            self._store.stream(group, name)
        scan = self._store.search(
            group,
            names=names,
            prefix=prefix,
            start_ms=start_ms or 0,
            # Unlike GetLogEvents, the end is in the range.
            end_ms=FAR_FUTURE_MS if end_ms is None else min(end_ms, FAR_FUTURE_MS) + 1,
            after=after,
        )
        page: list[StoredEvent] = []
        size = 0
        for number, event in enumerate(scan.events):
            if not matches(event.message):
                continue
            size += len(event.message.encode()) + EVENT_OVERHEAD_BYTES
            if page and (size > MAX_PAGE_BYTES or len(page) == limit):
                before = scan.events[number - 1]
                return page, (before.timestamp_ms, before.seq)
            page.append(event)
        return page, scan.next

    def tail(self, groups: Sequence[str]) -> Subscription:
        """New events of groups from now on. Raises `NotFound`."""
        for name in groups:
            self._store.group(name)
        return self._store.subscribe(frozenset(groups))

    async def expire(self) -> int:
        """Drop what outlived its retention."""
        return await self._store.drop_expired(self._now_ms())


def _check_group(name: str) -> None:
    if not _GROUP.fullmatch(name):
        raise Invalid(
            "logGroupName must have 1 to 512 of the characters a-z, A-Z, 0-9, '_', '-', '/', '.' and '#'."
        )


def _check_stream(name: str) -> None:
    if not _STREAM.fullmatch(name):
        raise Invalid("logStreamName must have 1 to 512 characters other than ':' and '*'.")
