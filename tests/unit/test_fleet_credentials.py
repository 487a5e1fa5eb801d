"""A host asks for the credentials of a task's role: of its own tasks, and told why if there are none."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hutch.api.aws.ecs.event_shapes import EcsEventShapes
from hutch.base.clock import SystemClock
from hutch.base.ids import RandomIds
from hutch.control.authorizer import Authorizer
from hutch.control.events.publishing import Publisher
from hutch.control.events.shapes import EventShapes
from hutch.control.execution_roles import ExecutionRoles
from hutch.control.fleet import Fleet
from hutch.control.host_session import FleetContext
from hutch.control.launch_secrets import LaunchSecrets
from hutch.control.ops.findings import FindingOps
from hutch.control.ops.hosts import HostOps
from hutch.control.ops.iam.roles import NewRole, RoleOps
from hutch.control.ops.logs import LogOps
from hutch.control.ops.objects import ObjectOps
from hutch.control.ops.parameters import ParameterOps
from hutch.control.ops.secrets import SecretOps
from hutch.control.ops.sts import StsOps
from hutch.control.ops.taskroles import TASK_SESSION_S, TaskRoles
from hutch.control.sessions import SessionTokens
from hutch.control.surroundings import TaskAddresses
from hutch.control.vault import Vault
from hutch.model.record import Cause
from hutch.model.task import Container, Task
from hutch.model.taskdef import TaskDefinition
from hutch.store import tables
from hutch.store.logs import LogStore
from hutch.store.memory import MemoryStore
from hutch.wire import fleet as wire
from hutch.wire.codec import read_message, write_message
from hutch.wire.facts import Fingerprint

ACCOUNT, REGION = "000000000000", "us-east-1"
CAUSE = Cause(id="1", actor="test", action="test")
ROLE = f"arn:aws:iam::{ACCOUNT}:role/app"
TRUST = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": {
            "Effect": "Allow",
            "Principal": {"Service": "ecs-tasks.amazonaws.com"},
            "Action": "sts:AssumeRole",
            "Condition": {"ArnLike": {"aws:SourceArn": f"arn:aws:ecs:{REGION}:{ACCOUNT}:*"}},
        },
    }
)


class Control:
    """A control plane's fleet end, with a role and tasks on two hosts."""

    def __init__(self, directory: Path) -> None:
        self.clock, self.ids, self.store = SystemClock(), RandomIds(), MemoryStore()
        where = {"region": REGION, "account_id": ACCOUNT}
        vault = Vault({1: bytes(32)}, self.ids)
        self.tokens = SessionTokens(vault, self.ids)
        authorizer = Authorizer(self.store, self.clock, account_id=ACCOUNT)
        sts = StsOps(self.store, self.clock, self.tokens, authorizer, account_id=ACCOUNT)
        secrets = SecretOps(self.store, vault, self.clock, self.ids, **where)
        shapes = EventShapes(EcsEventShapes(REGION, ACCOUNT), **where)
        self.socket = str(directory / "fleet.sock")
        self.fleet = Fleet(
            FleetContext(
                store=self.store,
                clock=self.clock,
                ids=self.ids,
                hosts=HostOps(self.store, self.clock, self.ids, clusters=("*",), default_zone="a"),
                logs=LogOps(LogStore(directory / "logs"), self.clock),
                findings=FindingOps(self.store, Publisher(shapes, self.clock, self.ids), self.clock),
                launch_secrets=LaunchSecrets(
                    secrets,
                    ParameterOps(self.store, vault, self.clock, **where),
                    ObjectOps(self.store, vault, self.clock, self.ids),
                    ExecutionRoles(sts, authorizer, self.clock, **where),
                    lambda group: False,
                    **where,
                ),
                task_roles=TaskRoles(self.store, self.clock, sts, **where, path_key="00" * 32),
                addresses=TaskAddresses(path_key="00" * 32),
                region=REGION,
                account_id=ACCOUNT,
                platform_id="0" * 8,
                vpc_cidr="172.31.0.0/16",
            )
        )

    async def open(self) -> None:
        await self.store.open()
        roles = RoleOps(self.store, self.clock, self.ids, account_id=ACCOUNT)
        await roles.create(CAUSE, NewRole(name="app", trust_policy=TRUST))

        def work(tx: Any) -> None:
            for family, more in (("with", {"taskRoleArn": ROLE}), ("without", {})):
                definition = TaskDefinition(
                    family=family,
                    revision=1,
                    registered_at=0,
                    registered_by="",
                    document={"containerDefinitions": [], **more},
                )
                tx.put(tables.TASK_DEFINITIONS, definition)
            for task_id, family, host in (("a", "with", "h1"), ("b", "without", "h1"), ("c", "with", "h2")):
                task = Task(
                    task_id=task_id * 32,
                    cluster="default",
                    family=family,
                    revision=1,
                    launch_type="FARGATE",
                    cpu=256,
                    memory_mib=512,
                    host_id=host,
                    created_at=0,
                )
                tx.put(tables.TASKS, task)

        await self.store.write(CAUSE, work)
        await self.fleet.listen(self.socket)


async def ask(control: Control, host: str, task_id: str) -> wire.CredentialsGiven:
    """As a host's agent does."""
    reader, writer = await asyncio.open_unix_connection(control.socket)
    fingerprint = Fingerprint(
        name=host,
        agent_version="1",
        architecture="x86_64",
        cpu_units=1024,
        memory_mib=1024,
        disk_gib=1,
        drivers=(),
    )
    hello = wire.Hello(
        protocol=wire.PROTOCOL_VERSION, host_id=host, fingerprint=fingerprint, task_ids=(), local_images=()
    )
    write_message(writer, hello)
    write_message(writer, wire.CredentialsWanted(request_id="r", task_id=task_id))
    try:
        async with asyncio.timeout(10):
            while True:
                message = await read_message(reader, wire.ToHost)
                if isinstance(message, wire.CredentialsGiven):
                    return message
    finally:
        writer.close()


async def test_credentials_of_a_task(tmp_path: Path) -> None:
    control = Control(tmp_path)
    await control.open()
    try:
        given = await ask(control, "h1", "a" * 32)
        assert (given.request_id, given.role_arn, given.error) == ("r", ROLE, "")
        assert given.expires_at > control.clock.now() + TASK_SESSION_S - 60
        opened = control.tokens.open(given.session_token)
        assert opened is not None and opened.secret == given.secret_access_key
        assert opened.caller.arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/app/{'a' * 32}"
        assert opened.caller.access_key_id == given.access_key_id
    finally:
        await control.fleet.close()


@pytest.mark.parametrize(
    ("host", "task_id", "words"),
    [
        ("h1", "b" * 32, "has no task role"),
        ("h1", "c" * 32, "is not on this host"),
        ("h1", "d" * 32, "is not on this host"),
    ],
)
async def test_no_credentials(tmp_path: Path, host: str, task_id: str, words: str) -> None:
    control = Control(tmp_path)
    await control.open()
    try:
        given = await ask(control, host, task_id)
        assert words in given.error
        assert (given.access_key_id, given.secret_access_key, given.session_token) == ("", "", "")
    finally:
        await control.fleet.close()


async def test_a_task_that_nothing_can_be_made_of_does_not_keep_its_host_away(tmp_path: Path) -> None:
    control = Control(tmp_path)
    await control.open()

    def work(tx: Any) -> None:
        sound = tx.get(tables.TASKS, "default", "a" * 32)
        container = Container(name="in no definition", container_id="1", image="x")
        tx.put(
            tables.TASKS,
            replace(sound, task_id="0" * 32, version=0, last_status="PENDING", containers=(container,)),
        )

    await control.store.write(CAUSE, work)
    try:
        seen = control.store.last_seq()
        given = await ask(control, "h1", "a" * 32)
        assert (given.role_arn, given.error) == (ROLE, "")
        async with asyncio.timeout(10):
            while True:
                with control.store.read() as reader:
                    task = reader.get(tables.TASKS, "default", "0" * 32)
                if task is not None and task.is_stopped:
                    break
                await control.store.wait_for_change(seen)
                seen = control.store.last_seq()
        assert task.stop_code == "TaskFailedToStart" and task.stopped_reason.startswith("InternalError")
    finally:
        await control.fleet.close()
