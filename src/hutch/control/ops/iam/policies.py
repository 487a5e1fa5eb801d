"""Use cases of managed policies and instance profiles."""

from collections import Counter
from collections.abc import Iterator

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.base.ids import IdSource
from hutch.control.ops.iam import common
from hutch.control.ops.iam.common import MAX_POLICY_CHARACTERS, get_policy, no_such_entity
from hutch.control.ops.iam.managed import aws_policies, policy_arn
from hutch.model.iam import Entity, ManagedPolicy, PolicyVersion, Role, User
from hutch.model.record import Cause
from hutch.rules.iam.document import parse_policy
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx

MAX_VERSIONS = 5


class PolicyUse(msgspec.Struct, frozen=True, kw_only=True):
    """How many users and roles a policy is attached to, and whose boundary it is."""

    attached: int = 0
    boundary: int = 0


class PolicyOps:
    """Managed policy use cases. Refusals carry AWS's codes and words."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource, *, account_id: str) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._account_id = account_id

    def arn(self, policy: ManagedPolicy) -> str:
        return policy_arn(self._account_id, policy)

    async def create(
        self, cause: Cause, name: str, path: str, document: str, description: str, tags: dict[str, str]
    ) -> ManagedPolicy:
        """A policy with its first version."""
        common.check_name_and_path(name, path)
        _check_document(document)

        def work(tx: Tx) -> ManagedPolicy:
            if tx.get(tables.IAM_POLICIES, name.lower()):
                raise common.taken(f"A policy called {name} already exists. Duplicate names are not allowed.")
            now = self._clock.now()
            return tx.put(
                tables.IAM_POLICIES,
                ManagedPolicy(
                    name=name,
                    policy_id=self._ids.access_key_id("ANPA"),
                    path=path,
                    description=description,
                    versions=(PolicyVersion(version_id="v1", document=document, created_at=now),),
                    default_version_id="v1",
                    created_at=now,
                    updated_at=now,
                    tags=common.tagged({}, tags),
                ),
            )

        return await self._store.write(cause, work)

    def get(self, arn: str) -> tuple[ManagedPolicy, PolicyUse]:
        with self._store.read() as reader:
            policy = get_policy(reader, self._account_id, arn)
            return policy, policy_use(reader).get(arn, PolicyUse())

    def all(self, scope: str, path_prefix: str) -> list[tuple[ManagedPolicy, PolicyUse]]:
        """All under a path, ours first, each in order of names. `scope`: All, AWS or Local."""
        with self._store.read() as reader:
            ours = reader.scan(tables.IAM_POLICIES) if scope in ("All", "Local") else []
            theirs = sorted(aws_policies().items()) if scope in ("All", "AWS") else []
            use = policy_use(reader)
        found = [p for p in (*ours, *(p for _, p in theirs)) if p.path.startswith(path_prefix)]
        return [(p, use.get(self.arn(p), PolicyUse())) for p in found]

    async def delete(self, cause: Cause, arn: str) -> None:
        """Refused while it is attached, or has more than its default version."""

        def work(tx: Tx) -> None:
            policy = self._ours(tx, arn)
            use = policy_use(tx).get(arn, PolicyUse())
            if use.attached or use.boundary:
                raise common.delete_conflict("Cannot delete a policy attached to entities.")
            if len(policy.versions) > 1:
                raise common.delete_conflict(
                    "This policy has more than one version. Before you delete a policy, you must delete the "
                    "policy's versions. The default version is deleted with the policy."
                )
            tx.delete(tables.IAM_POLICIES, policy.name.lower())

        await self._store.write(cause, work)

    async def create_version(
        self, cause: Cause, arn: str, document: str, *, as_default: bool
    ) -> tuple[ManagedPolicy, PolicyVersion]:
        _check_document(document)

        def work(tx: Tx) -> tuple[ManagedPolicy, PolicyVersion]:
            policy = self._ours(tx, arn)
            if len(policy.versions) >= MAX_VERSIONS:
                raise common.limit(
                    f"A managed policy can have up to {MAX_VERSIONS} versions. Before you create a new version, "
                    f"you must delete an existing version."
                )
            now, number = self._clock.now(), policy.latest_version + 1
            version = PolicyVersion(version_id=f"v{number}", document=document, created_at=now)
            changed = replace(
                policy,
                versions=(*policy.versions, version),
                latest_version=number,
                default_version_id=version.version_id if as_default else policy.default_version_id,
                updated_at=now,
            )
            return tx.put(tables.IAM_POLICIES, changed), version

        return await self._store.write(cause, work)

    def version(self, arn: str, version_id: str) -> tuple[ManagedPolicy, PolicyVersion]:
        policy, _ = self.get(arn)
        return policy, _version(policy, version_id)

    async def set_default(self, cause: Cause, arn: str, version_id: str) -> None:
        def work(tx: Tx) -> None:
            policy = self._ours(tx, arn)
            _version(policy, version_id)
            tx.put(
                tables.IAM_POLICIES,
                replace(policy, default_version_id=version_id, updated_at=self._clock.now()),
            )

        await self._store.write(cause, work)

    async def delete_version(self, cause: Cause, arn: str, version_id: str) -> None:
        def work(tx: Tx) -> None:
            policy = self._ours(tx, arn)
            _version(policy, version_id)
            if version_id == policy.default_version_id:
                raise common.delete_conflict("Cannot delete the default version of a policy.")
            kept = tuple(v for v in policy.versions if v.version_id != version_id)
            tx.put(tables.IAM_POLICIES, replace(policy, versions=kept, updated_at=self._clock.now()))

        await self._store.write(cause, work)

    def entities(self, arn: str) -> tuple[list[tuple[User, str]], list[tuple[Role, str]]]:
        """Users and roles that use a policy, and how: PermissionsPolicy or PermissionsBoundary."""
        with self._store.read() as reader:
            get_policy(reader, self._account_id, arn)
            users = [(u, how) for u in reader.scan(tables.IAM_USERS) for how in _uses(u, arn)]
            roles = [(r, how) for r in reader.scan(tables.IAM_ROLES) for how in _uses(r, arn)]
        return users, roles

    def _ours(self, reader: Reader, arn: str) -> ManagedPolicy:
        policy = get_policy(reader, self._account_id, arn)
        if policy.is_aws:
            raise Invalid(f"Policy {arn} is AWS's own and can't be changed.", code="InvalidInput")
        return policy


def policy_use(reader: Reader) -> dict[str, PolicyUse]:
    """How often each policy is used, by ARN."""
    attached: Counter[str] = Counter()
    boundary: Counter[str] = Counter()
    for entity in _entities(reader):
        attached.update(entity.attached)
        if entity.boundary_arn:
            boundary[entity.boundary_arn] += 1
    return {arn: PolicyUse(attached=attached[arn], boundary=boundary[arn]) for arn in {*attached, *boundary}}


def _entities(reader: Reader) -> Iterator[Entity]:
    yield from reader.scan(tables.IAM_USERS)
    yield from reader.scan(tables.IAM_ROLES)


def _uses(entity: Entity, arn: str) -> Iterator[str]:
    if arn in entity.attached:
        yield "PermissionsPolicy"
    if arn == entity.boundary_arn:
        yield "PermissionsBoundary"


def _version(policy: ManagedPolicy, version_id: str) -> PolicyVersion:
    for version in policy.versions:
        if version.version_id == version_id:
            return version
    raise no_such_entity(f"Policy version {version_id} does not exist or is not attachable.")


def _check_document(document: str) -> None:
    parse_policy(document)
    if common.size_of(document) > MAX_POLICY_CHARACTERS:
        raise common.limit(f"Cannot exceed quota for PolicySize: {MAX_POLICY_CHARACTERS}")
