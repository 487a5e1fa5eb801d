"""Secrets Manager and Parameter Store on a SQLite file of their own, for boto3."""

import asyncio
from pathlib import Path
from typing import Any

from tests.api.support.server import ACCOUNT_ID, REGION, ApiServer

from hutch.api.aws.secretsmanager import service as secretsmanager
from hutch.api.aws.ssm import service as ssm
from hutch.api.gateway.paging import Paging
from hutch.base.clock import SystemClock
from hutch.base.ids import RandomIds
from hutch.control.exec_sessions import ExecSessions, NoHosts
from hutch.control.ops.parameters import ParameterOps
from hutch.control.ops.secrets import SecretOps
from hutch.control.vault import open_vault
from hutch.model.record import Cause
from hutch.store.sqlite import SqliteStore

CAUSE = Cause(id="test", actor="test", action="test")


class MovableClock(SystemClock):
    """The machine's clock; the wall clock can be set forward for what a use case sees."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def now(self) -> float:
        return super().now() + self.ahead_s


class SecretsServer:
    """A server with both services. `clock` is the use cases' own: signatures go by the real time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = MovableClock()
        store, ids = SqliteStore(directory / "state.sqlite3"), RandomIds()
        self.vault = open_vault(directory / "secrets.key", ids, values_exist=False)
        where = {"region": REGION, "account_id": ACCOUNT_ID}
        self.secrets = SecretOps(store, self.vault, self.clock, ids, **where)
        self.parameters = ParameterOps(store, self.vault, self.clock, **where)
        paging = Paging("00" * 32)
        services = [
            secretsmanager.service(self.secrets, paging),
            ssm.service(self.parameters, paging, ExecSessions(store, self.clock, ids, NoHosts())),
        ]
        self.api = ApiServer(services, directory, store=store)

    def run(self, work: Any) -> Any:
        """A coroutine, on the server's own loop."""
        return asyncio.run_coroutine_threadsafe(work, self.api.loop).result(20)
