"""The host agent's part of threat detection: whose facts are judged, and how findings reach the control plane."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from hutch.apps.threats import default_rules_text, load_threat_rules
from hutch.base.clock import SystemClock
from hutch.base.errors import Invalid
from hutch.host.agent.findingbatches import FindingBatches
from hutch.host.agent.link import ControlLink
from hutch.host.agent.threats import MAX_BATCH, ThreatDesk
from hutch.host.drivers.contract import Capabilities, ProcessFacts
from hutch.rules.threats.document import parse_rules
from hutch.rules.threats.findings import DROPPED
from hutch.settings import load_settings
from hutch.wire import fleet as wire
from hutch.wire.facts import FindingFact
from hutch.wire.guest_facts import RuntimeFact
from hutch.wire.taskspec import ContainerSpec, TaskSpec

RULES = parse_rules(default_rules_text())
VM = Capabilities(
    launch_types=("FARGATE",), root_format="erofs", network="tap", owns_kernel=True, tells_facts=True
)
SHARED = Capabilities(launch_types=("EC2",), root_format="directory", network="netns", owns_kernel=False)
TASK = TaskSpec(
    task_id="t1", cluster="c", arn="a", family="f", revision=1, launch_type="FARGATE", cpu_units=1, memory_mib=1,
    ephemeral_gib=1, network_mode="awsvpc",
    containers=(ContainerSpec(name="web", container_id="1", image="web:1"),),
)  # fmt: skip


def write(path: str, container: str = "web") -> RuntimeFact:
    return RuntimeFact(kind="open", container=container, path=path, syscall="openat")


class Sent:
    """What the desk handed on; nothing is taken before `open` is set."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[tuple[str, tuple[FindingFact, ...]]] = asyncio.Queue()
        self.open = asyncio.Event()

    async def __call__(self, task_id: str, findings: tuple[FindingFact, ...]) -> None:
        await self.open.wait()
        self.batches.put_nowait((task_id, findings))


@pytest.fixture
async def sent() -> Sent:
    return Sent()


@pytest.fixture
async def desk(sent: Sent) -> AsyncIterator[ThreatDesk]:
    desk = ThreatDesk(RULES, SystemClock(), sent)
    running = asyncio.create_task(desk.run())
    yield desk
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_only_sandboxes_that_can_tell_are_asked_and_only_with_rules(sent: Sent) -> None:
    watch = ThreatDesk(RULES, SystemClock(), sent).watch(VM)
    assert watch is not None and "/usr/bin" in watch.directories and "exec" in watch.sources
    assert ThreatDesk(RULES, SystemClock(), sent).watch(SHARED) is None
    assert ThreatDesk(None, SystemClock(), sent).watch(VM) is None
    silent = parse_rules("- list: l\n  items: []")
    assert ThreatDesk(silent, SystemClock(), sent).watch(VM) is None


async def test_findings_are_handed_on_in_order_and_those_of_strangers_are_none(
    desk: ThreatDesk, sent: Sent
) -> None:
    desk.judge(TASK, {"web": "r1"}, ProcessFacts(facts=(write("/bin/a"), write("/bin/b", "not-of-the-task"))))
    desk.judge(TASK, {"web": "r1"}, ProcessFacts(facts=(write("/bin/c"),), dropped=3))
    sent.open.set()
    found: list[FindingFact] = []
    async with asyncio.timeout(10):
        while len(found) < 3:
            task_id, batch = await sent.batches.get()
            assert task_id == "t1" and len(batch) <= MAX_BATCH
            found += batch
    assert [f.process.get("path") for f in found] == ["/bin/a", "/bin/c", None]
    assert (found[2].rule, found[2].count) == (DROPPED, 3)
    assert len({f.finding_id for f in found}) == 3


async def test_without_rules_facts_are_dropped(sent: Sent) -> None:
    desk = ThreatDesk(None, SystemClock(), sent)
    desk.judge(TASK, {}, ProcessFacts(facts=(write("/bin/a"),)))
    assert not desk._waiting and not desk._judges


class Wire:
    """A connection's writer that keeps what is written."""

    def __init__(self) -> None:
        self.written = 0

    def is_closing(self) -> bool:
        return False

    def write(self, data: bytes) -> None:
        self.written += 1


async def test_a_batch_is_sent_again_until_it_is_durable() -> None:
    link = ControlLink()
    batches = FindingBatches(link)
    sending = asyncio.create_task(
        batches.send("t1", (FindingFact(finding_id="i", rule="r", priority="p", text="t"),))
    )
    writers: list[Any] = [Wire(), Wire()]
    for writer in writers:
        link.opened(writer)
        link.welcomed.set()
        for _ in range(3):
            await asyncio.sleep(0)
        assert writer.written == 1 and not sending.done()
        if writer is writers[0]:
            link.ended()
            batches.disconnected()
            await asyncio.sleep(0)
    batches.acknowledged(wire.FindingsAck(batch=1))
    batches.acknowledged(wire.FindingsAck(batch=2))
    async with asyncio.timeout(10):
        await sending


def test_the_settings_choose_the_rules(tmp_path: Any) -> None:
    assert load_threat_rules(load_settings({}, {})) is None
    built_in = load_threat_rules(load_settings({"threat_detection": True}, {}))
    assert built_in is not None and [r.name for r in built_in.rules] == [r.name for r in RULES.rules]
    own = tmp_path / "rules.yaml"
    given = {"threat_detection": True, "threat_rules": str(own)}
    with pytest.raises(Invalid, match="No such file"):
        load_threat_rules(load_settings(given, {}))
    own.write_bytes(b"\xff")
    with pytest.raises(Invalid, match="not UTF-8"):
        load_threat_rules(load_settings(given, {}))
    own.write_text("- rule: mine\n  desc: d\n  condition: proc.name = x\n  output: o\n  priority: ERROR\n")
    rules = load_threat_rules(load_settings(given, {}))
    assert rules is not None and [r.name for r in rules.rules] == ["mine"]
