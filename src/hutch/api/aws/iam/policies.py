"""Managed policy operations: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.iam.shapes import PAGE, Pages, Shape, Shapes, tags_of
from hutch.api.gateway.operation import Operation, Request, operation
from hutch.control.ops.iam.policies import PolicyOps, PolicyUse


class PolicyHandlers:
    """The managed policy operations of IAM."""

    def __init__(self, ops: PolicyOps, shapes: Shapes, pages: Pages) -> None:
        self._ops = ops
        self._shapes = shapes
        self._pages = pages

    def operations(self) -> tuple[Operation, ...]:
        arn = "PolicyArn"
        return (
            operation(
                "CreatePolicy", self.create, "PolicyName", "Path", "PolicyDocument", "Description", "Tags"
            ),
            operation("GetPolicy", self.get, arn),
            operation(
                "ListPolicies", self.list, "Scope", "OnlyAttached", "PathPrefix", "PolicyUsageFilter", *PAGE
            ),
            operation("DeletePolicy", self.delete, arn),
            operation("CreatePolicyVersion", self.create_version, arn, "PolicyDocument", "SetAsDefault"),
            operation("GetPolicyVersion", self.get_version, arn, "VersionId"),
            operation("ListPolicyVersions", self.list_versions, arn, *PAGE),
            operation("SetDefaultPolicyVersion", self.set_default, arn, "VersionId"),
            operation("DeletePolicyVersion", self.delete_version, arn, "VersionId"),
            operation(
                "ListEntitiesForPolicy",
                self.list_entities,
                *(arn, "EntityFilter", "PathPrefix", "PolicyUsageFilter", *PAGE),
            ),
        )

    async def create(self, request: Request) -> Shape:
        given = request.input
        policy = await self._ops.create(
            request.cause,
            given["PolicyName"],
            given.get("Path", "/"),
            given["PolicyDocument"],
            given.get("Description", ""),
            tags_of(given),
        )
        return {"Policy": self._shapes.policy(policy, self._ops.arn(policy), PolicyUse())}

    async def get(self, request: Request) -> Shape:
        policy, use = self._ops.get(request.input["PolicyArn"])
        return {"Policy": self._shapes.policy(policy, request.input["PolicyArn"], use)}

    async def list(self, request: Request) -> Shape:
        given = request.input
        found = self._ops.all(given.get("Scope", "All"), given.get("PathPrefix", "/"))
        usage = given.get("PolicyUsageFilter")
        if given.get("OnlyAttached"):
            found = [(p, u) for p, u in found if u.attached or u.boundary]
        if usage:
            found = [
                (p, u) for p, u in found if (u.boundary if usage == "PermissionsBoundary" else u.attached)
            ]
        shown = [
            # Ours first; a name of ours and one of AWS's may be the same.
            (f"{int(p.is_aws)}{p.name}", self._shapes.policy(p, self._ops.arn(p), u, brief=True))
            for p, u in found
        ]
        return self._pages.cut(request, "Policies", sorted(shown, key=lambda item: item[0]))

    async def delete(self, request: Request) -> Shape:
        await self._ops.delete(request.cause, request.input["PolicyArn"])
        return {}

    async def create_version(self, request: Request) -> Shape:
        given = request.input
        policy, version = await self._ops.create_version(
            request.cause,
            given["PolicyArn"],
            given["PolicyDocument"],
            as_default=given.get("SetAsDefault", False),
        )
        return {"PolicyVersion": self._shapes.version(policy, version, with_document=False)}

    async def get_version(self, request: Request) -> Shape:
        policy, version = self._ops.version(request.input["PolicyArn"], request.input["VersionId"])
        return {"PolicyVersion": self._shapes.version(policy, version, with_document=True)}

    async def list_versions(self, request: Request) -> Shape:
        """The newest first."""
        policy, _ = self._ops.get(request.input["PolicyArn"])
        shown = [
            (f"{1_000_000 - int(v.version_id[1:]):07d}", self._shapes.version(policy, v, with_document=False))
            for v in reversed(policy.versions)
        ]
        return self._pages.cut(request, "Versions", shown)

    async def set_default(self, request: Request) -> Shape:
        given = request.input
        await self._ops.set_default(request.cause, given["PolicyArn"], given["VersionId"])
        return {}

    async def delete_version(self, request: Request) -> Shape:
        given = request.input
        await self._ops.delete_version(request.cause, given["PolicyArn"], given["VersionId"])
        return {}

    async def list_entities(self, request: Request) -> Shape:
        given = request.input
        users, roles = self._ops.entities(given["PolicyArn"])
        usage, kind = given.get("PolicyUsageFilter"), given.get("EntityFilter")
        prefix = given.get("PathPrefix", "/")

        def wanted(entity: Any, how: str, own_kind: str) -> bool:
            return usage in (None, how) and kind in (None, own_kind) and bool(entity.path.startswith(prefix))

        found = {("PolicyRoles", r.name): r.entity_id for r, how in roles if wanted(r, how, "Role")}
        found |= {("PolicyUsers", u.name): u.entity_id for u, how in users if wanted(u, how, "User")}
        items = [(f"{member}/{name}", (member, name, i)) for (member, name), i in sorted(found.items())]
        answer = self._pages.cut(request, "all", items)
        page = answer.pop("all")
        answer |= {"PolicyGroups": [], "PolicyUsers": [], "PolicyRoles": []}
        for member, name, entity_id in page:
            noun = member.removeprefix("Policy").removesuffix("s")
            answer[member].append({f"{noun}Name": name, f"{noun}Id": entity_id})
        return answer
