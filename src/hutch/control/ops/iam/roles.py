"""Use cases of roles."""

import json
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.control.ops.iam import common
from hutch.control.ops.iam.common import MAX_TRUST_CHARACTERS, PolicyHolder, get_role, invalid_input
from hutch.model.iam import ManagedPolicy, Role
from hutch.model.record import Cause
from hutch.rules.iam.document import TRUST, parse_policy
from hutch.store import tables
from hutch.store.contract import Store, Tx

SERVICE_PATH = "/aws-service-role/"


class _Linked(msgspec.Struct, frozen=True):
    """A service-linked role: the end of its name, and AWS's policy for it."""

    suffix: str
    policy: str = ""


SERVICE_LINKED = {
    "ecs.amazonaws.com": _Linked("ECS", "AmazonECSServiceRolePolicy"),
    "ecs-compute.amazonaws.com": _Linked("ECSCompute", "AmazonECSComputeServiceRolePolicy"),
    "elasticloadbalancing.amazonaws.com": _Linked(
        "ElasticLoadBalancing", "AWSElasticLoadBalancingServiceRolePolicy"
    ),
    "ecs.application-autoscaling.amazonaws.com": _Linked(
        "ApplicationAutoScaling_ECSService", "AWSApplicationAutoscalingECSServicePolicy"
    ),
    "apprunner.amazonaws.com": _Linked("AppRunner", "AppRunnerServiceRolePolicy"),
    "networking.apprunner.amazonaws.com": _Linked(
        "AppRunnerNetworking", "AppRunnerNetworkingServiceRolePolicy"
    ),
    "eks.amazonaws.com": _Linked("AmazonEKS", "AmazonEKSServiceRolePolicy"),
    "eks-fargate.amazonaws.com": _Linked("AmazonEKSForFargate", "AmazonEKSForFargateServiceRolePolicy"),
}


class NewRole(msgspec.Struct, frozen=True, kw_only=True):
    """What CreateRole is given."""

    name: str
    path: str = "/"
    trust_policy: str
    description: str = ""
    max_session_s: int = 3600
    boundary_arn: str = ""
    tags: dict[str, str] = {}


class RoleOps:
    """Role use cases. Refusals carry AWS's codes and words."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource, *, account_id: str) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._account_id = account_id
        self._policies = PolicyHolder("role", tables.IAM_ROLES, account_id)

    async def create(self, cause: Cause, given: NewRole) -> Role:
        """A role that nobody has by this name yet."""
        common.check_name_and_path(given.name, given.path)
        _check_trust(given.trust_policy, given.name)
        if given.path.startswith(SERVICE_PATH):
            raise invalid_input(f"The path {SERVICE_PATH} is for service-linked roles.")

        def work(tx: Tx) -> Role:
            if tx.get(tables.IAM_ROLES, given.name.lower()):
                raise common.taken(f"Role with name {given.name} already exists.")
            return tx.put(
                tables.IAM_ROLES,
                Role(
                    name=given.name,
                    entity_id=self._ids.access_key_id("AROA"),
                    path=given.path,
                    created_at=self._clock.now(),
                    trust_policy=given.trust_policy,
                    description=given.description,
                    max_session_s=given.max_session_s,
                    boundary_arn=common.check_boundary(tx, self._account_id, given.boundary_arn),
                    tags=common.tagged({}, given.tags),
                ),
            )

        return await self._store.write(cause, work)

    async def create_service_linked(self, cause: Cause, service: str, description: str, suffix: str) -> Role:
        """The role of a service, which only the service could change."""
        linked = SERVICE_LINKED.get(service)
        if linked is None:
            raise invalid_input(f"Service-Linked Roles are not supported for {service}.")
        if suffix:
            raise invalid_input(f"Custom suffix is not allowed for {service}")
        name = f"AWSServiceRoleFor{linked.suffix}"
        trust = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}],
        }
        attached = f"arn:aws:iam::aws:policy{SERVICE_PATH}{linked.policy}"

        def work(tx: Tx) -> Role:
            if tx.get(tables.IAM_ROLES, name.lower()):
                raise invalid_input(
                    f"Service role name {name} has been taken in this account, please try a different suffix."
                )
            return tx.put(
                tables.IAM_ROLES,
                Role(
                    name=name,
                    entity_id=self._ids.access_key_id("AROA"),
                    path=f"{SERVICE_PATH}{service}/",
                    created_at=self._clock.now(),
                    trust_policy=json.dumps(trust),
                    description=description,
                    attached=(attached,),
                    service=service,
                ),
            )

        return await self._store.write(cause, work)

    def get(self, name: str) -> Role:
        with self._store.read() as reader:
            return get_role(reader, name)

    def page(self, path_prefix: str, after: str | None, count: int) -> tuple[list[Role], bool]:
        with self._store.read() as reader:
            return common.page_of(reader, tables.IAM_ROLES, after, count, common.under(path_prefix))

    async def update(
        self, cause: Cause, name: str, description: str | None, max_session_s: int | None
    ) -> Role:
        """None leaves as it is."""

        def change(role: Role) -> Role:
            return replace(
                role,
                description=role.description if description is None else description,
                max_session_s=role.max_session_s if max_session_s is None else max_session_s,
            )

        def work(tx: Tx) -> Role:
            return _put(tx, name, change)

        return await self._store.write(cause, work)

    async def update_trust(self, cause: Cause, name: str, document: str) -> None:
        def work(tx: Tx) -> None:
            _check_trust(document, name)
            _put(tx, name, lambda role: replace(role, trust_policy=document))

        await self._store.write(cause, work)

    async def delete(self, cause: Cause, name: str) -> None:
        """Refused while it has policies or is in an instance profile. Its sessions may nothing from now on."""

        def work(tx: Tx) -> None:
            role = _changeable(tx, name)
            self._policies.check_free(role)
            if any(role.name in p.roles for p in tx.scan(tables.INSTANCE_PROFILES)):
                raise common.delete_conflict(
                    "Cannot delete entity, must remove roles from instance profile first."
                )
            tx.delete(tables.IAM_ROLES, name.lower())

        await self._store.write(cause, work)

    async def put_policy(self, cause: Cause, name: str, policy: str, document: str) -> None:
        await self._store.write(
            cause, lambda tx: self._policies.put_inline(tx, _changeable(tx, name), policy, document)
        )

    def policy(self, name: str, policy: str) -> str:
        return self._policies.inline(self.get(name), policy)

    async def delete_policy(self, cause: Cause, name: str, policy: str) -> None:
        await self._store.write(
            cause, lambda tx: self._policies.delete_inline(tx, _changeable(tx, name), policy)
        )

    async def attach(self, cause: Cause, name: str, arn: str) -> None:
        await self._store.write(cause, lambda tx: self._policies.attach(tx, _changeable(tx, name), arn))

    async def detach(self, cause: Cause, name: str, arn: str) -> None:
        await self._store.write(cause, lambda tx: self._policies.detach(tx, _changeable(tx, name), arn))

    def attached(self, name: str, path_prefix: str) -> list[ManagedPolicy]:
        with self._store.read() as reader:
            return self._policies.attached(reader, get_role(reader, name), path_prefix)

    async def tag(self, cause: Cause, name: str, tags: dict[str, str]) -> None:
        def work(tx: Tx) -> None:
            _put(tx, name, lambda role: replace(role, tags=common.tagged(role.tags, tags)))

        await self._store.write(cause, work)

    async def untag(self, cause: Cause, name: str, keys: Sequence[str]) -> None:
        def work(tx: Tx) -> None:
            _put(tx, name, lambda role: replace(role, tags=common.untagged(role.tags, list(keys))))

        await self._store.write(cause, work)


def _check_trust(document: str, name: str) -> None:
    parse_policy(document, TRUST)
    if common.size_of(document) > MAX_TRUST_CHARACTERS:
        raise common.limit(f"Cannot exceed quota for ACLSizePerRole: {MAX_TRUST_CHARACTERS}")


def _changeable(tx: Tx, name: str) -> Role:
    role = get_role(tx, name)
    if role.service:
        raise common.unmodifiable(role.name)
    return role


def _put(tx: Tx, name: str, change: Callable[[Role], Role]) -> Role:
    role = _changeable(tx, name)
    after = change(role)
    return role if after == role else tx.put(tables.IAM_ROLES, after)
