"""The services that hutch serves, on a store in memory, behind a real HTTP server in strict mode.

One host has connected, so that tasks are placed; nobody carries them out.
"""

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from botocore.config import Config
from tests.api.support.hosts import StandInHost
from tests.api.support.identities import identity_services, sts_ops
from tests.api.support.server import ACCOUNT_ID, REGION, ApiServer

from hutch.api.aws.ec2 import service as ec2
from hutch.api.aws.ecs import service as ecs
from hutch.api.aws.ecs.access import EcsAccess
from hutch.api.aws.efs import service as efs
from hutch.api.aws.logs import service as logs_api
from hutch.api.aws.s3 import service as s3
from hutch.api.aws.secretsmanager import service as secretsmanager
from hutch.api.aws.ssm import service as ssm
from hutch.api.gateway.operation import Service
from hutch.api.gateway.paging import Paging
from hutch.api.native_check import NativeCheck
from hutch.apps.events import EventParts
from hutch.base.clock import SystemClock
from hutch.base.ids import RandomIds
from hutch.control.authorizer import Authorizer
from hutch.control.controllers.definitions import DefinitionLoop
from hutch.control.controllers.membership import MembershipLoop
from hutch.control.exec_sessions import ExecSessions, NoHosts
from hutch.control.execution_roles import ExecutionRoles
from hutch.control.launch_secrets import LaunchSecrets
from hutch.control.ops.disk_snapshots import DiskSnapshotOps
from hutch.control.ops.filesystems import FileSystemOps
from hutch.control.ops.hosts import HostOps
from hutch.control.ops.logs import LogOps
from hutch.control.ops.objects import ObjectOps
from hutch.control.ops.parameters import ParameterOps
from hutch.control.ops.placing import PlacementLimits
from hutch.control.ops.platform import ensure_platform
from hutch.control.ops.secrets import SecretOps
from hutch.control.ops.tagging import TagOps
from hutch.control.ops.tasks import TaskOps
from hutch.control.preflight import Preflight
from hutch.control.vault import Vault
from hutch.store.logs import LogStore
from hutch.store.memory import MemoryStore
from hutch.wire.facts import DriverFactMsg, Fingerprint

HOST_ID = "i-0123456789abcdef0"


class FileHosts:
    """A host that keeps file systems: what it was asked, and how large it says they are."""

    connected_host_ids = (HOST_ID,)

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def request(self, host_id: str, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        self.asked.append((verb, arguments))
        return {"sizes": dict.fromkeys(arguments["ids"], 4096)} if "ids" in arguments else {}


class AwsServer:
    """Every service as the control plane serves it, until `stop`."""

    def __init__(self, directory: Path) -> None:
        clock, ids = SystemClock(), RandomIds()
        self.store = MemoryStore()
        self.file_hosts = FileHosts()
        self.log_store = LogStore(directory / "logs.sqlite")
        asyncio.run(self.log_store.open())
        limits = PlacementLimits(cpu_overcommit=4.0, memory_reserve_mib=0, ingress_ports=(30000, 30100))
        tasks = TaskOps(self.store, clock, ids, limits=limits, wait_for_placement=False, strict_aws=False)
        paging = Paging("00" * 32)
        log_ops = LogOps(self.log_store, clock)
        self.events = EventParts(self.store, tasks, log_ops, clock, ids, region=REGION, account_id=ACCOUNT_ID)
        self.sessions = ExecSessions(self.store, clock, ids, NoHosts())
        vault = Vault({1: bytes(range(32))}, ids)
        self.host = StandInHost(HOST_ID)
        self.services: list[Service] = [
            ecs.service(
                self.store,
                clock,
                ids,
                tasks,
                paging,
                self.sessions,
                region=REGION,
                account_id=ACCOUNT_ID,
                strict_aws=False,
            ),
            logs_api.service(log_ops, paging, clock, ids, region=REGION, account_id=ACCOUNT_ID),
            ec2.service(
                self.store,
                paging,
                DiskSnapshotOps(self.store, clock, ids, self.file_hosts),
                region=REGION,
                account_id=ACCOUNT_ID,
            ),
            *identity_services(self.store, clock),
            *self._secret_services(clock, ids, paging, vault),
            *self.events.services(paging),
        ]
        checks = self._checks(log_ops, clock, ids, limits, vault)
        self.http = ApiServer(
            self.services,
            directory,
            native_routes=(*self.events.routes(), *checks.routes()),
            store=self.store,
            clock=clock,
        )
        self.hosts = HostOps(self.store, clock, ids, clusters=("*",), default_zone=f"{REGION}a")
        self.run(
            ensure_platform(
                self.store, clock, ids, region=REGION, account_id=ACCOUNT_ID, vpc_cidr="172.31.0.0/16"
            )
        )
        self.connect_host()
        loops = (
            DefinitionLoop(self.store, ids).run(),
            MembershipLoop(self.store, self.hosts).run(),
            *self.events.loops(),
        )
        self._loops = [asyncio.run_coroutine_threadsafe(c, self.http.loop) for c in loops]

    def _checks(
        self, logs: LogOps, clock: SystemClock, ids: RandomIds, limits: PlacementLimits, vault: Vault
    ) -> NativeCheck:
        place = {"region": REGION, "account_id": ACCOUNT_ID}
        authorizer = Authorizer(self.store, clock, account_id=ACCOUNT_ID)
        roles = ExecutionRoles(sts_ops(self.store, clock), authorizer, clock, **place)
        secrets = LaunchSecrets(
            SecretOps(self.store, vault, clock, ids, **place),
            ParameterOps(self.store, vault, clock, **place),
            ObjectOps(self.store, vault, clock, ids),
            roles,
            logs.group_exists,
            **place,
        )
        preflight = Preflight(self.store, self.host, secrets, roles, logs, clock, ids, limits=limits, **place)
        access = EcsAccess(self.store, TagOps(self.store), REGION, ACCOUNT_ID)
        return NativeCheck(self.store, preflight, authorizer, access)

    def _secret_services(
        self, clock: SystemClock, ids: RandomIds, paging: Paging, vault: Vault
    ) -> list[Service]:
        place = {"region": REGION, "account_id": ACCOUNT_ID}
        return [
            secretsmanager.service(SecretOps(self.store, vault, clock, ids, **place), paging),
            ssm.service(ParameterOps(self.store, vault, clock, **place), paging, self.sessions),
            efs.service(
                FileSystemOps(self.store, clock, ids, self.file_hosts, **place), paging, account_id=ACCOUNT_ID
            ),
            s3.service(ObjectOps(self.store, vault, clock, ids), paging, **place),
        ]

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Carry out work on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.http.loop).result(60)

    def connect_host(self) -> None:
        """As the fleet does when a host's agent has connected."""
        driver = DriverFactMsg(
            name="fake", launch_types=("FARGATE", "EC2", "EXTERNAL"), healthy=True, reason=""
        )
        fingerprint = Fingerprint(
            name="one",
            agent_version="1.0",
            architecture="x86_64",
            cpu_units=64 * 1024,
            memory_mib=256 * 1024,
            disk_gib=1000,
            drivers=(driver,),
        )
        self.run(self.hosts.connected(HOST_ID, fingerprint))

    def client(self, service: str, *, checks: bool = True) -> Any:
        """A boto3 client; without `checks` it sends what it knows to be wrong."""
        config = Config(
            retries={"total_max_attempts": 1}, parameter_validation=checks, inject_host_prefix=False
        )
        return self.http.client(service, config=config)

    def stop(self) -> None:
        """End the server; a loop that failed is told here."""
        for loop in self._loops:
            assert not loop.done(), loop.exception()
            loop.cancel()
        self.http.stop()
        asyncio.run(self.log_store.close())


def until_changed(server: AwsServer, seq: int) -> int:
    """Wait for the store to change after `seq`; its newest sequence number."""
    return int(server.run(asyncio.wait_for(server.store.wait_for_change(seq), 30)))
