"""Role and instance profile operations: shape in, one use case, shape out."""

from hutch.api.aws.iam.shapes import PAGE, Pages, Shape, Shapes, encoded, tag_list, tags_of
from hutch.api.gateway.operation import Operation, Request, operation
from hutch.control.ops.iam.managed import policy_arn
from hutch.control.ops.iam.profiles import ProfileOps
from hutch.control.ops.iam.roles import NewRole, RoleOps


class RoleHandlers:
    """The role operations of IAM."""

    def __init__(self, ops: RoleOps, shapes: Shapes, pages: Pages, account_id: str) -> None:
        self._ops = ops
        self._shapes = shapes
        self._pages = pages
        self._account_id = account_id

    def operations(self) -> tuple[Operation, ...]:
        name, policy = "RoleName", ("RoleName", "PolicyName")
        attached = ("RoleName", "PolicyArn")
        return (
            operation(
                "CreateRole",
                self.create,
                *("Path", name, "AssumeRolePolicyDocument", "Description", "MaxSessionDuration"),
                *("PermissionsBoundary", "Tags"),
            ),
            operation("GetRole", self.get, name),
            operation("ListRoles", self.list, "PathPrefix", *PAGE),
            operation("DeleteRole", self.delete, name),
            operation("UpdateRole", self.update, name, "Description", "MaxSessionDuration"),
            operation("UpdateRoleDescription", self.update_description, name, "Description"),
            operation("UpdateAssumeRolePolicy", self.update_trust, name, "PolicyDocument"),
            operation("PutRolePolicy", self.put_policy, *policy, "PolicyDocument"),
            operation("GetRolePolicy", self.get_policy, *policy),
            operation("ListRolePolicies", self.list_policies, name, *PAGE),
            operation("DeleteRolePolicy", self.delete_policy, *policy),
            operation("AttachRolePolicy", self.attach, *attached),
            operation("DetachRolePolicy", self.detach, *attached),
            operation("ListAttachedRolePolicies", self.list_attached, name, "PathPrefix", *PAGE),
            operation("TagRole", self.tag, name, "Tags"),
            operation("UntagRole", self.untag, name, "TagKeys"),
            operation("ListRoleTags", self.list_tags, name, *PAGE),
            operation(
                "CreateServiceLinkedRole",
                self.create_service_linked,
                *("AWSServiceName", "Description", "CustomSuffix"),
            ),
        )

    async def create(self, request: Request) -> Shape:
        given = request.input
        role = await self._ops.create(
            request.cause,
            NewRole(
                name=given["RoleName"],
                path=given.get("Path", "/"),
                trust_policy=given["AssumeRolePolicyDocument"],
                description=given.get("Description", ""),
                max_session_s=given.get("MaxSessionDuration", 3600),
                boundary_arn=given.get("PermissionsBoundary", ""),
                tags=tags_of(given),
            ),
        )
        return {"Role": self._shapes.role(role)}

    async def create_service_linked(self, request: Request) -> Shape:
        given = request.input
        role = await self._ops.create_service_linked(
            request.cause,
            given["AWSServiceName"],
            given.get("Description", ""),
            given.get("CustomSuffix", ""),
        )
        return {"Role": self._shapes.role(role)}

    async def get(self, request: Request) -> Shape:
        return {"Role": self._shapes.role(self._ops.get(request.input["RoleName"]))}

    async def list(self, request: Request) -> Shape:
        after, count = self._pages.start(request)
        page, more = self._ops.page(request.input.get("PathPrefix", "/"), after, count)
        shown = [self._shapes.role(r, brief=True) for r in page]
        last = page[-1].name.lower() if page else ""
        return self._pages.answer(request, "Roles", shown, last, more=more)

    async def delete(self, request: Request) -> Shape:
        await self._ops.delete(request.cause, request.input["RoleName"])
        return {}

    async def update(self, request: Request) -> Shape:
        given = request.input
        await self._ops.update(
            request.cause, given["RoleName"], given.get("Description"), given.get("MaxSessionDuration")
        )
        return {}

    async def update_description(self, request: Request) -> Shape:
        given = request.input
        role = await self._ops.update(request.cause, given["RoleName"], given["Description"], None)
        return {"Role": self._shapes.role(role)}

    async def update_trust(self, request: Request) -> Shape:
        given = request.input
        await self._ops.update_trust(request.cause, given["RoleName"], given["PolicyDocument"])
        return {}

    async def put_policy(self, request: Request) -> Shape:
        given = request.input
        await self._ops.put_policy(
            request.cause, given["RoleName"], given["PolicyName"], given["PolicyDocument"]
        )
        return {}

    async def get_policy(self, request: Request) -> Shape:
        role, policy = request.input["RoleName"], request.input["PolicyName"]
        document = self._ops.policy(role, policy)
        return {"RoleName": role, "PolicyName": policy, "PolicyDocument": encoded(document)}

    async def list_policies(self, request: Request) -> Shape:
        names = sorted(self._ops.get(request.input["RoleName"]).inline)
        return self._pages.cut(request, "PolicyNames", [(n, n) for n in names])

    async def delete_policy(self, request: Request) -> Shape:
        given = request.input
        await self._ops.delete_policy(request.cause, given["RoleName"], given["PolicyName"])
        return {}

    async def attach(self, request: Request) -> Shape:
        given = request.input
        await self._ops.attach(request.cause, given["RoleName"], given["PolicyArn"])
        return {}

    async def detach(self, request: Request) -> Shape:
        given = request.input
        await self._ops.detach(request.cause, given["RoleName"], given["PolicyArn"])
        return {}

    async def list_attached(self, request: Request) -> Shape:
        found = self._ops.attached(request.input["RoleName"], request.input.get("PathPrefix", "/"))
        shown = [
            (p.name, {"PolicyName": p.name, "PolicyArn": policy_arn(self._account_id, p)}) for p in found
        ]
        return self._pages.cut(request, "AttachedPolicies", shown)

    async def tag(self, request: Request) -> Shape:
        await self._ops.tag(request.cause, request.input["RoleName"], tags_of(request.input))
        return {}

    async def untag(self, request: Request) -> Shape:
        await self._ops.untag(request.cause, request.input["RoleName"], request.input["TagKeys"])
        return {}

    async def list_tags(self, request: Request) -> Shape:
        tags = tag_list(self._ops.get(request.input["RoleName"]).tags)
        tags.sort(key=lambda t: str(t["Key"]))
        return self._pages.cut(request, "Tags", [(t["Key"], t) for t in tags])


class ProfileHandlers:
    """The instance profile operations of IAM."""

    def __init__(self, ops: ProfileOps, shapes: Shapes, pages: Pages) -> None:
        self._ops = ops
        self._shapes = shapes
        self._pages = pages

    def operations(self) -> tuple[Operation, ...]:
        name = "InstanceProfileName"
        return (
            operation("CreateInstanceProfile", self.create, name, "Path", "Tags"),
            operation("GetInstanceProfile", self.get, name),
            operation("ListInstanceProfiles", self.list, "PathPrefix", *PAGE),
            operation("ListInstanceProfilesForRole", self.list, "RoleName", *PAGE),
            operation("AddRoleToInstanceProfile", self.add_role, name, "RoleName"),
            operation("RemoveRoleFromInstanceProfile", self.remove_role, name, "RoleName"),
            operation("DeleteInstanceProfile", self.delete, name),
        )

    async def create(self, request: Request) -> Shape:
        given = request.input
        profile = await self._ops.create(
            request.cause, given["InstanceProfileName"], given.get("Path", "/"), tags_of(given)
        )
        return {"InstanceProfile": self._shapes.profile(profile, ())}

    async def get(self, request: Request) -> Shape:
        profile, roles = self._ops.get(request.input["InstanceProfileName"])
        return {"InstanceProfile": self._shapes.profile(profile, roles)}

    async def list(self, request: Request) -> Shape:
        """Also of one role."""
        given = request.input
        after, count = self._pages.start(request)
        page, more = self._ops.page(given.get("PathPrefix", "/"), given.get("RoleName", ""), after, count)
        shown = [self._shapes.profile(p, roles) for p, roles in page]
        last = page[-1][0].name.lower() if page else ""
        return self._pages.answer(request, "InstanceProfiles", shown, last, more=more)

    async def add_role(self, request: Request) -> Shape:
        given = request.input
        await self._ops.add_role(request.cause, given["InstanceProfileName"], given["RoleName"])
        return {}

    async def remove_role(self, request: Request) -> Shape:
        given = request.input
        await self._ops.remove_role(request.cause, given["InstanceProfileName"], given["RoleName"])
        return {}

    async def delete(self, request: Request) -> Shape:
        await self._ops.delete(request.cause, request.input["InstanceProfileName"])
        return {}
