"""Credentials of task roles, kept in memory only: asked of the control plane when a container first wants them, and again
before they expire."""

import asyncio
from collections.abc import Callable

from hutch.base.clock import Clock
from hutch.base.errors import HutchError, Unavailable
from hutch.wire.fleet import CredentialsGiven, CredentialsWanted

RENEW_BEFORE_S = 3600.0
KEEP_REFUSAL_S = 5.0
ANSWER_TIMEOUT_S = 10.0


class RoleRefused(HutchError):
    """The task has no usable role; the message says why and what to do."""


class RoleCredentials:
    """One per agent. `send` says whether the control plane is there to take the question."""

    def __init__(self, clock: Clock, send: Callable[[CredentialsWanted], bool]) -> None:
        self._clock = clock
        self._send = send
        self._known: dict[str, CredentialsGiven] = {}
        self._refusals: dict[str, tuple[float, str]] = {}
        self._waiting: dict[str, asyncio.Future[CredentialsGiven]] = {}

    async def get(self, task_id: str) -> CredentialsGiven:
        """Credentials that are good for a while. Raises `RoleRefused`, or `Unavailable` without the control plane."""
        known, now = self._known.get(task_id), self._clock.now()
        if known is not None and known.expires_at - now > RENEW_BEFORE_S:
            return known
        refused_at, words = self._refusals.get(task_id, (0.0, ""))
        if words and now - refused_at < KEEP_REFUSAL_S:
            raise RoleRefused(words)
        try:
            given = await self._ask(task_id)
        except Unavailable:
            if known is not None and known.expires_at > now:
                return known
            raise
        if given.error:
            self._known.pop(task_id, None)
            self._refusals[task_id] = (now, given.error)
            raise RoleRefused(given.error)
        self._refusals.pop(task_id, None)
        self._known[task_id] = given
        return given

    async def _ask(self, task_id: str) -> CredentialsGiven:
        """One question for all who wait for the same task."""
        waiting = self._waiting.get(task_id)
        if waiting is None:
            waiting = self._waiting[task_id] = asyncio.get_running_loop().create_future()
            if not self._send(CredentialsWanted(request_id=task_id, task_id=task_id)):
                del self._waiting[task_id]
                raise Unavailable("the control plane is not connected; try again")
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                return await asyncio.shield(waiting)
        except TimeoutError:
            raise Unavailable("the control plane did not answer; try again") from None

    def given(self, answer: CredentialsGiven) -> None:
        """The control plane has answered."""
        waiting = self._waiting.pop(answer.request_id, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    def disconnected(self) -> None:
        """Who waits will wait in vain."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(Unavailable("the control plane's connection ended; try again"))
                # Nobody may be waiting any more.
                future.exception()

    def forget(self, task_id: str) -> None:
        """The task is gone."""
        self._known.pop(task_id, None)
        self._refusals.pop(task_id, None)
