"""What policies would say, without asking anything: SimulatePrincipalPolicy."""

from collections.abc import Mapping, Sequence

import msgspec

from hutch.control.ops.iam.common import get_role, get_user, invalid_input, no_such_entity
from hutch.control.ops.iam.managed import find_managed_policy
from hutch.model.iam import Entity
from hutch.rules.iam.arns import entity_arn
from hutch.rules.iam.document import Policy, Statement, parse_policy
from hutch.rules.iam.evaluation import Decision, PolicySet, applies, decide
from hutch.store import tables
from hutch.store.contract import Reader, Store

MAX_COMBINATIONS = 1000


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where a policy comes from. `kind`: user, role, aws-managed, user-managed or none (given with the request)."""

    name: str
    kind: str
    policy: Policy


class Simulated(msgspec.Struct, frozen=True, kw_only=True):
    """The decision on one action and resource, who made it, and which condition keys it would have wanted."""

    action: str
    resource: str
    decision: Decision
    matched: tuple[Source, ...]
    missing_keys: tuple[str, ...]
    within_boundary: bool | None
    """None: there is no boundary."""


class Simulator:
    """Decides for a user or role as the gateway would."""

    def __init__(self, store: Store, account_id: str) -> None:
        self._store = store
        self._account_id = account_id

    def simulate(
        self,
        source_arn: str,
        more: Sequence[str],
        actions: Sequence[str],
        resources: Sequence[str],
        context: Mapping[str, Sequence[str]],
    ) -> list[Simulated]:
        """Each action on each resource. `more`: documents to add; `context`: condition keys in lower case."""
        if len(actions) * len(resources) > MAX_COMBINATIONS:
            raise invalid_input(
                f"At most {MAX_COMBINATIONS} combinations of actions and resources are simulated at once."
            )
        with self._store.read() as reader:
            entity, kind = self._entity(reader, source_arn)
            sources = self._sources(reader, entity, kind)
            boundary = find_managed_policy(reader, self._account_id, entity.boundary_arn)
        sources += [
            Source(name=f"PolicyInputList.{i}", kind="none", policy=parse_policy(d))
            for i, d in enumerate(more, 1)
        ]
        limit = (parse_policy(boundary.default_document),) if boundary else None
        policies = PolicySet(identity=tuple(s.policy for s in sources), boundary=limit)
        return [
            self._one(sources, policies, action, resource, context)
            for action in actions
            for resource in resources
        ]

    def _one(
        self,
        sources: Sequence[Source],
        policies: PolicySet,
        action: str,
        resource: str,
        context: Mapping[str, Sequence[str]],
    ) -> Simulated:
        matched = [
            s for s in sources if any(applies(t, action, resource, context) for t in s.policy.statements)
        ]
        wanted = {
            c.key
            for s in sources
            for t in s.policy.statements
            if _is_about(t, action, resource, context)
            for c in t.conditions
        }
        within = None
        if policies.boundary is not None:
            within = decide(PolicySet(identity=policies.boundary), action, resource, context).allowed
        return Simulated(
            action=action,
            resource=resource,
            decision=decide(policies, action, resource, context),
            matched=tuple(matched),
            missing_keys=tuple(sorted(wanted - set(context))),
            within_boundary=within,
        )

    def _entity(self, reader: Reader, arn: str) -> tuple[Entity, str]:
        kind, _, rest = arn.rpartition(":")[2].partition("/")
        name = rest.rpartition("/")[2]
        if kind not in ("user", "role"):
            raise invalid_input(
                f"Invalid Entity Arn: {arn[:200]} does not clearly define entity type and name."
            )
        entity: Entity = get_user(reader, name) if kind == "user" else get_role(reader, name)
        if entity_arn(self._account_id, kind, entity.path, entity.name) != arn:
            raise no_such_entity(f"The {kind} with name {name} cannot be found.")
        return entity, kind

    def _sources(self, reader: Reader, entity: Entity, kind: str) -> list[Source]:
        found = [Source(name=n, kind=kind, policy=parse_policy(d)) for n, d in entity.inline.items()]
        for arn in entity.attached:
            policy = find_managed_policy(reader, self._account_id, arn)
            if policy:
                managed = "aws-managed" if policy.is_aws else "user-managed"
                parsed = parse_policy(policy.default_document)
                found.append(Source(name=policy.name, kind=managed, policy=parsed))
        return found


def _is_about(statement: Statement, action: str, resource: str, context: Mapping[str, Sequence[str]]) -> bool:
    """Whether a statement applies, its conditions left aside."""
    return applies(msgspec.structs.replace(statement, conditions=()), action, resource, context)


def account_summary(store: Store) -> dict[str, int]:
    """GetAccountSummary's counts and quotas."""
    with store.read() as reader:
        policies = reader.scan(tables.IAM_POLICIES)
        root_has_key = any(k.principal_arn.endswith(":root") for k in reader.scan(tables.ACCESS_KEYS))
        return {
            "Users": reader.count(tables.IAM_USERS),
            "UsersQuota": 5000,
            "Roles": reader.count(tables.IAM_ROLES),
            "RolesQuota": 1000,
            "Groups": 0,
            "InstanceProfiles": reader.count(tables.INSTANCE_PROFILES),
            "Policies": len(policies),
            "PolicyVersionsInUse": sum(len(p.versions) for p in policies),
            "AccessKeysPerUserQuota": 2,
            "VersionsPerPolicyQuota": 5,
            "PolicySizeQuota": 6144,
            "UserPolicySizeQuota": 2048,
            "AssumeRolePolicySizeQuota": 4096,
            "AttachedPoliciesPerUserQuota": 20,
            "AttachedPoliciesPerRoleQuota": 20,
            "AccountAccessKeysPresent": int(root_has_key),
            "AccountMFAEnabled": 0,
            "MFADevices": 0,
            "MFADevicesInUse": 0,
        }
