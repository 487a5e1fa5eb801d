"""The loop that delivers: at least once, with growing pauses between tries, until it is done or given up."""

import asyncio

from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import HutchError, Unavailable
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.events.publishing import count_failure, record_run
from hutch.control.events.senders import Senders
from hutch.control.rounds import is_done, wait_until
from hutch.model.event import Delivery, ScheduleRun
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import IndexKey, Store, Tx, ordering_key

log = get_logger(__name__)

MAX_AT_ONCE = 16
MAX_AT_ONCE_PER_TARGET = 4
"""A target that does not answer holds up nobody else."""
PAGE = 50
MAX_LOOKED_AT = 2000
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0
FAILED = "FAILED"


class DeliveryLoop:
    """One per platform."""

    def __init__(self, store: Store, senders: Senders, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._senders = senders
        self._clock = clock
        self._ids = ids
        self._running: dict[str, tuple[str, asyncio.Task[None]]] = {}
        """Delivery id to target and what carries it out."""

    async def run(self) -> None:
        """For ever. What was being sent when it is cancelled is sent again after the next start."""
        waiting: asyncio.Task[None] | None = None
        try:
            while True:
                seen = self._store.last_seq()
                next_at = self._start_due()
                waiting = asyncio.create_task(
                    wait_until(self._store, {tables.DELIVERIES.name}, seen, next_at, self._clock)
                )
                carriers = {task for _, task in self._running.values()}
                done, _ = await asyncio.wait({waiting, *carriers}, return_when=asyncio.FIRST_COMPLETED)
                await _end([waiting])
                self._running = {k: (a, t) for k, (a, t) in self._running.items() if not t.done()}
                for task in done & carriers:
                    task.result()
        finally:
            await _end([task for _, task in self._running.values()] + ([waiting] if waiting else []))

    def _start_due(self) -> float | None:
        """Start what is due and has room; when the next one is due that is not."""
        now, looked_at = self._clock.now(), 0
        after: IndexKey | None = None
        while len(self._running) < MAX_AT_ONCE and looked_at < MAX_LOOKED_AT:
            with self._store.read() as reader:
                page = reader.scan(tables.DELIVERIES, index="by_due", after=after, limit=PAGE)
            for delivery in page:
                if delivery.due_at > now:
                    return delivery.due_at
                self._start(delivery)
            if len(page) < PAGE:
                break
            after, looked_at = ordering_key(tables.DELIVERIES, page[-1], "by_due"), looked_at + PAGE
        return None

    def _start(self, delivery: Delivery) -> None:
        """Start it if it is not being sent, and nothing keeps it waiting."""
        busy = sum(1 for arn, _ in self._running.values() if arn == delivery.target.arn)
        if (
            delivery.delivery_id not in self._running
            and busy < MAX_AT_ONCE_PER_TARGET
            and len(self._running) < MAX_AT_ONCE
        ):
            task = asyncio.create_task(self._carry(delivery))
            self._running[delivery.delivery_id] = (delivery.target.arn, task)

    async def _carry(self, delivery: Delivery) -> None:
        """One try, and what is to be written down of it."""
        outcome, error = "", None
        detail = ""
        try:
            outcome, detail = await self._senders.send(delivery)
        except HutchError as refusal:
            error, detail = refusal, refusal.message
        tried = replace(delivery, attempts=delivery.attempts + 1, last_error=detail[:500] if error else "")
        if error is not None and (not isinstance(error, Unavailable) or _used_up(tried, self._clock.now())):
            outcome = FAILED
        while not await is_done(lambda: self._write_down(tried, outcome, detail), "what came of a delivery"):
            pass

    async def _write_down(self, tried: Delivery, outcome: str, detail: str) -> None:
        now = self._clock.now()

        def work(tx: Tx) -> None:
            current = tx.get(tables.DELIVERIES, tried.delivery_id)
            if current is None:
                return
            if not outcome:
                due = now + pause_s(tried.attempts, tried.delivery_id)
                tx.put(tables.DELIVERIES, replace(tried, version=current.version, due_at=due))
                return
            tx.delete(tables.DELIVERIES, tried.delivery_id)
            if outcome == FAILED:
                count_failure(tx, tried.owner, f"{tried.target.arn}: {detail}", now)
            if tried.run_at is not None:
                before = tx.get(tables.SCHEDULE_RUNS, tried.owner, f"{tried.run_at:020.6f}")
                if before is not None:
                    record_run(tx, _after(before, outcome, detail))

        cause = Cause(id=tried.delivery_id, actor="controller:events", action="deliver")
        await self._store.write(cause, work)


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _after(run: ScheduleRun, outcome: str, detail: str) -> ScheduleRun:
    """A run with one more target served: the worst of its outcomes counts."""
    worst = FAILED if FAILED in (run.outcome, outcome) else outcome
    both = f"{run.detail}; {detail}" if run.detail else detail
    return replace(run, outcome=worst, detail=both[:1000])


def _used_up(delivery: Delivery, now: float) -> bool:
    target = delivery.target
    return delivery.attempts > target.max_retries or now - delivery.created_at >= target.max_age_s


def pause_s(attempts: int, delivery_id: str) -> float:
    """How long to wait after so many tries: doubling, and spread by a half so that many do not come at once."""
    ceiling = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(attempts - 1, 20))
    return ceiling * (0.5 + int(delivery_id[:4], 16) / 0x20000)
