"""A control plane's store with what tasks need to be launched: roles, secrets, parameters, and who gives them out."""

import asyncio
import json
from typing import Any

from hutch.base.clock import SystemClock
from hutch.base.ids import RandomIds
from hutch.control.authorizer import Authorizer
from hutch.control.execution_roles import ExecutionRoles
from hutch.control.launch_secrets import LaunchSecrets
from hutch.control.ops.iam.roles import NewRole, RoleOps
from hutch.control.ops.objects import NewObject, ObjectOps
from hutch.control.ops.parameters import NewParameter, ParameterOps
from hutch.control.ops.secrets import NewValue, SecretOps
from hutch.control.ops.sts import StsOps
from hutch.control.sessions import SessionTokens
from hutch.control.vault import Vault
from hutch.model.record import Cause
from hutch.store.memory import MemoryStore

ACCOUNT, REGION = "000000000000", "us-east-1"
CAUSE = Cause(id="1", actor="test", action="test")
TASKS = "ecs-tasks.amazonaws.com"


def trust(service: str) -> str:
    """A trust policy for a service."""
    statement = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    return json.dumps({"Version": "2012-10-17", "Statement": statement})


def statement(effect: str, action: str, resource: str = "*") -> str:
    """A policy of one statement."""
    body = {"Effect": effect, "Action": action, "Resource": resource}
    return json.dumps({"Version": "2012-10-17", "Statement": body})


class Launching:
    """The use cases on a store in memory."""

    def __init__(self) -> None:
        self.store, self.clock, self.ids = MemoryStore(), SystemClock(), RandomIds()
        asyncio.run(self.store.open())
        where = {"region": REGION, "account_id": ACCOUNT}
        vault = Vault({1: bytes(32)}, self.ids)
        authorizer = Authorizer(self.store, self.clock, account_id=ACCOUNT)
        self.sts = StsOps(
            self.store, self.clock, SessionTokens(vault, self.ids), authorizer, account_id=ACCOUNT
        )
        self.secrets = SecretOps(self.store, vault, self.clock, self.ids, **where)
        self.parameters = ParameterOps(self.store, vault, self.clock, **where)
        self.objects = ObjectOps(self.store, vault, self.clock, self.ids)
        self.roles = RoleOps(self.store, self.clock, self.ids, account_id=ACCOUNT)
        self.execution_roles = ExecutionRoles(self.sts, authorizer, self.clock, **where)
        self.groups: set[str] = set()
        self.launch_secrets = LaunchSecrets(
            self.secrets,
            self.parameters,
            self.objects,
            self.execution_roles,
            self.groups.__contains__,
            **where,
        )

    def role(self, name: str, *policies: str, service: str = TASKS, attached: tuple[str, ...] = ()) -> str:
        """A new role; its ARN."""

        async def make() -> None:
            await self.roles.create(CAUSE, NewRole(name=name, trust_policy=trust(service)))
            for number, document in enumerate(policies):
                await self.roles.put_policy(CAUSE, name, f"p{number}", document)
            for arn in attached:
                await self.roles.attach(CAUSE, name, arn)

        asyncio.run(make())
        return f"arn:aws:iam::{ACCOUNT}:role/{name}"

    def secret(self, name: str, value: str, **tags: str) -> str:
        """A new secret; its ARN."""
        made, _ = asyncio.run(
            self.secrets.create(CAUSE, name, "", tags, NewValue(value=value.encode(), is_binary=False))
        )
        return self.secrets.arn(made)

    def parameter(self, name: str, value: str) -> str:
        """A new parameter; its ARN."""
        asyncio.run(self.parameters.put(CAUSE, NewParameter(name=name, value=value, type="String")))
        return self.parameters.arn(name)

    def file(self, bucket: str, key: str, text: str) -> str:
        """A new bucket with an object; the object's ARN."""

        async def make() -> None:
            await self.objects.create_bucket(CAUSE, bucket)
            await self.objects.put(CAUSE, NewObject(bucket=bucket, key=key, content=text.encode()))

        asyncio.run(make())
        return f"arn:aws:s3:::{bucket}/{key}"

    def run(self, work: Any) -> Any:
        """Carry out work on the store."""
        return asyncio.run(work)
