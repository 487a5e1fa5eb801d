"""The loop that runs what is due: rules with a schedule, and EventBridge Scheduler's schedules."""

import msgspec

from hutch.base.clock import Clock, iso_time
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.events.publishing import Publisher, forget_runs, record_run
from hutch.control.rounds import run_when_due
from hutch.model.event import MAX_EVENT_AGE_S, EventRule, Schedule, ScheduleRun
from hutch.model.record import Cause
from hutch.rules.events.due import Due, decide, planned_rule, planned_schedule
from hutch.rules.events.targets import BUS, ECS, target_name
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx

log = get_logger(__name__)

MAX_AT_ONCE = 100
QUEUED, MISSED = "QUEUED", "MISSED"


class ScheduleLoop:
    """Level-triggered: when a schedule is due next is in its record, and moves on in the unit of work that queues what
    it sends. So a run is queued once, wherever the control plane is killed."""

    def __init__(self, store: Store, publisher: Publisher, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self._ids = ids

    async def run(self) -> None:
        """For ever: asleep until the next time is due, or until a rule or schedule changes."""
        await run_when_due(
            self._store,
            self._clock,
            self.once,
            "what is scheduled",
            tables={tables.EVENT_RULES.name, tables.SCHEDULES.name},
            next_at=_next,
        )

    async def once(self) -> int:
        """Queue all that is due; how many rules and schedules that was."""
        cause = Cause(id=self._ids.uuid(), actor="controller:schedules", action="run")

        def work(tx: Tx) -> int:
            now, count = self._clock.now(), 0
            for rule in tx.scan(tables.EVENT_RULES, index="by_next", limit=MAX_AT_ONCE):
                if rule.next_at is not None and rule.next_at <= now:
                    self._fire_rule(tx, rule, now)
                    count += 1
            for schedule in tx.scan(tables.SCHEDULES, index="by_next", limit=MAX_AT_ONCE):
                if schedule.next_at is not None and schedule.next_at <= now:
                    self._fire_schedule(tx, schedule, now)
                    count += 1
            return count

        return await self._store.write(cause, work)

    def _fire_rule(self, tx: Tx, rule: EventRule, now: float) -> None:
        assert rule.next_at is not None
        due = decide(
            rule.schedule, rule.next_at, rule.next_at, now, anchor=rule.anchor, max_age_s=MAX_EVENT_AGE_S
        )
        shapes = self._publisher.shapes
        event = shapes.event(
            self._ids.uuid(),
            "aws.events",
            "Scheduled Event",
            due.nominal_at,
            [self._publisher.rule_arn(rule)],
            {},
        )
        self._record(tx, rule.owner, due, now, "" if rule.targets else "the rule has no targets")
        if due.run:
            for target in rule.targets:
                self._publisher.queue_event(tx, rule, target, event, now, run_at=due.nominal_at)
        tx.put(tables.EVENT_RULES, planned_rule(rule, due.nominal_at))

    def _fire_schedule(self, tx: Tx, schedule: Schedule, now: float) -> None:
        assert schedule.nominal_at is not None and schedule.next_at is not None
        due = decide(
            schedule.expression,
            schedule.nominal_at,
            schedule.next_at,
            now,
            anchor=schedule.anchor,
            time_zone=schedule.time_zone,
            max_age_s=schedule.target.max_age_s,
        )
        self._record(tx, schedule.owner, due, now, "")
        if due.run:
            payload = self._payload(schedule, due.nominal_at)
            self._publisher.queue(tx, schedule.owner, schedule.target, payload, now, run_at=due.nominal_at)
        after = planned_schedule(schedule, due.nominal_at)
        if after.next_at is None and schedule.delete_when_done:
            tx.delete(tables.SCHEDULES, schedule.group, schedule.name)
            if not due.run:
                forget_runs(tx, schedule.owner)
        else:
            tx.put(tables.SCHEDULES, after)

    def _payload(self, schedule: Schedule, nominal_at: float) -> str:
        """The input of a schedule, with Scheduler's context attributes; a plain event if it has none."""
        shapes = self._publisher.shapes
        arn = f"arn:aws:scheduler:{shapes.region}:{shapes.account_id}:{schedule.owner}"
        execution = self._ids.uuid()
        kind, _ = target_name(schedule.target.arn, region=shapes.region, account_id=shapes.account_id)
        if schedule.target.constant is None:
            if kind in (ECS, BUS):
                return ""
            event = shapes.event(execution, "aws.scheduler", "Scheduled Event", nominal_at, [arn], {})
            return msgspec.json.encode({**event, "detail": "{}"}).decode()
        text = schedule.target.constant
        for name, value in (
            ("schedule-arn", arn),
            ("scheduled-time", iso_time(nominal_at)[:19] + "Z"),
            ("execution-id", execution),
            ("attempt-number", "1"),
        ):
            text = text.replace(f"<aws.scheduler.{name}>", value)
        return text

    @staticmethod
    def _record(tx: Tx, owner: str, due: Due, now: float, detail: str) -> None:
        record_run(
            tx,
            ScheduleRun(
                owner=owner,
                nominal_at=due.nominal_at,
                fired_at=now,
                outcome=QUEUED if due.run else MISSED,
                missed_before=due.missed_before,
                detail=detail if due.run else "the platform was down for longer than the event may be late",
            ),
        )
        if due.missed_before or not due.run:
            log.warning("schedule missed runs", owner=owner, missed=due.missed_before + (not due.run))


def _next(reader: Reader) -> float | None:
    """When the first rule or schedule is due."""
    rules = reader.scan(tables.EVENT_RULES, index="by_next", limit=1)
    schedules = reader.scan(tables.SCHEDULES, index="by_next", limit=1)
    times = [*(r.next_at for r in rules), *(s.next_at for s in schedules)]
    return min((t for t in times if t is not None), default=None)
