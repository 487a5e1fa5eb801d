"""A sink over a connection that may break at any time: connect, hand over, and again until it has worked."""

import asyncio
import contextlib
from random import Random

from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.base.retry import backoff_seconds
from hutch.host.logs.contract import Connection, Dial, LogEntry

log = get_logger(__name__)

CONNECT_LIMIT_S = 3.0
DELIVER_LIMIT_S = 5.0
FIRST_DELAY_S, LONGEST_DELAY_S = 0.2, 10.0


class Timing(HutchError):
    """The other end took too long."""


class RetryingSink:
    """The part that all sinks with a connection have in common; a subclass says what a batch is on the wire."""

    max_batch_bytes = 512 * 1024

    def __init__(
        self,
        dial: Dial,
        *,
        target: str,
        seed: str,
        longest_delay_s: float = LONGEST_DELAY_S,
        limit_s: float = DELIVER_LIMIT_S,
    ) -> None:
        """`target` is how problems name the back end; `seed` makes the delays of many sinks differ."""
        self.stuck = asyncio.Event()
        self._dial = dial
        self._target = target
        self._rng = Random(seed)
        self._longest_delay_s = longest_delay_s
        self._limit_s = limit_s
        self._connection: Connection | None = None
        self._problem = ""

    @property
    def problem(self) -> str:
        """Why nothing gets through just now."""
        return self._problem

    async def send(self, entries: tuple[LogEntry, ...]) -> str:
        """Hand a batch over, however often the connection breaks meanwhile."""
        delays = backoff_seconds(FIRST_DELAY_S, self._longest_delay_s, self._rng)
        while True:
            try:
                refused = await self._try(entries)
            except (OSError, HutchError, EOFError) as error:
                await self.close()
                self._failed(str(error) or type(error).__name__)
            except BaseException:
                await self.close()
                raise
            else:
                self._worked()
                return refused
            await asyncio.sleep(next(delays))

    async def _try(self, entries: tuple[LogEntry, ...]) -> str:
        if self._connection is None:
            try:
                async with asyncio.timeout(CONNECT_LIMIT_S):
                    self._connection = await self._dial()
            except TimeoutError:
                raise Timing(f"no connection within {CONNECT_LIMIT_S:g} s") from None
        try:
            async with asyncio.timeout(self._limit_s):
                return await self._deliver(self._connection, entries)
        except TimeoutError:
            raise Timing(f"it took nothing for {self._limit_s:g} s") from None

    async def _deliver(self, connection: Connection, entries: tuple[LogEntry, ...]) -> str:
        """Put a batch on the wire and wait for what the protocol has as an answer. As `LogSink.send`; raises when it is
        to be tried again."""
        raise NotImplementedError

    def _failed(self, reason: str) -> None:
        problem = f"{self._target}: {reason}"
        if not self._problem:
            log.warning("log back end can't be reached", target=self._target, reason=reason)
        self._problem = problem
        self.stuck.set()

    def _worked(self) -> None:
        if self._problem:
            log.info("log back end takes logs again", target=self._target)
        self._problem = ""
        self.stuck.clear()

    async def close(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError, HutchError):
                await connection.close()
