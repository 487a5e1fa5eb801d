"""Facts of tasks on their way to the control plane: none is lost, and newer ones replace older ones that wait."""

import asyncio

from hutch.host.agent import reports as module
from hutch.host.agent.link import ControlLink
from hutch.host.agent.reports import Reports
from hutch.wire import fleet as wire
from hutch.wire.facts import TaskFacts


class _Link(ControlLink):
    """A connection whose other end is the test."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: asyncio.Queue[wire.Report] = asyncio.Queue()
        self.welcomed.set()

    def send(self, message: wire.FromHost) -> None:
        assert isinstance(message, wire.Report)
        self.sent.put_nowait(message)


def _facts(task: str, status: str = "RUNNING") -> TaskFacts:
    return TaskFacts(task_id=task, status=status)


async def _take(link: _Link, count: int) -> list[wire.Report]:
    async with asyncio.timeout(10):
        return [await link.sent.get() for _ in range(count)]


async def test_while_a_round_is_under_way_newer_facts_replace_older_ones() -> None:
    link = _Link()
    reports = Reports(link)
    reports.welcomed(0)
    sending = asyncio.create_task(reports.keep_sending())
    reports.report(_facts("a", "ACTIVATING"))
    (first,) = await _take(link, 1)
    reports.report(_facts("b", "ACTIVATING"))
    reports.report(_facts("b", "RUNNING"))
    reports.report(_facts("a", "RUNNING"))
    assert link.sent.empty()  # nobody has said yet that the first round arrived
    reports.acknowledged(first.seq)
    second = await _take(link, 2)
    assert {(r.facts.task_id, r.facts.status) for r in second} == {("a", "RUNNING"), ("b", "RUNNING")}
    sending.cancel()


async def test_after_many_reports_the_next_round_waits_a_moment() -> None:
    """So that tasks which are launched by the dozen tell of their end state only."""
    link = _Link()
    reports = Reports(link)
    reports.welcomed(0)
    sending = asyncio.create_task(reports.keep_sending())
    loop = asyncio.get_running_loop()
    for n in range(50):
        reports.report(_facts(f"t{n}", "ACTIVATING"))
    begun = loop.time()
    newest = (await _take(link, 50))[-1].seq
    reports.acknowledged(newest)
    reports.report(_facts("t0", "RUNNING"))
    (late,) = await _take(link, 1)
    assert loop.time() - begun >= module.MAX_PAUSE_S * 0.9
    assert late.facts.status == "RUNNING"
    sending.cancel()


async def test_what_no_one_acknowledged_is_sent_again_over_the_next_connection() -> None:
    link = _Link()
    reports = Reports(link)
    reports.welcomed(0)
    sending = asyncio.create_task(reports.keep_sending())
    reports.report(_facts("a"))
    (first,) = await _take(link, 1)
    sending.cancel()
    reports.send_all_again()
    sending = asyncio.create_task(reports.keep_sending())
    assert await _take(link, 1) == [first]
    sending.cancel()
