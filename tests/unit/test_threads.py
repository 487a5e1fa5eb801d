"""Work in threads that nothing can stop."""

import asyncio
import threading

import pytest

from hutch.base.threads import in_thread


async def test_its_result_and_its_error_are_the_caller_s() -> None:
    assert await in_thread(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_thread(divmod, 1, 0)


@pytest.mark.parametrize("fails", [False, True])
async def test_it_has_ended_when_its_caller_goes_on_however_often_that_was_cancelled(fails: bool) -> None:
    """Else the caller would close files under the thread, which are somebody else's by the next moment."""
    began, go, ended = threading.Event(), threading.Event(), threading.Event()
    problems: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    def work() -> None:
        began.set()
        assert go.wait(30)
        ended.set()
        if fails:
            raise OSError("gone")

    task = asyncio.create_task(in_thread(work))
    await asyncio.to_thread(began.wait, 30)
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set() and problems == []
