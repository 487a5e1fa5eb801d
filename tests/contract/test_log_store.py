"""The log store: what was acknowledged stays, in order, whatever happens; and no read or deletion holds anything up."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hutch.base.errors import AlreadyExists, NotFound, StorageFull, Unavailable
from hutch.store import log_file, log_subscription, logs
from hutch.store.log_records import LogGroup, StoredEvent
from hutch.store.logs import MAX_SCAN_BYTES, LogStore

DAY_MS = 86_400_000


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[LogStore]:
    made = LogStore(tmp_path / "logs.sqlite3")
    await made.open()
    await made.create_group(group("/g"))
    yield made
    await made.close()


def group(name: str) -> LogGroup:
    return LogGroup(
        name=name, created_ms=1, retention_days=None, log_class="STANDARD", tags={}, stored_bytes=0
    )


async def put(store: LogStore, stream: str, *events: tuple[int, str], to: str = "/g") -> None:
    await store.write_events(to, stream, events, 5, create_stream=True)


def read(store: LogStore, stream: str, **more: Any) -> list[str]:
    given = {"start_ms": 0, "end_ms": 2**53, "after": None, "limit": 1000, **more}
    return [e.message for e in store.read_events(store.stream("/g", stream), **given)]


def search_all(store: LogStore, piece: int, **more: Any) -> list[StoredEvent]:
    found: list[StoredEvent] = []
    given: dict[str, Any] = {"names": (), "prefix": "", "start_ms": 0, "end_ms": 2**53, **more}
    after = None
    while True:
        scan = store.search("/g", after=after, limit=piece, **given)
        assert len(scan.events) <= piece
        found += scan.events
        if scan.next is None:
            return found
        after = scan.next


async def test_events_are_read_in_order_from_both_ends(store: LogStore) -> None:
    await put(store, "s", (3, "c"), (1, "a"))
    await put(store, "s", (2, "b"), (3, "d"))
    assert read(store, "s") == ["a", "b", "c", "d"]
    assert read(store, "s", limit=2, reverse=True) == ["d", "c"]
    assert read(store, "s", start_ms=2, end_ms=3) == ["b"]
    events = store.read_events(store.stream("/g", "s"), start_ms=0, end_ms=9, after=None, limit=9)
    middle = (events[2].timestamp_ms, events[2].seq)
    assert read(store, "s", after=middle) == ["d"]
    assert read(store, "s", after=middle, reverse=True) == ["b", "a"]
    assert read(store, "s", max_bytes=1) == ["a"]
    with pytest.raises(NotFound):
        store.stream("/g", "other")


_streams = st.dictionaries(
    st.sampled_from(["a", "ab", "b", "c"]), st.lists(st.integers(0, 20), max_size=12), min_size=1
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    streams=_streams,
    piece=st.integers(1, 7),
    span=st.tuples(st.integers(0, 20), st.integers(0, 22)),
    prefix=st.sampled_from(["", "a", "ab", "x"]),
)
async def test_a_search_in_pieces_finds_what_a_sort_would(
    streams: dict[str, list[int]], piece: int, span: tuple[int, int], prefix: str, tmp_path_factory: Any
) -> None:
    store = LogStore(tmp_path_factory.mktemp("logs") / "l.sqlite3")
    await store.open()
    await store.create_group(group("/g"))
    await store.create_group(group("/other"))
    await put(store, "a", (1, "not ours"), to="/other")
    wanted = []
    for name, times in streams.items():
        await put(store, name, *((t, f"{name}{i}") for i, t in enumerate(times)))
        wanted += [(t, name, f"{name}{i}") for i, t in enumerate(times)]
    low, high = span
    wanted = sorted((w for w in wanted if low <= w[0] < high and w[1].startswith(prefix)), key=lambda w: w[0])
    found = search_all(store, piece, start_ms=low, end_ms=high, prefix=prefix)
    assert sorted((e.timestamp_ms, e.stream, e.message) for e in found) == sorted(wanted)
    places = [(e.timestamp_ms, e.seq) for e in found]
    assert places == sorted(set(places))
    names = [n for n in streams if n != "c"][:1]
    if names:
        by_name = search_all(store, piece, names=names)
        assert {e.stream for e in by_name} <= set(names) and len(by_name) == len(streams[names[0]])
    await store.close()


async def test_a_search_is_bounded_in_bytes(store: LogStore) -> None:
    await put(store, "s", *((n, "x" * 100_000) for n in range(100)))
    scan = store.search("/g", names=(), prefix="", start_ms=0, end_ms=2**53, after=None)
    assert 1 <= len(scan.events) <= MAX_SCAN_BYTES // 100_000 and scan.next is not None
    assert len(search_all(store, 1000)) == 100


async def test_streams_are_listed_in_pages_in_both_orders(store: LogStore) -> None:
    for name, last in [("b", 5), ("a", 9), ("c", 5), ("é\U0010ffff", 1)]:
        await put(store, name, (last, "x"))
    await store.create_stream("/g", "empty", 1)

    def pages(**how: Any) -> list[str]:
        names: list[str] = []
        after = None
        while page := store.streams("/g", after=after, limit=2, **how):
            names += [s.name for s in page]
            after = ((page[-1].last_ms or 0) if how.get("by_last_event") else 0, page[-1].name)
        return names

    assert pages() == ["a", "b", "c", "empty", "é\U0010ffff"]
    assert pages(descending=True) == ["é\U0010ffff", "empty", "c", "b", "a"]
    assert pages(by_last_event=True, descending=True) == ["a", "c", "b", "é\U0010ffff", "empty"]
    assert pages(prefix="é") == ["é\U0010ffff"] and pages(prefix="x") == []


async def test_groups_and_streams_exist_once(store: LogStore) -> None:
    await store.create_stream("/g", "s", 1)
    with pytest.raises(AlreadyExists):
        await store.create_stream("/g", "s", 1)
    with pytest.raises(AlreadyExists):
        await store.create_group(group("/g"))
    with pytest.raises(NotFound):
        await store.write_events("/none", "s", [(1, "x")], 1, create_stream=True)
    with pytest.raises(NotFound):
        await store.write_events("/g", "none", [(1, "x")], 1, create_stream=False)
    assert [g.name for g in store.groups("/", after="", limit=9)] == ["/g"]


async def test_a_deleted_group_takes_its_events_along_and_can_be_made_again(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "DELETED_AT_ONCE", 10)
    await put(store, "s", *((n, "x") for n in range(35)))
    await put(store, "t", (1, "kept?"))
    await store.delete_stream("/g", "t")
    assert store.group("/g").stored_bytes == 35 * 27
    await store.delete_group("/g")
    with pytest.raises(NotFound):
        store.group("/g")
    await store.create_group(group("/g"))
    await put(store, "s", (1, "new"))
    assert read(store, "s") == ["new"] and [s.name for s in store.streams("/g", limit=9)] == ["s"]
    assert store._file.read("SELECT count(*) FROM events") == [(1,)]


async def test_a_deletion_that_was_cut_off_is_finished_later(store: LogStore, tmp_path: Path) -> None:
    await put(store, "s", *((n, "x") for n in range(20)))
    deleting = asyncio.create_task(store.delete_group("/g"))
    await asyncio.sleep(0)
    deleting.cancel()
    await store.close()
    again = LogStore(tmp_path / "logs.sqlite3")
    await again.open()
    with pytest.raises(NotFound):
        again.group("/g")
    assert await again.drop_expired(0) == 20
    assert again._file.read("SELECT count(*) FROM streams") == [(0,)]
    await again.close()
    await store.open()


async def test_retention_drops_what_is_too_old_and_no_more(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "DELETED_AT_ONCE", 7)
    await store.create_group(group("/forever"))
    await put(store, "s", *((n * DAY_MS, str(n)) for n in range(40)))
    await put(store, "s", (0, "stays"), to="/forever")
    await store.set_retention("/g", 3)
    assert await store.drop_expired(39 * DAY_MS) == 36
    assert read(store, "s") == ["36", "37", "38", "39"]
    assert store.stream("/g", "s").first_ms == 36 * DAY_MS
    assert store.group("/g").stored_bytes == 4 * 28
    assert await store.drop_expired(39 * DAY_MS) == 0
    assert await store.drop_expired(100 * DAY_MS) == 4 and read(store, "s") == []
    await put(store, "s", (101 * DAY_MS, "later"))
    assert [e.message for e in search_all(store, 5)] == ["later"]
    assert [
        e.message
        for e in store.search("/forever", names=(), prefix="", start_ms=0, end_ms=9, after=None).events
    ]


async def test_many_writers_at_once_lose_and_mix_nothing(store: LogStore) -> None:
    async def writer(number: int) -> None:
        for batch in range(20):
            await put(store, f"s{number}", *((batch, f"{batch}.{n}") for n in range(10)))

    started = time.perf_counter()
    await asyncio.gather(*(writer(n) for n in range(20)))
    print(f"4,000 events in 400 batches: {time.perf_counter() - started:.2f} s")
    for number in range(20):
        assert read(store, f"s{number}") == [f"{b}.{n}" for b in range(20) for n in range(10)]
    seqs = [e.seq for e in search_all(store, 500)]
    assert len(set(seqs)) == len(seqs) == 4000


async def test_one_guilty_write_fails_alone(store: LogStore) -> None:
    results = await asyncio.gather(
        put(store, "a", (1, "one")),
        put(store, "b", (1, "half a pair \ud800")),
        put(store, "c", (1, "three")),
        return_exceptions=True,
    )
    assert [isinstance(r, BaseException) for r in results] == [False, True, False]
    assert [e.message for e in search_all(store, 9)] == ["one", "three"]
    await put(store, "d", (1, "still writing"))


async def test_a_full_disk_is_said_and_passes(store: LogStore) -> None:
    assert store._file._writer is not None
    db = store._file._writer._db
    pages = db.execute("PRAGMA page_count").fetchone()[0]
    db.execute(f"PRAGMA max_page_count={pages + 3}").fetchall()
    results = await asyncio.gather(
        put(store, "big", (1, "x" * 200_000)), put(store, "small", (1, "y")), return_exceptions=True
    )
    assert isinstance(results[0], StorageFull) and results[1] is None
    db.execute("PRAGMA max_page_count=1000000").fetchall()
    await put(store, "big", (2, "now it fits"))
    assert [e.message for e in search_all(store, 9)] == ["y", "now it fits"]


async def test_reads_and_the_event_loop_do_not_wait_for_a_commit(store: LogStore) -> None:
    await put(store, "s", (1, "a"))
    inside, go_on = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> None:
        inside.set()
        assert go_on.wait(10)

    assert store._file._writer is not None
    writing = asyncio.create_task(store._file._writer.write(slow))
    assert await asyncio.to_thread(inside.wait, 10)
    try:
        assert read(store, "s") == ["a"] and store.group("/g").name == "/g"
        assert [e.message for e in search_all(store, 9)] == ["a"]
    finally:
        go_on.set()
    await writing


async def test_a_write_that_meets_close_is_answered(tmp_path: Path) -> None:
    store = LogStore(tmp_path / "l.sqlite3")
    await store.open()
    first = asyncio.create_task(store.create_group(group("/a")))
    await asyncio.sleep(0)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="closed"):
        await asyncio.wait_for(store.create_group(group("/b")), 5)
    await closing
    await asyncio.wait_for(first, 5)


async def test_subscribers_get_what_is_new_and_never_hold_up_writers(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_subscription, "MAX_SUBSCRIBER_EVENTS", 3)
    await put(store, "s", (1, "before"))
    subscription = store.subscribe(frozenset({"/g"}))
    await store.create_group(group("/other"))
    await put(store, "s", (1, "elsewhere"), to="/other")
    await put(store, "s", *((n, str(n)) for n in range(5)))
    assert [e.message for e in subscription.take(9)] == ["2", "3", "4"] and subscription.dropped == 2
    subscription.close()
    await put(store, "s", (1, "after"))
    assert subscription.take(9) == []


async def test_a_newer_a_damaged_and_an_older_file(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite3"
    path.write_bytes(b"this is no database, and long enough to be looked at" * 100)
    with pytest.raises(Unavailable, match="is damaged"):
        await LogStore(path).open()
    path.unlink()
    db = sqlite3.connect(path)
    db.executescript(f"{log_file._SCHEMA} PRAGMA user_version=1;")
    db.execute("INSERT INTO log_groups VALUES ('/g', 1, NULL, 'STANDARD', '{}', 0)")
    db.execute("INSERT INTO streams VALUES (1, '/g', 's', 1, 7, 7, 7)")
    db.execute("INSERT INTO events VALUES (1, 7, 41, 7, 'old')")
    db.commit()
    db.close()
    store = LogStore(path)
    await store.open()
    await put(store, "s", (7, "new"))
    assert [(e.seq, e.message) for e in search_all(store, 9)] == [(41, "old"), (42, "new")]
    await store.close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(Unavailable, match="newer hutch"):
        await LogStore(path).open()


_WRITER = """
import asyncio, sys
from hutch.store.log_records import LogGroup
from hutch.store.logs import LogStore

async def main():
    store = LogStore(sys.argv[1])
    await store.open()
    await store.create_group(
        LogGroup(name="/g", created_ms=1, retention_days=None, log_class="STANDARD", tags={}, stored_bytes=0)
    )
    async def writer(w):
        n = 0
        while True:
            await store.write_events("/g", f"s{w}", [(n, f"{n}"), (n, f"{n}b")], 1, create_stream=True)
            print(w, n, flush=True)
            n += 1
    await asyncio.gather(*(writer(w) for w in range(4)))

asyncio.run(main())
"""


async def test_what_was_acknowledged_survives_a_kill_and_a_torn_tail(tmp_path: Path) -> None:
    path = tmp_path / "l.sqlite3"
    process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(120)]
    process.send_signal(signal.SIGKILL)
    lines += process.stdout.read().splitlines()
    process.wait()
    acknowledged = [-1] * 4
    for words in (line.split() for line in lines):
        if len(words) == 2:
            acknowledged[int(words[0])] = max(acknowledged[int(words[0])], int(words[1]))
    # What a power cut may leave behind the last commit: the beginning of another one, and garbage.
    with path.with_name(path.name + "-wal").open("ab") as wal:
        wal.write(b"\x00\x01garbage" * 1000)
    store = LogStore(path)
    await store.open()
    for writer, last in enumerate(acknowledged):
        assert last >= 0
        found = read(store, f"s{writer}", limit=100_000)
        assert found[: 2 * (last + 1)] == [f"{n}{b}" for n in range(last + 1) for b in ("", "b")]
        assert len(found) % 2 == 0, "a batch is stored whole or not at all"
    await put(store, "s0", (10**9, "goes on"))
    assert read(store, "s0", limit=100_000)[-1] == "goes on"
    await store.close()


_READER = """
import asyncio, resource, sys
from hutch.store.logs import LogStore

async def main():
    store = LogStore(sys.argv[1])
    await store.open()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    after, count = None, 0
    while True:
        scan = store.search("/g", names=(), prefix="", start_ms=0, end_ms=2**53, after=after)
        count += len(scan.events)
        after = scan.next
        if after is None:
            break
    print(count, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    await store.close()

asyncio.run(main())
"""


async def test_reading_everything_takes_little_memory(store: LogStore, tmp_path: Path) -> None:
    for n in range(60):
        await put(store, f"s{n % 7}", (n, f"{n}" + "x" * 1_000_000))
    done = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _READER, str(tmp_path / "logs.sqlite3"), stdout=subprocess.PIPE
    )
    out, _ = await done.communicate()
    count, grown_mib = map(int, out.split())
    assert count == 60 and grown_mib < 48, "60 MB of events must not all be in memory"
