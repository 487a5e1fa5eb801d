"""An API server in this process, on a loopback port of its own, and boto3 clients for it."""

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import boto3
import msgspec
import uvicorn
from botocore.config import Config
from msgspec.structs import replace
from tests.api.support.identities import vault

from hutch.api.gateway.app import Gateway
from hutch.api.gateway.native import NativeRoute
from hutch.api.gateway.onewrite import GatheringHttpProtocol
from hutch.api.gateway.operation import Service
from hutch.base.clock import Clock, SystemClock
from hutch.base.ids import RandomIds
from hutch.control.authorizer import Authorizer
from hutch.control.identity import Credentials, Identity
from hutch.model.iam import AccessKey
from hutch.store.memory import MemoryStore
from hutch.store.tables import ACCESS_KEYS

REGION = "us-east-1"
ACCOUNT_ID = "000000000000"


class ApiServer:
    """Serves services from a thread with an event loop of its own, in strict mode, until `stop`."""

    def __init__(
        self,
        services: list[Service],
        directory: Path,
        *,
        native_routes: tuple[NativeRoute, ...] = (),
        clock: Clock | None = None,
        store: Any = None,
        region: str = REGION,
    ) -> None:
        self.region = region
        self.store = store or MemoryStore()
        ids = RandomIds()
        clock = clock or SystemClock()
        self.identity = Identity(self.store, clock, ids, vault(), account_id=ACCOUNT_ID)
        self.loop = asyncio.new_event_loop()
        self.loop.run_until_complete(self.store.open())
        self.loop.run_until_complete(self.identity.ensure_root_key(directory / "credentials.json"))
        given = msgspec.json.decode((directory / "credentials.json").read_bytes(), type=Credentials)
        with self.store.read() as reader:
            stored = reader.get(ACCESS_KEYS, given.access_key_id)
        self.key: AccessKey = replace(stored, sealed=None, secret_key=given.secret_access_key)
        """The root key, with its secret in clear."""
        self.app = Gateway(
            services=services,
            identity=self.identity,
            authorizer=Authorizer(self.store, clock, account_id=ACCOUNT_ID),
            ids=ids,
            clock=clock,
            region=region,
            account_id=ACCOUNT_ID,
            native_routes=native_routes,
            upload_directory=directory,
            strict=True,
        )
        # The socket listens before the server runs: a client that is early waits in its backlog.
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            self.app,
            log_config=None,
            access_log=False,
            lifespan="off",
            http=GatheringHttpProtocol,
            ws="websockets-sansio",
            loop="none",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="api-server", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_until_complete(self._server.serve(sockets=[self._socket]))

    def stop(self) -> None:
        """End the server and close what it held."""
        self._server.should_exit = True
        self._thread.join(timeout=10)
        assert not self._thread.is_alive(), "the API server does not stop"
        self.loop.run_until_complete(self.store.close())
        self.loop.close()

    def client(self, service: str, **settings: Any) -> Any:
        """A boto3 client with the root key; `settings` override its arguments."""
        arguments = {
            "endpoint_url": self.url,
            "region_name": self.region,
            "aws_access_key_id": self.key.access_key_id,
            "aws_secret_access_key": self.key.secret_key,
            "config": Config(retries={"total_max_attempts": 1}, read_timeout=20, inject_host_prefix=False),
        }
        return boto3.session.Session().client(service, **(arguments | settings))
