"""The persistence contract: one suite, every backend."""

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from hutch.base.errors import InUse, Rejected, StaleWrite, StorageFull, Unavailable
from hutch.model.cluster import Cluster, IdempotencyToken
from hutch.model.host import Host, HostReports
from hutch.model.notes import decode_host_note, decode_task_note
from hutch.model.record import Cause
from hutch.model.task import Task
from hutch.store import tables
from hutch.store.contract import Store, Tx, ordering_key
from hutch.store.keys import after_prefix, decode_key, encode_key
from hutch.store.memory import MemoryStore
from hutch.store.sqlite import SqliteStore

CAUSE = Cause(id="1", actor="test", action="test")
MAKERS: dict[str, Callable[[Path], Any]] = {
    "memory": lambda path: MemoryStore(),
    "sqlite": lambda path: SqliteStore(path / "state.sqlite3"),
}


@pytest.fixture(params=sorted(MAKERS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    made: Store = MAKERS[request.param](tmp_path)
    await made.open()
    yield made
    await made.close()


def cluster(name: str) -> Cluster:
    return Cluster(name=name, created_at=1.0)


def token(scope: str, name: str, age: float) -> IdempotencyToken:
    return IdempotencyToken(scope=scope, token=name, request_digest="", resource_ids=(), created_at=age)


async def put(store: Store, *records: Any) -> None:
    for record in records:
        table = tables.CLUSTERS if isinstance(record, Cluster) else tables.IDEMPOTENCY_TOKENS
        await store.write(CAUSE, lambda tx, t=table, r=record: tx.put(t, r))  # type: ignore[misc]


async def test_what_was_written_is_read_with_its_version(store: Store) -> None:
    stored = await store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, cluster("a")))
    assert stored.version == 1
    with store.read() as reader:
        assert reader.get(tables.CLUSTERS, "a") == stored
        assert reader.get(tables.CLUSTERS, "b") is None


async def test_a_stale_copy_is_refused_and_changes_nothing(store: Store) -> None:
    first = await store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, cluster("a")))
    await store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, replace(first, status="INACTIVE")))
    for copy in (first, cluster("a")):
        with pytest.raises(StaleWrite):
            await store.write(CAUSE, lambda tx, c=copy: tx.put(tables.CLUSTERS, c))  # type: ignore[misc]
    with store.read() as reader:
        found = reader.get(tables.CLUSTERS, "a")
        assert found is not None and (found.status, found.version) == ("INACTIVE", 2)


async def test_a_unit_of_work_that_raises_takes_back_itself_only(store: Store) -> None:
    def fails(tx: Tx) -> None:
        tx.put(tables.CLUSTERS, cluster("lost"))
        assert tx.get(tables.CLUSTERS, "lost") is not None
        raise Rejected("no")

    results = await asyncio.gather(
        store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, cluster("a"))),
        store.write(CAUSE, fails),
        store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, cluster("b"))),
        return_exceptions=True,
    )
    assert isinstance(results[1], Rejected)
    with store.read() as reader:
        assert [c.name for c in reader.scan(tables.CLUSTERS)] == ["a", "b"]


async def test_scans_go_by_prefix_order_position_and_limit(store: Store) -> None:
    await put(
        store, *(token(s, t, a) for s, t, a in [("s", "b", 3), ("s", "a", 1), ("sa", "c", 2), ("t", "a", 4)])
    )
    with store.read() as reader:
        scan = reader.scan
        table = tables.IDEMPOTENCY_TOKENS
        assert [(r.scope, r.token) for r in scan(table, "s")] == [("s", "a"), ("s", "b")]
        assert [r.token for r in scan(table, after=("s", "a"), limit=2)] == ["b", "c"]
        assert [r.created_at for r in scan(table, index="by_age")] == [1, 2, 3, 4]
        assert [r.created_at for r in scan(table, index="by_age", reverse=True, limit=2)] == [4, 3]
        second = scan(table, index="by_age")[1]
        position = ordering_key(table, second, "by_age")
        assert [r.created_at for r in scan(table, index="by_age", after=position)] == [3, 4]
        assert [r.created_at for r in scan(table, index="by_age", after=position, reverse=True)] == [1]
        assert reader.count(table, "s") == 2 and reader.count(table, index="by_age") == 4


async def test_an_index_follows_its_record(store: Store) -> None:
    await put(store, token("s", "a", 5))
    await store.write(CAUSE, lambda tx: tx.delete(tables.IDEMPOTENCY_TOKENS, "s", "a"))
    with store.read() as reader:
        assert reader.scan(tables.IDEMPOTENCY_TOKENS, index="by_age") == []
    assert await store.write(CAUSE, lambda tx: tx.delete(tables.IDEMPOTENCY_TOKENS, "s", "a")) is False


async def test_the_change_feed_tells_what_changed_and_why(store: Store) -> None:
    start = store.last_seq()
    waiting = asyncio.create_task(store.wait_for_change(start))
    await store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, cluster("a")))
    assert await asyncio.wait_for(waiting, 5) == start + 1
    await store.write(CAUSE, lambda tx: tx.delete(tables.CLUSTERS, "a"))
    changes = store.changes(start)
    assert changes is not None
    assert [(c.table, c.key, c.version, c.cause) for c in changes] == [
        ("clusters", ("a",), 1, CAUSE),
        ("clusters", ("a",), 0, CAUSE),
    ]
    assert store.changes(store.last_seq()) == []


async def test_of_a_table_that_nobody_follows_the_feed_has_nothing(store: Store) -> None:
    start = store.last_seq()

    def work(tx: Tx) -> None:
        reports = tx.put(tables.HOST_REPORTS, HostReports(host_id="h", last_seq=1))
        tx.put(tables.CLUSTERS, cluster("a"))
        tx.put(tables.HOST_REPORTS, replace(reports, last_seq=2))

    assert not tables.HOST_REPORTS.followed
    await store.write(CAUSE, work)
    await store.write(CAUSE, lambda tx: tx.delete(tables.HOST_REPORTS, "h"))
    assert [(c.seq, c.table) for c in store.changes(start) or ()] == [(start + 1, "clusters")]
    assert store.last_seq() == start + 1


async def test_a_trimmed_feed_says_so() -> None:
    store = MemoryStore(feed_length=2)
    for name in "abcd":
        await put(store, cluster(name))
    assert store.changes(0) is None
    assert len(store.changes(2) or ()) == 2


_operations = st.lists(
    st.tuples(st.sampled_from(["put", "delete", "fail"]), st.text(max_size=3), st.floats(0, 9)), max_size=30
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operations=_operations)
def test_all_backends_end_in_the_same_state(
    operations: list[tuple[str, str, float]], tmp_path_factory: Any
) -> None:
    async def outcome(store: Store) -> list[Any]:
        await store.open()
        for verb, name, age in operations:

            def work(tx: Tx, verb: str = verb, name: str = name, age: float = age) -> None:
                old = tx.get(tables.IDEMPOTENCY_TOKENS, "s", name)
                if verb == "delete":
                    tx.delete(tables.IDEMPOTENCY_TOKENS, "s", name)
                    return
                fresh = token("s", name, age)
                tx.put(tables.IDEMPOTENCY_TOKENS, replace(fresh, version=old.version if old else 0))
                if verb == "fail":
                    raise Rejected("no")

            try:
                await store.write(CAUSE, work)
            except Rejected:
                assert verb == "fail"
        with store.read() as reader:
            table = tables.IDEMPOTENCY_TOKENS
            seen = [
                reader.scan(table),
                reader.scan(table, reverse=True),
                reader.scan(table, index="by_age"),
                [(c.seq, c.key, c.version) for c in store.changes(0) or ()],
            ]
        await store.close()
        return seen

    path = tmp_path_factory.mktemp("store")
    assert asyncio.run(outcome(MemoryStore())) == asyncio.run(outcome(SqliteStore(path / "s.sqlite3")))


@given(st.lists(st.text(max_size=4), max_size=4), st.lists(st.text(max_size=4), max_size=4))
def test_keys_sort_as_tuples_do(left: list[str], right: list[str]) -> None:
    a, b = tuple(left), tuple(right)
    assert decode_key(encode_key(a)) == a
    assert (encode_key(a) == encode_key(b)) == (a == b)
    assert (encode_key(a) < encode_key(b)) == (a < b)
    assert encode_key((*a, *b)).startswith(encode_key(a))
    prefix = encode_key(a)
    assert prefix <= encode_key((*a, *b)) < after_prefix(prefix)
    assert (prefix <= encode_key(b) < after_prefix(prefix)) == (b[: len(a)] == a)


@pytest.mark.parametrize("name", ["\U0010ffff", "\U0010ffff" * 3, "\U0010fffe2", "\x00", "\x01\x02", "é"])
async def test_a_scan_finds_every_name_there_can_be(store: Store, name: str) -> None:
    await put(store, cluster("a"), cluster(name), token(name, name, 1), token("t", "t", 2))
    with store.read() as reader:
        assert {c.name for c in reader.scan(tables.CLUSTERS)} == {"a", name}
        assert reader.count(tables.CLUSTERS) == 2
        assert [t.token for t in reader.scan(tables.IDEMPOTENCY_TOKENS, name)] == [name]
        assert reader.count(tables.IDEMPOTENCY_TOKENS, index="by_age") == 2
    changes = store.changes(0)
    assert changes is not None and changes[1].key == (name,)


def _breaks_its_statement(tx: Tx) -> None:
    tx.put(tables.CLUSTERS, cluster("lost"))
    raise sqlite3.IntegrityError("a constraint failed")


def _breaks_the_transaction(tx: Any) -> None:
    """As SQLite does by itself when the disk is full in the middle of a statement."""
    tx.put(tables.CLUSTERS, cluster("lost"))
    tx._db.execute("ROLLBACK")
    raise sqlite3.OperationalError("database or disk is full")


@pytest.mark.parametrize(
    ("guilty", "kind"), [(_breaks_its_statement, Unavailable), (_breaks_the_transaction, StorageFull)]
)
async def test_an_error_of_the_database_fails_only_the_guilty_unit_of_work(
    tmp_path: Path, guilty: Callable[[Any], None], kind: type[Exception]
) -> None:
    store = SqliteStore(tmp_path / "s.sqlite3")
    await store.open()
    results = await asyncio.gather(
        *(store.write(CAUSE, lambda tx, n=n: tx.put(tables.CLUSTERS, cluster(f"a{n}"))) for n in range(20)),  # type: ignore[misc]
        store.write(CAUSE, guilty),
        *(store.write(CAUSE, lambda tx, n=n: tx.put(tables.CLUSTERS, cluster(f"b{n}"))) for n in range(20)),  # type: ignore[misc]
        return_exceptions=True,
    )
    assert [i for i, r in enumerate(results) if isinstance(r, BaseException)] == [20]
    assert isinstance(results[20], kind)
    with store.read() as reader:
        assert reader.count(tables.CLUSTERS) == 40 and reader.get(tables.CLUSTERS, "lost") is None
    changes = store.changes(0)
    assert changes is not None and len({c.key for c in changes}) == len(changes) == 40
    await store.close()


async def test_a_write_that_meets_close_is_answered(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "s.sqlite3")
    await store.open()
    writes = [
        asyncio.create_task(store.write(CAUSE, lambda tx, n=n: tx.put(tables.CLUSTERS, cluster(f"c{n}"))))  # type: ignore[misc]
        for n in range(3)
    ]
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(store.write(CAUSE, lambda tx: None), 5)
    await closing
    assert [w.name for w in await asyncio.wait_for(asyncio.gather(*writes), 5)] == ["c0", "c1", "c2"]


_WRITER = """
import asyncio, sys
from pathlib import Path
from hutch.model.cluster import Cluster
from hutch.model.host import Host
from hutch.model.notes import decode_host_note, decode_task_note
from hutch.model.record import Cause
from hutch.model.task import Task
from hutch.store import tables
from hutch.store.sqlite import SqliteStore

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    n = 0
    while True:
        record = Cluster(name=f"c{n:06d}", created_at=0.0)
        await store.write(Cause(id="", actor="", action=""), lambda tx: tx.put(tables.CLUSTERS, record))
        print(n, flush=True)
        n += 1

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    writer = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = -1
    for line in writer.stdout:
        acknowledged = int(line)
        if acknowledged >= 20:
            writer.send_signal(signal.SIGKILL)
            break
    rest = writer.stdout.read().split()
    writer.wait()
    acknowledged = max([acknowledged, *map(int, rest)])
    store = SqliteStore(path)
    await store.open()
    with store.read() as reader:
        assert reader.count(tables.CLUSTERS) >= acknowledged + 1
    await store.close()


async def test_a_second_writer_is_refused_by_name(tmp_path: Path) -> None:
    first, second = SqliteStore(tmp_path / "s.sqlite3"), SqliteStore(tmp_path / "s.sqlite3")
    await first.open()
    with pytest.raises(InUse, match=str(os.getpid())):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


async def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "s.sqlite3")
    db.execute("PRAGMA user_version=99")
    db.commit()
    db.close()
    with pytest.raises(Unavailable, match="newer hutch"):
        await SqliteStore(tmp_path / "s.sqlite3").open()


async def test_a_place_that_cannot_be_written_is_said() -> None:
    with pytest.raises(StorageFull, match="/proc/nowhere"):
        await SqliteStore(Path("/proc/nowhere/s.sqlite3")).open()


async def test_a_journal_keeps_what_each_change_was(store: Store) -> None:
    def work(tx: Tx) -> None:
        stored = tx.put(tables.TASKS, task("1"))
        stored = tx.put(tables.TASKS, replace(stored, last_status="PENDING", event_version=2))
        tx.put(tables.TASKS, replace(stored, waiting_reason="tells nothing"))
        tx.delete(tables.TASKS, "c", "1")

    await store.write(CAUSE, work)
    notes = [c.note for c in store.changes(0) or () if c.table == tables.TASKS.name]
    assert [bool(n) for n in notes] == [True, True, False, False]
    assert [decode_task_note(n).task.last_status for n in notes if n] == ["PROVISIONING", "PENDING"]


OLD_FORMATS = {
    1: "ALTER TABLE changes DROP COLUMN note;",
    2: "",
}


def as_older(path: Path, version: int) -> None:
    """Make a file what an older hutch would have left: records in the order of their keys, entries with the keys."""
    db = sqlite3.connect(path)
    db.executescript(
        f"""
        CREATE TABLE old (tbl TEXT NOT NULL, key TEXT NOT NULL, version INTEGER NOT NULL, body BLOB NOT NULL,
                          PRIMARY KEY (tbl, key)) WITHOUT ROWID;
        INSERT INTO old SELECT tbl, key, version, body FROM records;
        DROP TABLE records; DROP TABLE entries; DROP TABLE tallies;
        ALTER TABLE old RENAME TO records;
        CREATE TABLE entries (idx TEXT NOT NULL, ordering TEXT NOT NULL, key TEXT NOT NULL,
                              PRIMARY KEY (idx, ordering)) WITHOUT ROWID;
        {OLD_FORMATS[version]} PRAGMA user_version={version};
        """
    )
    db.close()


@pytest.mark.parametrize("version", OLD_FORMATS)
async def test_a_file_of_an_older_format_is_taken_over(tmp_path: Path, version: int) -> None:
    path = tmp_path / "state.sqlite3"
    first = SqliteStore(path)
    await first.open()
    await put(first, cluster("a"), token("s", "t", 2.0), token("s", "a", 3.0))
    await first.write(CAUSE, lambda tx: [tx.put(tables.TASKS, task(n)) for n in "123"])
    await first.close()
    as_older(path, version)
    second = SqliteStore(path)
    await second.open()
    stored = await second.write(
        CAUSE,
        lambda tx: tx.put(
            tables.TASKS, replace(one_of(tx.get(tables.TASKS, "c", "1")), last_status="RUNNING")
        ),
    )
    assert stored.version == 2
    with second.read() as reader:
        assert [t.token for t in reader.scan(tables.IDEMPOTENCY_TOKENS, index="by_age")] == ["t", "a"]
        counts = {s: reader.count(tables.TASKS, "c", s, index="by_last") for s in ("PROVISIONING", "RUNNING")}
        assert counts == {"PROVISIONING": 2, "RUNNING": 1}
    await second.close()


def one_of(record: Any) -> Any:
    assert record is not None
    return record


async def test_notes_are_as_durable_as_the_change(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite3"
    host = Host(host_id="i-1", name="h", connected=True)
    first = SqliteStore(path)
    await first.open()
    await first.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, cluster("a")))
    await first.write(CAUSE, lambda tx: tx.put(tables.HOSTS, host))
    await first.close()
    second = SqliteStore(path)
    await second.open()
    notes = [c.note for c in second.changes(0) or ()]
    await second.close()
    assert [bool(n) for n in notes] == [False, True]
    assert decode_host_note(notes[1]).connected


def task(task_id: str, **members: Any) -> Task:
    made = Task(
        task_id=task_id, cluster="c", family="f", revision=1, launch_type="FARGATE", cpu=256, memory_mib=512,
        created_at=1.0,
    )  # fmt: skip
    return replace(made, **members)


async def test_a_tally_counts_as_an_index_does(store: Store) -> None:
    def work(tx: Tx) -> tuple[int, int]:
        for n in range(5):
            tx.put(tables.TASKS, task(f"t{n}"))
        before = tx.count(tables.TASKS, "c", "PROVISIONING", index="by_last")
        tx.put(tables.TASKS, replace(one_of(tx.get(tables.TASKS, "c", "t1")), last_status="RUNNING"))
        tx.delete(tables.TASKS, "c", "t2")
        return before, tx.count(tables.TASKS, "c", index="by_last")

    assert await store.write(CAUSE, work) == (5, 4)
    with store.read() as reader:
        assert reader.count(tables.TASKS, "c", "PROVISIONING", index="by_last") == 3
        assert reader.count(tables.TASKS, "c", "RUNNING", index="by_last") == 1
        assert reader.count(tables.TASKS, "d", index="by_last") == 0
        with pytest.raises(KeyError):
            reader.scan(tables.TASKS, "c", index="by_last")


async def test_a_unit_of_work_sees_what_it_and_those_before_it_wrote_and_never_what_was_taken_back(
    store: Store,
) -> None:
    """Also in the middle: scans of tables that were just written to, and of those that are kept in memory."""

    def names(tx: Tx) -> list[str]:
        return [c.name for c in tx.scan(tables.CLUSTERS)]

    def writes(name: str) -> Callable[[Tx], list[str]]:
        def work(tx: Tx) -> list[str]:
            names(tx)
            tx.put(tables.CLUSTERS, cluster(name))
            return names(tx)

        return work

    def fails_late(tx: Tx) -> None:
        tx.put(tables.CLUSTERS, cluster("x"))
        assert "x" in names(tx)
        tx.delete(tables.CLUSTERS, "a")
        tx.put(tables.CLUSTERS, cluster("a"))
        assert one_of(tx.get(tables.CLUSTERS, "a")).version == 1
        tx.delete(tables.CLUSTERS, "a")
        assert "a" not in names(tx) and tx.get(tables.CLUSTERS, "a") is None
        raise Rejected("no")

    results = await asyncio.gather(
        store.write(CAUSE, writes("a")),
        store.write(CAUSE, fails_late),
        store.write(CAUSE, writes("b")),
        store.write(CAUSE, names),
        return_exceptions=True,
    )
    assert [r for r in results if not isinstance(r, Rejected)] == [["a"], ["a", "b"], ["a", "b"]]
    changes = store.changes(0)
    assert changes is not None and [(c.seq, c.key) for c in changes] == [(1, ("a",)), (2, ("b",))]
    with store.read() as reader:
        assert [c.name for c in reader.scan(tables.CLUSTERS)] == ["a", "b"]


async def test_a_waiter_is_woken_by_its_tables_only(store: Store) -> None:
    start = store.last_seq()
    waiting = asyncio.create_task(store.wait_for_change(start, {tables.IDEMPOTENCY_TOKENS.name}))
    given_up = asyncio.create_task(store.wait_for_change(start, {tables.HOSTS.name}))
    anything = asyncio.create_task(store.wait_for_change(start))
    await put(store, cluster("a"))
    assert await asyncio.wait_for(anything, 5) == start + 1
    given_up.cancel()
    assert not waiting.done()
    await put(store, token("s", "t", 1.0))
    assert await asyncio.wait_for(waiting, 5) == start + 2
    assert await asyncio.wait_for(store.wait_for_change(start, {tables.CLUSTERS.name}), 5) == start + 2
    late = asyncio.create_task(store.wait_for_change(start + 1, {tables.CLUSTERS.name}))
    await put(store, token("s", "u", 1.0))
    assert not late.done()
    await put(store, cluster("b"))
    assert await asyncio.wait_for(late, 5) == start + 4


async def test_a_record_that_was_found_long_ago_is_found_as_it_is_now(store: Store) -> None:
    """A backend may keep what it read; not beyond what changed since."""
    await put(store, cluster("a"))

    def status(tx: Tx) -> tuple[int, str]:
        found = one_of(tx.get(tables.CLUSTERS, "a"))
        return found.version, found.status

    assert await store.write(CAUSE, status) == (1, "ACTIVE")
    for start in range(0, 6000, 1000):  # more than any backend keeps

        def many(tx: Tx, start: int = start) -> None:
            for n in range(start, start + 1000):
                tx.put(tables.IDEMPOTENCY_TOKENS, token("s", f"t{n}", 1.0))

        await store.write(CAUSE, many)
        assert (await store.write(CAUSE, status))[0] == 1 + start // 1000
        await store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, one_of(tx.get(tables.CLUSTERS, "a"))))
    assert await store.write(CAUSE, lambda tx: tx.get(tables.IDEMPOTENCY_TOKENS, "s", "t0")) is not None
    await store.write(CAUSE, lambda tx: tx.delete(tables.CLUSTERS, "a"))
    assert await store.write(CAUSE, lambda tx: tx.get(tables.CLUSTERS, "a")) is None
    await put(store, cluster("a"))
    assert (await store.write(CAUSE, status))[0] == 1


async def test_a_record_that_cannot_be_encoded_fails_only_its_unit_of_work(tmp_path: Path) -> None:
    """Half of a surrogate pair is a string to Python, and to nobody else."""
    store = SqliteStore(tmp_path / "s.sqlite3")
    await store.open()
    bad = replace(cluster("bad"), status="\ud800")
    async with asyncio.timeout(30):
        answers = await asyncio.gather(
            store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, cluster("before"))),
            store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, bad)),
            store.write(CAUSE, lambda tx: tx.put(tables.CLUSTERS, cluster("after"))),
            return_exceptions=True,
        )
        assert isinstance(answers[1], UnicodeEncodeError)
        with store.read() as reader:
            assert [c.name for c in reader.scan(tables.CLUSTERS)] == ["after", "before"]
        await put(store, cluster("bad"))
    await store.close()
