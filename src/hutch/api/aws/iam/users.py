"""User and access key operations: shape in, one use case, shape out."""

from hutch.api.aws.iam.shapes import PAGE, Pages, Shape, Shapes, encoded, tag_list, tags_of
from hutch.api.gateway.operation import Operation, Request, operation
from hutch.base.errors import Invalid
from hutch.control.ops.iam.managed import policy_arn
from hutch.control.ops.iam.users import ROOT_NAME, UserOps
from hutch.model.iam import ASSUMED_ROLE


class UserHandlers:
    """The user and access key operations of IAM."""

    def __init__(self, ops: UserOps, shapes: Shapes, pages: Pages, account_id: str) -> None:
        self._ops = ops
        self._shapes = shapes
        self._pages = pages
        self._account_id = account_id

    def operations(self) -> tuple[Operation, ...]:
        name, policy = "UserName", ("UserName", "PolicyName")
        attached = ("UserName", "PolicyArn")
        return (
            operation("CreateUser", self.create, "Path", name, "PermissionsBoundary", "Tags"),
            operation("GetUser", self.get, name),
            operation("ListUsers", self.list, "PathPrefix", *PAGE),
            operation("DeleteUser", self.delete, name),
            operation("PutUserPolicy", self.put_policy, *policy, "PolicyDocument"),
            operation("GetUserPolicy", self.get_policy, *policy),
            operation("ListUserPolicies", self.list_policies, name, *PAGE),
            operation("DeleteUserPolicy", self.delete_policy, *policy),
            operation("AttachUserPolicy", self.attach, *attached),
            operation("DetachUserPolicy", self.detach, *attached),
            operation("ListAttachedUserPolicies", self.list_attached, name, "PathPrefix", *PAGE),
            operation("TagUser", self.tag, name, "Tags"),
            operation("UntagUser", self.untag, name, "TagKeys"),
            operation("ListUserTags", self.list_tags, name, *PAGE),
            operation("CreateAccessKey", self.create_key, name),
            operation("ListAccessKeys", self.list_keys, name, *PAGE),
            operation("UpdateAccessKey", self.update_key, name, "AccessKeyId", "Status"),
            operation("DeleteAccessKey", self.delete_key, name, "AccessKeyId"),
        )

    async def create(self, request: Request) -> Shape:
        given = request.input
        user = await self._ops.create(
            request.cause,
            given["UserName"],
            given.get("Path", "/"),
            given.get("PermissionsBoundary", ""),
            tags_of(given),
        )
        return {"User": self._shapes.user(user)}

    async def get(self, request: Request) -> Shape:
        """Without a name: the caller."""
        name = request.input.get("UserName", "")
        caller = request.principal.caller
        if not name and caller.is_root:
            return {"User": self._root(request)}
        return {"User": self._shapes.user(self._ops.get(name or self._own_name(request)))}

    def _root(self, request: Request) -> Shape:
        _, keys = self._ops.keys(request.principal.caller, "")
        return {
            "Path": "/",
            "UserName": ROOT_NAME,
            "UserId": self._account_id,
            "Arn": request.principal.arn,
            "CreateDate": min((k.created_at for k in keys), default=0.0),
        }

    @staticmethod
    def _own_name(request: Request) -> str:
        caller = request.principal.caller
        if caller.kind == ASSUMED_ROLE:
            raise Invalid(
                "Must specify userName when calling with non-User credentials", code="ValidationError"
            )
        return caller.name

    async def list(self, request: Request) -> Shape:
        after, count = self._pages.start(request)
        page, more = self._ops.page(request.input.get("PathPrefix", "/"), after, count)
        shown = [self._shapes.user(u, brief=True) for u in page]
        last = page[-1].name.lower() if page else ""
        return self._pages.answer(request, "Users", shown, last, more=more)

    async def delete(self, request: Request) -> Shape:
        await self._ops.delete(request.cause, request.input["UserName"])
        return {}

    async def put_policy(self, request: Request) -> Shape:
        given = request.input
        await self._ops.put_policy(
            request.cause, given["UserName"], given["PolicyName"], given["PolicyDocument"]
        )
        return {}

    async def get_policy(self, request: Request) -> Shape:
        user, policy = request.input["UserName"], request.input["PolicyName"]
        document = self._ops.policy(user, policy)
        return {"UserName": user, "PolicyName": policy, "PolicyDocument": encoded(document)}

    async def list_policies(self, request: Request) -> Shape:
        names = sorted(self._ops.get(request.input["UserName"]).inline)
        return self._pages.cut(request, "PolicyNames", [(n, n) for n in names])

    async def delete_policy(self, request: Request) -> Shape:
        given = request.input
        await self._ops.delete_policy(request.cause, given["UserName"], given["PolicyName"])
        return {}

    async def attach(self, request: Request) -> Shape:
        given = request.input
        await self._ops.attach(request.cause, given["UserName"], given["PolicyArn"])
        return {}

    async def detach(self, request: Request) -> Shape:
        given = request.input
        await self._ops.detach(request.cause, given["UserName"], given["PolicyArn"])
        return {}

    async def list_attached(self, request: Request) -> Shape:
        found = self._ops.attached(request.input["UserName"], request.input.get("PathPrefix", "/"))
        shown = [
            (p.name, {"PolicyName": p.name, "PolicyArn": policy_arn(self._account_id, p)}) for p in found
        ]
        return self._pages.cut(request, "AttachedPolicies", shown)

    async def tag(self, request: Request) -> Shape:
        await self._ops.tag(request.cause, request.input["UserName"], tags_of(request.input))
        return {}

    async def untag(self, request: Request) -> Shape:
        await self._ops.untag(request.cause, request.input["UserName"], request.input["TagKeys"])
        return {}

    async def list_tags(self, request: Request) -> Shape:
        tags = tag_list(self._ops.get(request.input["UserName"]).tags)
        tags.sort(key=lambda t: str(t["Key"]))
        return self._pages.cut(request, "Tags", [(t["Key"], t) for t in tags])

    async def create_key(self, request: Request) -> Shape:
        """The only answer that ever shows the secret."""
        name = self._key_user(request)
        owner, key, secret = await self._ops.create_key(request.cause, request.principal.caller, name)
        return {
            "AccessKey": {
                "UserName": owner.name,
                "AccessKeyId": key.access_key_id,
                "Status": key.status,
                "SecretAccessKey": secret,
                "CreateDate": key.created_at,
            }
        }

    async def list_keys(self, request: Request) -> Shape:
        owner, keys = self._ops.keys(request.principal.caller, self._key_user(request))
        shown = [
            (
                k.access_key_id,
                {
                    "UserName": owner.name,
                    "AccessKeyId": k.access_key_id,
                    "Status": k.status,
                    "CreateDate": k.created_at,
                },
            )
            for k in keys
        ]
        return self._pages.cut(request, "AccessKeyMetadata", shown)

    async def update_key(self, request: Request) -> Shape:
        given = request.input
        if given["Status"] not in ("Active", "Inactive"):
            raise Invalid("Access keys can be Active or Inactive.", code="InvalidInput")
        await self._ops.set_key_status(
            request.cause,
            request.principal.caller,
            self._key_user(request),
            given["AccessKeyId"],
            given["Status"],
        )
        return {}

    async def delete_key(self, request: Request) -> Shape:
        await self._ops.delete_key(
            request.cause,
            request.principal.caller,
            self._key_user(request),
            request.input["AccessKeyId"],
        )
        return {}

    def _key_user(self, request: Request) -> str:
        """Whose keys are meant: "" is whoever calls."""
        name: str = request.input.get("UserName", "")
        if not name and not request.principal.caller.is_root:
            return self._own_name(request)
        return name
