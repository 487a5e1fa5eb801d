"""Blocking work in a thread that uses what is its caller's: it has ended when its caller goes on."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """The result of `work` with these arguments, done in a thread; raises what it raises.

    A thread can't be stopped: cancelled, however often, this raises `CancelledError` when the work has ended, and not
    before. So whoever cleans up after it (closes the files that it uses, removes what it makes) comes after it.
    """
    # Not a task, which the end of the event loop would cancel by itself.
    running = asyncio.get_running_loop().run_in_executor(None, work, *arguments)
    cancelled: asyncio.CancelledError | None = None
    while not running.done():
        try:
            await asyncio.wait({running})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        running.exception()  # nobody waits for it any more
        raise cancelled
    return running.result()
