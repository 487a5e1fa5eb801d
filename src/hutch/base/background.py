"""Work that goes on beside whoever began it, and ends with its owner."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """A set of tasks. Nothing waits for any one of them; `end` waits for all."""

    def __init__(self, failed: Callable[[BaseException], None]) -> None:
        """`failed` is told of each exception that ends one of them."""
        self._failed = failed
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Begin one more."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failed(error)

    async def end(self) -> None:
        """Cancel all that goes on, and wait until it has ended."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
