"""Work beside the main one: what fails is told once, what goes on ends with its owner."""

import asyncio

from hutch.base.background import Background


async def test_a_failure_is_told_and_the_others_go_on() -> None:
    told: asyncio.Queue[BaseException] = asyncio.Queue()
    background = Background(told.put_nowait)
    goes_on = asyncio.Event()

    async def fails() -> None:
        raise ValueError("no")

    async def waits() -> None:
        await goes_on.wait()

    background.start(fails())
    background.start(waits())
    assert str(await told.get()) == "no"
    assert len(background) == 1
    goes_on.set()
    await background.end()
    assert len(background) == 0 and told.empty()


async def test_the_end_cancels_and_waits() -> None:
    told: list[BaseException] = []
    background = Background(told.append)
    steps = []

    async def work() -> None:
        try:
            steps.append("begun")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            steps.append("cleaned up")

    background.start(work())
    await asyncio.sleep(0)
    await background.end()
    assert steps == ["begun", "cleaned up"]
    assert len(background) == 0 and told == []
