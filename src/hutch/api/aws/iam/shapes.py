"""IAM's shapes, and what its handlers share."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from hutch.api.gateway.operation import Request
from hutch.api.gateway.paging import Paging
from hutch.base.errors import Invalid
from hutch.control.ops.iam.policies import PolicyUse
from hutch.model.iam import Entity, InstanceProfile, ManagedPolicy, PolicyVersion, Role, User
from hutch.rules.iam.arns import entity_arn

Shape = dict[str, Any]
PAGE = ("Marker", "MaxItems")
DEFAULT_PAGE = 100


def tags_of(given: Shape) -> dict[str, str]:
    """`Tags`, checked. Raises `Invalid`."""
    listed = given.get("Tags", [])
    tags = {t["Key"]: t["Value"] for t in listed}
    if len({k.lower() for k in tags}) != len(listed):
        raise Invalid(
            "Duplicate tag keys found. Please note that Tag keys are case insensitive.", code="InvalidInput"
        )
    if any(k.lower().startswith("aws:") for k in tags):
        raise Invalid("Tag keys can't begin with aws:, which is reserved.", code="InvalidInput")
    return tags


def tag_list(tags: Mapping[str, str]) -> list[Shape]:
    """A mapping as IAM's list of tags."""
    return [{"Key": k, "Value": v} for k, v in tags.items()]


def encoded(document: str) -> str:
    """A policy document as answers carry it: percent-encoded (RFC 3986); clients decode it."""
    return quote(document, safe="")


class Pages:
    """Cuts listings into pages with markers."""

    def __init__(self, paging: Paging) -> None:
        self._paging = paging

    def start(self, request: Request) -> tuple[str | None, int]:
        """Behind which name the page begins, and how many items it has."""
        given = request.input
        marker = given.get("Marker")
        after = self._paging.decode_token(self._scope(request), marker)[0] if marker else None
        return after, given.get("MaxItems", DEFAULT_PAGE)

    def answer(self, request: Request, member: str, shown: list[Shape], last: str, *, more: bool) -> Shape:
        """An answer with a page in `member`; `last` is the name that the page ends with."""
        answer: Shape = {member: shown, "IsTruncated": more}
        if more:
            answer["Marker"] = self._paging.encode_token(self._scope(request), (last,))
        return answer

    def cut(self, request: Request, member: str, items: Sequence[tuple[str, Any]]) -> Shape:
        """An answer with a page of (key, shape) items, which come in order of their keys."""
        after, count = self.start(request)
        rest = [item for item in items if after is None or item[0] > after]
        page = rest[:count]
        last = page[-1][0] if page else ""
        return self.answer(request, member, [s for _, s in page], last, more=len(rest) > count)

    @staticmethod
    def _scope(request: Request) -> str:
        return f"iam:{request.operation}"


class Shapes:
    """Records as IAM shows them."""

    def __init__(self, account_id: str) -> None:
        self._account_id = account_id

    def role(self, role: Role, *, brief: bool = False) -> Shape:
        """`brief`: as listings show it, without tags and boundary."""
        shape: Shape = {
            "Path": role.path,
            "RoleName": role.name,
            "RoleId": role.entity_id,
            "Arn": entity_arn(self._account_id, "role", role.path, role.name),
            "CreateDate": role.created_at,
            "AssumeRolePolicyDocument": encoded(role.trust_policy),
            "MaxSessionDuration": role.max_session_s,
        }
        if role.description:
            shape["Description"] = role.description
        return shape if brief else {**shape, **_boundary(role), **_tags(role.tags)}

    def user(self, user: User, *, brief: bool = False) -> Shape:
        """`brief`: as listings show it, without tags and boundary."""
        shape: Shape = {
            "Path": user.path,
            "UserName": user.name,
            "UserId": user.entity_id,
            "Arn": entity_arn(self._account_id, "user", user.path, user.name),
            "CreateDate": user.created_at,
        }
        return shape if brief else {**shape, **_boundary(user), **_tags(user.tags)}

    def profile(self, profile: InstanceProfile, roles: Sequence[Role]) -> Shape:
        return {
            "Path": profile.path,
            "InstanceProfileName": profile.name,
            "InstanceProfileId": profile.profile_id,
            "Arn": entity_arn(self._account_id, "instance-profile", profile.path, profile.name),
            "CreateDate": profile.created_at,
            "Roles": [self.role(r, brief=True) for r in roles],
            **_tags(profile.tags),
        }

    def policy(self, policy: ManagedPolicy, arn: str, use: PolicyUse, *, brief: bool = False) -> Shape:
        """`brief`: as listings show it, without description and tags."""
        shape: Shape = {
            "PolicyName": policy.name,
            "PolicyId": policy.policy_id,
            "Arn": arn,
            "Path": policy.path,
            "DefaultVersionId": policy.default_version_id,
            "AttachmentCount": use.attached,
            "PermissionsBoundaryUsageCount": use.boundary,
            "IsAttachable": True,
            "CreateDate": policy.created_at,
            "UpdateDate": policy.updated_at,
        }
        if policy.description and not brief:
            shape["Description"] = policy.description
        return shape if brief else {**shape, **_tags(policy.tags)}

    def version(self, policy: ManagedPolicy, version: PolicyVersion, *, with_document: bool) -> Shape:
        shape: Shape = {
            "VersionId": version.version_id,
            "IsDefaultVersion": version.version_id == policy.default_version_id,
            "CreateDate": version.created_at,
        }
        if with_document:
            shape["Document"] = encoded(version.document)
        return shape


def _tags(tags: Mapping[str, str]) -> Shape:
    return {"Tags": tag_list(tags)} if tags else {}


def _boundary(entity: Entity) -> Shape:
    if not entity.boundary_arn:
        return {}
    return {
        "PermissionsBoundary": {
            "PermissionsBoundaryType": "PermissionsBoundaryPolicy",
            "PermissionsBoundaryArn": entity.boundary_arn,
        }
    }
