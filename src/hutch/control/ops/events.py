"""Use cases of EventBridge: buses, rules, targets, events."""

import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, HutchError, Invalid, LimitExceeded, NotFound
from hutch.base.ids import IdSource
from hutch.control.events.publishing import Publisher, forget_runs
from hutch.control.events.shapes import EVENT
from hutch.model.event import DEFAULT_BUS, EventBus, EventRule, LogEntry, Target
from hutch.model.record import Cause
from hutch.rules.events.due import planned_rule
from hutch.rules.events.pattern import compile_pattern
from hutch.rules.events.schedule import At, parse
from hutch.rules.tags import merged
from hutch.store import tables
from hutch.store.contract import IndexKey, Reader, Store, Tx

MAX_RULES = 2000
MAX_TARGETS = 100
MAX_BUSES = 100
MAX_ENTRIES = 10
MAX_REQUEST_BYTES = 1024 * 1024
_EVENT_MEMBERS = ("id", "account", "source", "time", "region", "resources", "detail-type")
_ONE_OF_MANY = re.compile(r"rate\(\s*1\s+\w+s\s*\)")
"""Such as rate(1 minutes): what a schedule of EventBridge Scheduler may say, and a rule may not."""


class PutResult(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one entry of PutEvents."""

    event_id: str = ""
    code: str = ""
    message: str = ""


class EventOps:
    """EventBridge's use cases. One instance per control plane."""

    def __init__(self, store: Store, publisher: Publisher, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._publisher = publisher
        self._clock = clock
        self._ids = ids
        self.region = publisher.shapes.region
        self.account_id = publisher.shapes.account_id

    # -- rules

    async def put_rule(self, cause: Cause, wanted: EventRule) -> EventRule:
        """Make a rule, or change one: its targets, and its tags, stay. Raises `Invalid` for its pattern or schedule."""
        if not wanted.pattern and not wanted.schedule:
            raise Invalid("Parameter(s) EventPattern or ScheduleExpression must be specified.")
        if wanted.pattern:
            compile_pattern(wanted.pattern)
        if wanted.schedule:
            if wanted.bus != DEFAULT_BUS:
                raise Invalid("ScheduleExpression is supported only on the default event bus.")
            if isinstance(parse(wanted.schedule), At):
                raise Invalid("Parameter ScheduleExpression is not valid: a rule has rate(...) or cron(...).")
            if _ONE_OF_MANY.fullmatch(wanted.schedule):
                raise Invalid(
                    "Parameter ScheduleExpression is not valid: the unit of a rate of 1 is singular."
                )

        def work(tx: Tx) -> EventRule:
            self._bus(tx, wanted.bus)
            now = self._clock.now()
            before = tx.get(tables.EVENT_RULES, wanted.bus, wanted.name)
            if before is None:
                if tx.count(tables.EVENT_RULES) >= MAX_RULES:
                    raise LimitExceeded(f"hutch keeps at most {MAX_RULES} rules.")
                return tx.put(
                    tables.EVENT_RULES, planned_rule(replace(wanted, created_at=now, anchor=now), now)
                )
            same_rhythm = (before.schedule, before.state) == (wanted.schedule, wanted.state)
            after = replace(
                wanted,
                version=before.version,
                targets=before.targets,
                tags=before.tags,
                created_at=before.created_at,
                anchor=before.anchor if same_rhythm else now,
                next_at=before.next_at,
            )
            return tx.put(tables.EVENT_RULES, after if same_rhythm else planned_rule(after, now))

        return await self._store.write(cause, work)

    def rule(self, bus: str, name: str) -> EventRule:
        """Raises `NotFound` in AWS's words."""
        with self._store.read() as reader:
            return self._rule(reader, bus, name)

    async def set_state(self, cause: Cause, bus: str, name: str, state: str) -> None:
        """EnableRule, DisableRule. A rate starts anew."""

        def work(tx: Tx) -> None:
            rule = self._rule(tx, bus, name)
            if rule.state != state:
                now = self._clock.now()
                tx.put(tables.EVENT_RULES, planned_rule(replace(rule, state=state, anchor=now), now))

        await self._store.write(cause, work)

    async def delete_rule(self, cause: Cause, bus: str, name: str) -> None:
        """A rule that is not there is deleted already; one that has targets is refused."""

        def work(tx: Tx) -> None:
            self._bus(tx, bus)
            rule = tx.get(tables.EVENT_RULES, bus, name)
            if rule is None:
                return
            if rule.targets:
                raise Invalid("Rule can't be deleted since it has targets.")
            tx.delete(tables.EVENT_RULES, bus, name)
            forget_runs(tx, rule.owner)

        await self._store.write(cause, work)

    def rules(
        self, bus: str, prefix: str, after: IndexKey | None, limit: int
    ) -> tuple[list[EventRule], bool]:
        """A page of a bus's rules by name, and whether there are more."""
        return self._page(bus, after, limit, lambda rule: rule.name.startswith(prefix))

    def rules_of_target(
        self, bus: str, arn: str, after: IndexKey | None, limit: int
    ) -> tuple[list[EventRule], bool]:
        """Those that send to a target."""
        return self._page(bus, after, limit, lambda rule: any(t.arn == arn for t in rule.targets))

    def _page(
        self, bus: str, after: IndexKey | None, limit: int, wanted: Callable[[EventRule], bool]
    ) -> tuple[list[EventRule], bool]:
        with self._store.read() as reader:
            self._bus(reader, bus)
            found = [r for r in reader.scan(tables.EVENT_RULES, bus, after=after) if wanted(r)]
        return found[:limit], len(found) > limit

    # -- targets

    async def put_targets(self, cause: Cause, bus: str, name: str, targets: Sequence[Target]) -> None:
        """Add targets, or replace those of the same id. They have been checked."""

        def work(tx: Tx) -> None:
            rule = self._rule(tx, bus, name)
            kept = {t.target_id: t for t in rule.targets} | {t.target_id: t for t in targets}
            if len(kept) > MAX_TARGETS:
                raise LimitExceeded(f"A rule can have at most {MAX_TARGETS} targets.")
            tx.put(tables.EVENT_RULES, replace(rule, targets=tuple(kept.values())))

        await self._store.write(cause, work)

    async def remove_targets(self, cause: Cause, bus: str, name: str, ids: Sequence[str]) -> list[str]:
        """Take targets away; the ids that were not there. What is on its way to them still arrives."""

        def work(tx: Tx) -> list[str]:
            rule = self._rule(tx, bus, name)
            kept = tuple(t for t in rule.targets if t.target_id not in ids)
            if len(kept) != len(rule.targets):
                tx.put(tables.EVENT_RULES, replace(rule, targets=kept))
            known = {t.target_id for t in rule.targets}
            return [i for i in ids if i not in known]

        return await self._store.write(cause, work)

    # -- events

    async def put_events(self, cause: Cause, entries: Sequence[dict[str, Any]]) -> list[PutResult]:
        """PutEvents: each entry is taken or refused for itself; what is taken is durable with all that it queues."""
        if not 1 <= len(entries) <= MAX_ENTRIES:
            raise Invalid(f"1 validation error detected: Entries must have 1 to {MAX_ENTRIES} items.")
        if sum(_size(e) for e in entries) > MAX_REQUEST_BYTES:
            raise Invalid("Total size of the entries in the request is over the limit.")
        results, accepted = [], []
        with self._store.read() as reader:
            for given in entries:
                result, entry = self._entry(reader, given)
                results.append(result)
                if entry is not None:
                    accepted.append(entry)
        if accepted:
            await self._store.write(cause, lambda tx: self._publisher.publish(tx, accepted))
        return results

    def _entry(self, reader: Reader, given: dict[str, Any]) -> tuple[PutResult, LogEntry | None]:
        for member in ("Source", "DetailType", "Detail"):
            if not given.get(member):
                message = f"Parameter {member} is not valid. Reason: {member} is a required argument."
                return PutResult(code="InvalidArgument", message=message), None
        try:
            detail = msgspec.json.decode(given["Detail"])
        except (msgspec.DecodeError, RecursionError):
            detail = None
        if not isinstance(detail, dict):
            return PutResult(code="MalformedDetail", message="Detail is malformed."), None
        if given["Source"].startswith(("aws.", "hutch.")):
            message = "Not authorized for the source."
            return PutResult(code="NotAuthorizedForSource", message=message), None
        try:
            bus = self.bus_name(given.get("EventBusName", ""))
            self._bus(reader, bus)
        except HutchError as error:
            return PutResult(code=error.code or "InvalidArgument", message=error.message), None
        now, event_id = self._clock.now(), self._ids.uuid()
        event = self._publisher.shapes.event(
            event_id,
            given["Source"],
            given["DetailType"],
            given.get("Time", now),
            list(given.get("Resources", ())),
            detail,
        )
        return PutResult(event_id=event_id), LogEntry(
            EVENT, event_id, now, "", msgspec.json.encode(event), bus
        )

    @staticmethod
    def test_pattern(pattern: str, event: str) -> bool:
        """TestEventPattern."""
        compiled = compile_pattern(pattern)
        try:
            document = msgspec.json.decode(event)
        except (msgspec.DecodeError, RecursionError):
            document = None
        if not isinstance(document, dict):
            raise Invalid("Parameter Event is not valid. Reason: it is not a JSON object.")
        if missing := [m for m in _EVENT_MEMBERS if m not in document]:
            raise Invalid(f"Parameter Event is not valid. Reason: it lacks {', '.join(missing)}.")
        return compiled.matches(document)

    # -- buses

    def bus_name(self, reference: str) -> str:
        """A bus by name or ARN; "" is the default one. Raises `Invalid` for one of elsewhere."""
        if not reference.startswith("arn:"):
            return reference or DEFAULT_BUS
        prefix = f"arn:aws:events:{self.region}:{self.account_id}:event-bus/"
        if not reference.startswith(prefix):
            raise Invalid(f"{reference[:200]!r} is not an event bus of this platform.")
        return reference.removeprefix(prefix)

    async def create_bus(self, cause: Cause, name: str, description: str, tags: dict[str, str]) -> EventBus:
        """Make an event bus."""

        def work(tx: Tx) -> EventBus:
            if name == DEFAULT_BUS or tx.get(tables.EVENT_BUSES, name):
                raise AlreadyExists(f"Event bus {name} already exists.")
            if tx.count(tables.EVENT_BUSES) >= MAX_BUSES:
                raise LimitExceeded(f"hutch keeps at most {MAX_BUSES} event buses.")
            bus = EventBus(name=name, description=description, tags=tags, created_at=self._clock.now())
            return tx.put(tables.EVENT_BUSES, bus)

        return await self._store.write(cause, work)

    async def delete_bus(self, cause: Cause, name: str) -> None:
        """Remove a bus that has no rules. One that is not there is deleted already."""

        def work(tx: Tx) -> None:
            if name == DEFAULT_BUS:
                raise Invalid("Cannot delete event bus default.")
            if tx.scan(tables.EVENT_RULES, name, limit=1):
                raise Invalid("Cannot delete event bus: it has rules.")
            tx.delete(tables.EVENT_BUSES, name)

        await self._store.write(cause, work)

    def bus(self, name: str) -> EventBus:
        """Raises `NotFound` in AWS's words."""
        with self._store.read() as reader:
            return self._bus(reader, name)

    def buses(self, prefix: str) -> list[EventBus]:
        """All of them by name."""
        with self._store.read() as reader:
            found = [_DEFAULT, *reader.scan(tables.EVENT_BUSES)]
        return sorted((b for b in found if b.name.startswith(prefix)), key=lambda b: b.name)

    @staticmethod
    def _bus(reader: Reader, name: str) -> EventBus:
        bus = _DEFAULT if name == DEFAULT_BUS else reader.get(tables.EVENT_BUSES, name)
        if bus is None:
            raise NotFound(f"Event bus {name} does not exist.")
        return bus

    def _rule(self, reader: Reader, bus: str, name: str) -> EventRule:
        self._bus(reader, bus)
        rule = reader.get(tables.EVENT_RULES, bus, name)
        if rule is None:
            raise NotFound(f"Rule {name} does not exist on EventBus {bus}.")
        return rule

    # -- tags

    def rule_arn(self, rule: EventRule) -> str:
        """A rule's ARN."""
        return self._publisher.rule_arn(rule)

    def tags(self, arn: str) -> dict[str, str]:
        """Of a rule or a bus."""
        with self._store.read() as reader:
            return dict(self._tagged(reader, arn).tags)

    async def change_tags(
        self, cause: Cause, arn: str, add: dict[str, str], remove: Sequence[str] = ()
    ) -> None:
        """TagResource, UntagResource."""

        def work(tx: Tx) -> None:
            record = self._tagged(tx, arn)
            after = {k: v for k, v in merged(record.tags, add).items() if k not in remove}
            if after == record.tags:
                return
            if isinstance(record, EventRule):
                tx.put(tables.EVENT_RULES, replace(record, tags=after))
            elif record is _DEFAULT:
                raise Invalid("hutch keeps no tags of the default event bus.")
            else:
                tx.put(tables.EVENT_BUSES, replace(record, tags=after))

        await self._store.write(cause, work)

    def _tagged(self, reader: Reader, arn: str) -> EventRule | EventBus:
        kind, _, name = arn.removeprefix(f"arn:aws:events:{self.region}:{self.account_id}:").partition("/")
        if kind == "event-bus":
            return self._bus(reader, name)
        if kind == "rule":
            bus, _, rule = name.rpartition("/")
            return self._rule(reader, bus or DEFAULT_BUS, rule)
        raise NotFound(f"{arn[:200]} does not exist.")


_DEFAULT = EventBus(name=DEFAULT_BUS, created_at=0.0)


def _size(entry: dict[str, Any]) -> int:
    """As AWS counts: 14 bytes for the time, and the UTF-8 of the texts."""
    texts = [entry.get(k, "") for k in ("Source", "DetailType", "Detail")] + list(entry.get("Resources", ()))
    return 14 + sum(len(t.encode()) for t in texts)
