"""Brings the write-ahead log's content into the database file, in a thread of its own: no commit waits for it."""

import sqlite3
import threading
from collections.abc import Callable

from hutch.base.log import get_logger

log = get_logger(__name__)

AFTER_CHANGES = 8_000
MAX_LOG_PAGES = 100_000
"""Beyond it (400 MB) writers are held up for a moment, so that the log can begin anew."""


class Checkpointer:
    """One thread with a connection of its own. `connect` opens it."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._wanted = threading.Event()
        self._ended = False
        self._changes = 0
        self._thread = threading.Thread(target=self._run, name="store-checkpointer", daemon=True)
        self._thread.start()

    def changed(self, count: int) -> None:
        """So many records were written; called by the writer."""
        self._changes += count
        if self._changes >= AFTER_CHANGES:
            self._changes = 0
            self._wanted.set()

    def close(self) -> None:
        """End the thread; blocks until what it does is done."""
        self._ended = True
        self._wanted.set()
        self._thread.join()

    def _run(self) -> None:
        db: sqlite3.Connection | None = None
        while True:
            self._wanted.wait()
            self._wanted.clear()
            if self._ended:
                break
            try:
                db = db or self._connect()
                _, pages, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
                if pages > MAX_LOG_PAGES:
                    db.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
            except sqlite3.Error as error:
                # The log keeps everything; the next round tries again.
                log.warning("store not checkpointed", reason=str(error))
        if db is not None:
            db.close()
