"""Removes secrets for good when their recovery window is over. Nobody sees them from then on, removed or not."""

import asyncio

from hutch.base.errors import StorageFull
from hutch.base.ids import IdSource
from hutch.base.log import get_logger
from hutch.control.ops.secrets import SecretOps
from hutch.model.record import Cause

log = get_logger(__name__)

ROUND_S = 600.0


class SecretExpiryLoop:
    """Level-triggered: a round looks at what is due, whatever came before."""

    def __init__(self, secrets: SecretOps, ids: IdSource) -> None:
        self._secrets = secrets
        self._ids = ids

    async def run(self) -> None:
        """For ever, each `ROUND_S` seconds: a recovery window has days."""
        while True:
            cause = Cause(id=self._ids.uuid(), actor="controller:secrets", action="expire")
            try:
                await self._secrets.expire(cause)
            except StorageFull as error:
                log.error("expired secrets wait for their removal", reason=error.message)
            await asyncio.sleep(ROUND_S)
