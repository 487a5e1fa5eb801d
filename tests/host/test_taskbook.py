"""What an agent keeps of its tasks for the next one."""

import asyncio
import contextlib
import shutil
import sqlite3
from functools import partial
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace
from tests.support.fleet_control import make_task

from hutch.base.errors import StorageFull
from hutch.host.agent.taskbook import TaskBook
from hutch.host.agent.taskfile import TaskFile

ID = "0123456789abcdef0123456789abcdef"
OTHER = "f" * 32


async def test_the_tasks_of_an_earlier_hutch_are_taken_over(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "tasks.db")
    db.execute("CREATE TABLE tasks (task_id TEXT PRIMARY KEY, body BLOB NOT NULL) WITHOUT ROWID")
    content = TaskFile(spec=make_task(ID), driver="fake", ended=True)
    db.execute("INSERT INTO tasks VALUES (?,?)", (ID, msgspec.json.encode(content)))
    db.commit()
    db.close()
    book = TaskBook(tmp_path / "tasks.db")
    assert book.open() == {ID: content}
    await book.save(ID, lambda: replace(content, ended=False))
    await book.close()
    assert book.open() == {ID: replace(content, ended=False)}
    await book.close()


async def test_many_saves_at_once_are_all_there_after_a_crash(tmp_path: Path) -> None:
    book = TaskBook(tmp_path / "tasks.db")
    assert book.open() == {}
    ids = [f"{n:032x}" for n in range(300)]
    await asyncio.gather(*(book.save(i, partial(TaskFile, spec=make_task(i))) for i in ids))
    await asyncio.gather(*(book.remove(i) for i in ids[::2]))
    shutil.copytree(tmp_path, tmp_path / "as-after-a-crash")
    again = TaskBook(tmp_path / "as-after-a-crash" / "tasks.db")
    assert sorted(again.open()) == ids[1::2]
    await again.close()
    await book.close()
    with pytest.raises(StorageFull):
        await book.save(ID, lambda: TaskFile(spec=make_task(ID)))


async def test_saves_that_come_before_their_turn_are_one_with_the_newest_content(tmp_path: Path) -> None:
    book = TaskBook(tmp_path / "tasks.db")
    book.open()
    content = TaskFile(spec=make_task(ID))
    asked: list[TaskFile] = []

    def current() -> TaskFile:
        asked.append(content)
        return content

    first = book.save(ID, current)
    content = replace(content, driver="fake")
    assert book.save(ID, current) is first
    content = replace(content, ended=True)
    await first
    assert asked == [content]
    await book.close()
    assert book.open() == {ID: content}
    await book.close()


async def test_a_save_with_nothing_new_writes_nothing(tmp_path: Path) -> None:
    book = TaskBook(tmp_path / "tasks.db")
    book.open()
    await asyncio.gather(
        book.save(ID, lambda: None), book.save(OTHER, lambda: TaskFile(spec=make_task(OTHER)))
    )
    await book.close()
    assert list(book.open()) == [OTHER]
    await book.close()


async def test_a_task_that_is_saved_and_forgotten_in_one_turn_is_not_there(tmp_path: Path) -> None:
    book = TaskBook(tmp_path / "tasks.db")
    book.open()
    book.save(ID, lambda: TaskFile(spec=make_task(ID)))
    await book.remove(ID)
    await book.close()
    assert book.open() == {}
    await book.close()


async def test_a_save_that_the_disk_refuses_says_so_and_the_next_one_is_kept(tmp_path: Path) -> None:
    book = TaskBook(tmp_path / "tasks.db")
    book.open()
    with contextlib.closing(sqlite3.connect(tmp_path / "tasks.db")) as db:
        db.execute(
            "CREATE TRIGGER full BEFORE INSERT ON states BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
        with pytest.raises(StorageFull, match="disk is full"):
            await book.save(ID, lambda: TaskFile(spec=make_task(ID)))
        db.execute("DROP TRIGGER full")
    await book.save(ID, lambda: TaskFile(spec=make_task(ID)))
    await book.close()
    assert list(book.open()) == [ID]
    await book.close()


async def test_what_cannot_be_put_in_writing_is_its_task_s_fault_only(tmp_path: Path) -> None:
    book = TaskBook(tmp_path / "tasks.db")
    book.open()

    def fails() -> TaskFile:
        raise ValueError("no state")

    unreadable = TaskFile(spec=make_task(ID), driver="\ud800")
    for bad in (fails, lambda: unreadable):
        async with asyncio.timeout(10):
            first, second = await asyncio.gather(
                book.save(ID, bad),
                book.save(OTHER, lambda: TaskFile(spec=make_task(OTHER))),
                return_exceptions=True,
            )
        assert isinstance(first, StorageFull) and second is None
    await book.close()
    assert list(book.open()) == [OTHER]
    await book.close()
