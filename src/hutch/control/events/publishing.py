"""Writing the event log, and with it what goes to the targets of matching rules: one unit of work for both."""

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from hutch.base.clock import Clock, iso_time
from hutch.base.errors import HutchError
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.events.shapes import EventShapes
from hutch.model.event import (
    Delivery,
    DeliveryCount,
    EventBatch,
    EventCursor,
    EventRule,
    LogEntry,
    ScheduleRun,
    Target,
)
from hutch.rules.events.pattern import compile_pattern
from hutch.rules.events.targets import ECS, payload_of, target_name
from hutch.store import tables
from hutch.store.contract import Tx

log = get_logger(__name__)

MAX_LOG_ENTRIES = 50_000
MAX_LOG_BYTES = 64 * 1024 * 1024
MAX_PENDING_DELIVERIES = 50_000
KEPT_RUNS = 100
KEPT_RUNS_S = 30 * 86400.0


class Publisher:
    """Appends to the event log within somebody's unit of work."""

    def __init__(self, shapes: EventShapes, clock: Clock, ids: IdSource) -> None:
        self.shapes = shapes
        self._clock = clock
        self._ids = ids

    def publish(self, tx: Tx, entries: Sequence[LogEntry], *, feed_seq: int | None = None) -> None:
        """Append entries and queue what matching rules send. `feed_seq`: how far the change feed is used up by it."""
        cursor = tx.get(tables.EVENT_CURSOR, "events") or EventCursor()
        now = self._clock.now()
        size = sum(len(e.body) for e in entries)
        after = replace(
            cursor,
            next_number=cursor.next_number + len(entries),
            feed_seq=cursor.feed_seq if feed_seq is None else feed_seq,
            log_bytes=cursor.log_bytes + size,
        )
        if entries:
            batch = EventBatch(first=cursor.next_number, at=now, entries=tuple(entries), size_bytes=size)
            tx.put(tables.EVENT_LOG, batch)
            after = self._trimmed(tx, after)
        tx.put(tables.EVENT_CURSOR, after)
        rules = tx.scan(tables.EVENT_RULES, index="by_pattern") if entries else []
        if rules:
            self._match(tx, entries, rules, now)

    @staticmethod
    def _trimmed(tx: Tx, cursor: EventCursor) -> EventCursor:
        """Drop the oldest batches while the log is too long; each call adds one and drops up to two."""
        for batch in tx.scan(tables.EVENT_LOG, limit=2):
            too_many = cursor.next_number - batch.first - len(batch.entries) >= MAX_LOG_ENTRIES
            if not too_many and cursor.log_bytes <= MAX_LOG_BYTES:
                break
            tx.delete(tables.EVENT_LOG, f"{batch.first:020d}")
            cursor = replace(cursor, log_bytes=cursor.log_bytes - batch.size_bytes)
        return cursor

    def _match(self, tx: Tx, entries: Sequence[LogEntry], rules: Sequence[EventRule], now: float) -> None:
        room = -1
        for entry in entries:
            for event in self.shapes.events(entry):
                for rule in rules:
                    if rule.bus != entry.bus or not compile_pattern(rule.pattern).matches(event):
                        continue
                    if room < 0:
                        room = MAX_PENDING_DELIVERIES - tx.count(tables.DELIVERIES)
                    for target in rule.targets:
                        room -= 1
                        if room < 0:
                            count_failure(tx, rule.owner, "too many deliveries are waiting", now)
                        else:
                            self.queue_event(tx, rule, target, event, now)

    def queue_event(
        self,
        tx: Tx,
        rule: EventRule,
        target: Target,
        event: dict[str, Any],
        now: float,
        run_at: float | None = None,
    ) -> None:
        """Queue what a target of a rule gets of an event."""
        reserved = {
            "aws.events.rule-arn": self.rule_arn(rule),
            "aws.events.rule-name": rule.name,
            "aws.events.event.ingestion-time": iso_time(now),
        }
        try:
            kind, _ = target_name(target.arn, region=self.shapes.region, account_id=self.shapes.account_id)
            payload = payload_of(target, event, reserved, is_ecs=kind == ECS)
        except HutchError as error:
            count_failure(tx, rule.owner, error.message, now)
            return
        self.queue(tx, rule.owner, target, payload, now, event_id=event["id"], run_at=run_at)

    def queue(
        self,
        tx: Tx,
        owner: str,
        target: Target,
        payload: str,
        now: float,
        *,
        event_id: str = "",
        run_at: float | None = None,
    ) -> None:
        """Queue a payload for a target."""
        delivery = Delivery(
            delivery_id=self._ids.uuid(),
            owner=owner,
            target=target,
            payload=payload,
            event_id=event_id,
            run_at=run_at,
            created_at=now,
            due_at=now,
        )
        tx.put(tables.DELIVERIES, delivery)

    def rule_arn(self, rule: EventRule) -> str:
        """A rule's ARN: that of a rule of the default bus does not name it."""
        bus = "" if rule.bus == "default" else f"{rule.bus}/"
        return f"arn:aws:events:{self.shapes.region}:{self.shapes.account_id}:rule/{bus}{rule.name}"


def count_failure(tx: Tx, owner: str, error: str, now: float) -> None:
    """Something of a rule or schedule was given up: a line in the log, and its counter."""
    log.error("event not delivered", owner=owner, reason=error)
    before = tx.get(tables.DELIVERY_COUNTS, owner) or DeliveryCount(owner=owner)
    counted = replace(before, failed=before.failed + 1, last_failed_at=now, last_error=error[:1000])
    tx.put(tables.DELIVERY_COUNTS, counted)


def record_run(tx: Tx, run: ScheduleRun) -> None:
    """Write a run down, or what came of it. Kept are the newest `KEPT_RUNS` of each schedule, for `KEPT_RUNS_S`."""
    before = tx.get(tables.SCHEDULE_RUNS, run.owner, f"{run.nominal_at:020.6f}")
    tx.put(tables.SCHEDULE_RUNS, replace(run, version=before.version if before else 0))
    if before is not None:
        return
    for old in tx.scan(tables.SCHEDULE_RUNS, run.owner, reverse=True)[KEPT_RUNS:]:
        tx.delete(tables.SCHEDULE_RUNS, old.owner, f"{old.nominal_at:020.6f}")
    # Those of schedules that are gone: each run that comes takes two along.
    for old in tx.scan(tables.SCHEDULE_RUNS, index="by_age", limit=2):
        if old.fired_at < run.fired_at - KEPT_RUNS_S:
            tx.delete(tables.SCHEDULE_RUNS, old.owner, f"{old.nominal_at:020.6f}")
            if not tx.scan(tables.SCHEDULE_RUNS, old.owner, limit=1):
                tx.delete(tables.DELIVERY_COUNTS, old.owner)


def forget_runs(tx: Tx, owner: str) -> None:
    """A rule or schedule is no more."""
    for run in tx.scan(tables.SCHEDULE_RUNS, owner):
        tx.delete(tables.SCHEDULE_RUNS, owner, f"{run.nominal_at:020.6f}")
    tx.delete(tables.DELIVERY_COUNTS, owner)
