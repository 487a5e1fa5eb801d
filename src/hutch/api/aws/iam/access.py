"""What IAM's operations need permission for: the user, role, policy or profile that they name."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hutch.api.gateway.operation import Access, AccessRule, Request
from hutch.rules.iam.arns import entity_arn
from hutch.store import tables
from hutch.store.contract import Reader, Store, Table

_ROLE = [
    "GetRole",
    "DeleteRole",
    "UpdateRole",
    "UpdateRoleDescription",
    "UpdateAssumeRolePolicy",
    "PutRolePolicy",
    "GetRolePolicy",
    "ListRolePolicies",
    "DeleteRolePolicy",
    "AttachRolePolicy",
    "DetachRolePolicy",
    "ListAttachedRolePolicies",
    "TagRole",
    "UntagRole",
    "ListRoleTags",
    "CreateRole",
    "ListInstanceProfilesForRole",
]
_USER = [
    "CreateUser",
    "GetUser",
    "DeleteUser",
    "PutUserPolicy",
    "GetUserPolicy",
    "ListUserPolicies",
    "DeleteUserPolicy",
    "AttachUserPolicy",
    "DetachUserPolicy",
    "ListAttachedUserPolicies",
    "TagUser",
    "UntagUser",
    "ListUserTags",
    "CreateAccessKey",
    "ListAccessKeys",
    "UpdateAccessKey",
    "DeleteAccessKey",
]
_POLICY = [
    "GetPolicy",
    "DeletePolicy",
    "CreatePolicyVersion",
    "GetPolicyVersion",
    "ListPolicyVersions",
    "SetDefaultPolicyVersion",
    "DeletePolicyVersion",
    "ListEntitiesForPolicy",
]
_PROFILE = [
    "CreateInstanceProfile",
    "GetInstanceProfile",
    "AddRoleToInstanceProfile",
    "RemoveRoleFromInstanceProfile",
    "DeleteInstanceProfile",
]
_PASSES = "AddRoleToInstanceProfile"

ArnOf = Callable[[Request], str]


class IamAccess:
    """The rules of IAM's operations."""

    def __init__(self, store: Store, account_id: str) -> None:
        self._store = store
        self._account_id = account_id

    def rules(self) -> Mapping[str, AccessRule]:
        """Operation to rule."""
        role = self._named("role", "RoleName", tables.IAM_ROLES)
        user = self._named("user", "UserName", tables.IAM_USERS)
        profile = self._named("instance-profile", "InstanceProfileName", tables.INSTANCE_PROFILES)
        rules = {name: _on(role) for name in _ROLE}
        rules |= {name: _on(user) for name in _USER}
        rules |= {name: _on(lambda request: str(request.input["PolicyArn"])) for name in _POLICY}
        rules |= {name: _on(profile) for name in _PROFILE}
        rules["SimulatePrincipalPolicy"] = _on(lambda request: str(request.input["PolicySourceArn"]))
        rules["CreatePolicy"] = _on(self._new_policy)
        rules["CreateServiceLinkedRole"] = _on(self._service_linked)

        def adding(request: Request) -> Sequence[Access]:
            passing = Access(
                action="iam:PassRole",
                resources=(role(request),),
                context={"iam:passedtoservice": ("ec2.amazonaws.com",)},
            )
            return (*_on(profile)(request), passing)

        rules[_PASSES] = adding
        return rules

    def tags_of(self, arn: str) -> Mapping[str, str]:
        """The tags of what an ARN names."""
        kind, _, rest = arn.rpartition(":")[2].partition("/")
        tables_of: dict[str, Table[Any]] = {
            "role": tables.IAM_ROLES,
            "user": tables.IAM_USERS,
            "policy": tables.IAM_POLICIES,
            "instance-profile": tables.INSTANCE_PROFILES,
        }
        if kind not in tables_of:
            return {}
        with self._store.read() as reader:
            record = reader.get(tables_of[kind], rest.rpartition("/")[2].lower())
        return getattr(record, "tags", {})

    def _named(self, kind: str, member: str, table: Table[Any]) -> ArnOf:
        def arn(request: Request) -> str:
            name = request.input.get(member) or request.principal.caller.name
            with self._store.read() as reader:
                path = request.input.get("Path") or _path(reader, table, name)
            return entity_arn(self._account_id, kind, path, name)

        return arn

    def _new_policy(self, request: Request) -> str:
        path, name = request.input.get("Path", "/"), request.input["PolicyName"]
        return entity_arn(self._account_id, "policy", path, name)

    def _service_linked(self, request: Request) -> str:
        service = request.input["AWSServiceName"]
        return entity_arn(self._account_id, "role", f"/aws-service-role/{service}/", "*")


def _path(reader: Reader, table: Table[Any], name: str) -> str:
    record = reader.get(table, name.lower())
    return record.path if record is not None else "/"


def _on(arn_of: ArnOf) -> AccessRule:
    return lambda request: (Access(resources=(arn_of(request),)),)
