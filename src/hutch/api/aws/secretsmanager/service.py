"""Secrets Manager: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.secretsmanager.access import SecretAccess
from hutch.api.aws.secretsmanager.shapes import SecretShapes, secret_filter, sort_order
from hutch.api.gateway.operation import Operation, Request, Service, operation
from hutch.api.gateway.paging import Paging
from hutch.base.errors import AlreadyExists, HutchError, Invalid, LimitExceeded, NotFound, Unavailable
from hutch.control.ops.secrets import NewValue, SecretOps
from hutch.model.secret import Secret
from hutch.rules.tags import tags_from_list

MAX_PAGE = 100
MAX_BATCH = 20
_NO_KMS = "hutch has no KMS: values are encrypted under the platform's own data key"
_NO_REPLICAS = "a platform has one region"


class SecretHandlers:
    """The Secrets Manager operations that hutch serves."""

    def __init__(self, ops: SecretOps, paging: Paging) -> None:
        self._ops = ops
        self._paging = paging
        self._shapes = SecretShapes(ops.arn)

    def operations(self) -> tuple[Operation, ...]:
        return (*self._reading(), *self._writing())

    def _reading(self) -> tuple[Operation, ...]:
        page = ("MaxResults", "NextToken")
        listing = ("IncludePlannedDeletion", "Filters", "SortOrder", "SortBy", *page)
        no_policy = {"PolicyName": "no secret has a resource policy"}
        return (
            operation("GetSecretValue", self.get, "SecretId", "VersionId", "VersionStage"),
            operation("BatchGetSecretValue", self.batch_get, "SecretIdList", "Filters", *page),
            operation("DescribeSecret", self.describe, "SecretId"),
            operation("ListSecrets", self.list, *listing),
            operation("ListSecretVersionIds", self.list_versions, "SecretId", "IncludeDeprecated", *page),
            operation("GetResourcePolicy", self.get_policy, "SecretId", refused=no_policy),
        )

    def _writing(self) -> tuple[Operation, ...]:
        value = ("ClientRequestToken", "SecretBinary", "SecretString")
        windows = ("RecoveryWindowInDays", "ForceDeleteWithoutRecovery")
        versions = ("RemoveFromVersionId", "MoveToVersionId")
        changed = {"KmsKeyId": _NO_KMS, "Type": "secrets that partners manage are not served"}
        new = {
            **changed,
            "AddReplicaRegions": _NO_REPLICAS,
            "ForceOverwriteReplicaSecret": _NO_REPLICAS,
            "CrossAccountPrimaryARN": _NO_REPLICAS,
        }
        no_rotation = {"RotationToken": "hutch rotates no secrets"}
        return (
            operation("CreateSecret", self.create, "Name", "Description", "Tags", *value, refused=new),
            operation("UpdateSecret", self.update, "SecretId", "Description", *value, refused=changed),
            operation("PutSecretValue", self.put, "SecretId", "VersionStages", *value, refused=no_rotation),
            operation("UpdateSecretVersionStage", self.move_stage, "SecretId", "VersionStage", *versions),
            operation("DeleteSecret", self.delete, "SecretId", *windows),
            operation("RestoreSecret", self.restore, "SecretId"),
            operation("TagResource", self.tag, "SecretId", "Tags"),
            operation("UntagResource", self.untag, "SecretId", "TagKeys"),
        )

    async def create(self, request: Request) -> dict[str, Any]:
        given = request.input
        secret, version = await self._ops.create(
            request.cause, given["Name"], given.get("Description", ""), _tags(given), _new_value(given)
        )
        return self._shapes.named(secret, version)

    async def put(self, request: Request) -> dict[str, Any]:
        given = request.input
        value = _new_value(given)
        if value is None:
            raise Invalid(
                "You must provide either SecretString or SecretBinary.", code="InvalidRequestException"
            )
        secret, version = await self._ops.put(
            request.cause, given["SecretId"], value, given.get("VersionStages", ())
        )
        return {**self._shapes.named(secret, version), "VersionStages": list(version.stages)}

    async def update(self, request: Request) -> dict[str, Any]:
        given = request.input
        secret, version = await self._ops.update(
            request.cause, given["SecretId"], given.get("Description"), _new_value(given)
        )
        return self._shapes.named(secret, version)

    async def get(self, request: Request) -> dict[str, Any]:
        given = request.input
        found = await self._ops.value(
            request.cause, given["SecretId"], given.get("VersionId", ""), given.get("VersionStage", "")
        )
        return self._shapes.value(found)

    async def batch_get(self, request: Request) -> dict[str, Any]:
        given = request.input
        ids = given.get("SecretIdList")
        if (ids is None) == ("Filters" not in given):
            raise Invalid("You must provide either SecretIdList or Filters, but not both.")
        answer: dict[str, Any] = {"SecretValues": [], "Errors": []}
        if ids is None:
            page, more = self._page(given, "BatchGetSecretValue", given.get("MaxResults", MAX_BATCH))
            ids = [self._ops.arn(s) for s, _ in page]
            answer |= more
        elif "MaxResults" in given or "NextToken" in given:
            raise Invalid("MaxResults and NextToken go with Filters, not with SecretIdList.")
        for secret_id in ids:
            try:
                found = await self._ops.value(request.cause, secret_id, "", "")
            except NotFound as error:
                code = error.code or "ResourceNotFoundException"
                answer["Errors"].append({"SecretId": secret_id, "ErrorCode": code, "Message": error.message})
            except Invalid as error:
                code = error.code or "InvalidRequestException"
                answer["Errors"].append({"SecretId": secret_id, "ErrorCode": code, "Message": error.message})
            else:
                answer["SecretValues"].append(self._shapes.value(found))
        return answer

    async def describe(self, request: Request) -> dict[str, Any]:
        secret, versions = self._ops.describe(request.input["SecretId"])
        return self._shapes.described(secret, versions)

    async def list(self, request: Request) -> dict[str, Any]:
        given = request.input
        page, more = self._page(given, "ListSecrets", given.get("MaxResults", MAX_PAGE))
        return {"SecretList": [self._shapes.listed(s, v) for s, v in page], **more}

    def _page(self, given: dict[str, Any], operation: str, limit: int) -> tuple[Any, dict[str, str]]:
        """A page of secrets, and the token for the next one if there is one."""
        order = sort_order(given.get("SortBy", "created-date"))
        descending = given.get("SortOrder", "desc" if operation == "ListSecrets" else "asc") == "desc"
        matches = secret_filter(given.get("Filters", ()))
        marked_too = given.get("IncludePlannedDeletion", False)

        def wanted(secret: Secret) -> bool:
            return (marked_too or secret.deletion_at is None) and matches(secret)

        scope = f"{operation}/{given.get('SortBy')}/{descending}"
        token = given.get("NextToken")
        after = self._decode(scope, token) if token else None
        page, more = self._ops.page(wanted, order, after, limit, descending=descending)
        if not more:
            return page, {}
        return page, {"NextToken": self._paging.encode_token(scope, order(page[-1][0]))}

    def _decode(self, scope: str, token: str) -> tuple[str, ...]:
        try:
            return self._paging.decode_token(scope, token)
        except Invalid as error:
            raise Invalid(error.message, code="InvalidNextTokenException") from None

    async def list_versions(self, request: Request) -> dict[str, Any]:
        given = request.input
        secret, versions = self._ops.describe(given["SecretId"])
        shown = [v for v in versions if v.stages or given.get("IncludeDeprecated", False)]
        scope = f"ListSecretVersionIds/{secret.name}"
        token = given.get("NextToken")
        start = int(self._decode(scope, token)[0]) if token else 0
        end = start + given.get("MaxResults", MAX_PAGE)
        answer = {
            "ARN": self._ops.arn(secret),
            "Name": secret.name,
            "Versions": [self._shapes.version(v) for v in shown[start:end]],
        }
        if end < len(shown):
            answer["NextToken"] = self._paging.encode_token(scope, (str(end),))
        return answer

    async def delete(self, request: Request) -> dict[str, Any]:
        given = request.input
        secret = await self._ops.delete(
            request.cause,
            given["SecretId"],
            given.get("RecoveryWindowInDays"),
            force=given.get("ForceDeleteWithoutRecovery", False),
        )
        return {**self._shapes.named(secret), "DeletionDate": secret.deletion_at}

    async def restore(self, request: Request) -> dict[str, Any]:
        return self._shapes.named(await self._ops.restore(request.cause, request.input["SecretId"]))

    async def tag(self, request: Request) -> dict[str, Any]:
        await self._ops.change_tags(request.cause, request.input["SecretId"], _tags(request.input))
        return {}

    async def untag(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(request.cause, given["SecretId"], {}, given["TagKeys"])
        return {}

    async def move_stage(self, request: Request) -> dict[str, Any]:
        given = request.input
        secret = await self._ops.move_stage(
            request.cause,
            given["SecretId"],
            given["VersionStage"],
            given.get("RemoveFromVersionId", ""),
            given.get("MoveToVersionId", ""),
        )
        return self._shapes.named(secret)

    async def get_policy(self, request: Request) -> dict[str, Any]:
        """No secret has one: hutch does not serve PutResourcePolicy. Terraform asks on every read."""
        return self._shapes.named(self._ops.describe(request.input["SecretId"])[0])


def _tags(given: dict[str, Any]) -> dict[str, str]:
    return tags_from_list({"key": t.get("Key"), "value": t.get("Value")} for t in given.get("Tags", ()))


def _new_value(given: dict[str, Any]) -> NewValue | None:
    """The value of a request, if it has one."""
    text, data = given.get("SecretString"), given.get("SecretBinary")
    if text is not None and data is not None:
        raise Invalid(
            "You can't specify both a binary secret value and a string secret value in the same secret."
        )
    token = given.get("ClientRequestToken", "")
    if text is not None:
        return NewValue(value=text.encode(), is_binary=False, token=token)
    return None if data is None else NewValue(value=data, is_binary=True, token=token)


def service(ops: SecretOps, paging: Paging) -> Service:
    """Secrets Manager, on these use cases."""
    access = SecretAccess(ops)
    return Service(
        name="secretsmanager",
        operations=SecretHandlers(ops, paging).operations(),
        faults=(
            (NotFound, "ResourceNotFoundException"),
            (AlreadyExists, "ResourceExistsException"),
            (LimitExceeded, "LimitExceededException"),
            (Unavailable, "InternalServiceError"),
            (HutchError, "InvalidParameterException"),
        ),
        access=access.rules(),
        tags_of=access.tags_of,
    )
