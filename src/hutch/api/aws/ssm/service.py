"""Systems Manager's Parameter Store: shape in, one use case, shape out."""

from typing import Any

from hutch.api.aws.ssm.access import SESSION_RULES, ParameterAccess
from hutch.api.aws.ssm.sessions import SessionHandlers
from hutch.api.aws.ssm.shapes import filters_of, history_shape, metadata_shape, parameter_shape
from hutch.api.gateway.operation import Operation, Request, Service, operation
from hutch.api.gateway.paging import Paging
from hutch.base.errors import AccessDenied, AlreadyExists, HutchError, Invalid, NotFound, Unavailable
from hutch.control.exec_sessions import ExecSessions
from hutch.control.ops.parameters import NewParameter, ParameterOps
from hutch.model.secret import Parameter, ParameterVersion
from hutch.rules.parameters import Selection
from hutch.rules.tags import tags_from_list

OWN_KEY = "alias/aws/ssm"
MAX_PAGE = 50
MAX_PATH_PAGE = 10


class ParameterHandlers:
    """The Parameter Store operations that hutch serves."""

    def __init__(self, ops: ParameterOps, paging: Paging) -> None:
        self._ops = ops
        self._paging = paging

    def operations(self) -> tuple[Operation, ...]:
        page = ("NextToken", "MaxResults")
        resource = ("ResourceType", "ResourceId")
        return (
            operation(
                "PutParameter",
                self.put,
                *("Name", "Value", "Type", "Tier", "Description", "Overwrite", "Tags", "KeyId", "DataType"),
                refused={
                    "AllowedPattern": "hutch matches no foreign regular expressions",
                    "Policies": "hutch expires no parameters",
                },
            ),
            operation("GetParameter", self.get, "Name", "WithDecryption"),
            operation("GetParameters", self.get_many, "Names", "WithDecryption"),
            operation(
                "GetParametersByPath",
                self.get_by_path,
                *("Path", "Recursive", "ParameterFilters", "WithDecryption", *page),
            ),
            operation("DeleteParameter", self.delete, "Name"),
            operation("DeleteParameters", self.delete_many, "Names"),
            operation(
                "DescribeParameters",
                self.describe,
                *("Filters", "ParameterFilters", *page),
                refused={"Shared": "a platform has one account"},
            ),
            operation("GetParameterHistory", self.history, "Name", "WithDecryption", *page),
            operation("LabelParameterVersion", self.label, "Name", "ParameterVersion", "Labels"),
            operation("UnlabelParameterVersion", self.unlabel, "Name", "ParameterVersion", "Labels"),
            operation("AddTagsToResource", self.add_tags, "Tags", *resource),
            operation("RemoveTagsFromResource", self.remove_tags, "TagKeys", *resource),
            operation("ListTagsForResource", self.list_tags, *resource),
        )

    async def put(self, request: Request) -> dict[str, Any]:
        given = request.input
        key_id = given.get("KeyId", OWN_KEY)
        if key_id != OWN_KEY or ("KeyId" in given and given.get("Type") != "SecureString"):
            raise Invalid(f"hutch has no KMS: leave KeyId out, or use {OWN_KEY}.", code="InvalidKeyId")
        if given.get("DataType", "text") != "text":
            raise Invalid("hutch serves parameters of data type text only.")
        version = await self._ops.put(
            request.cause,
            NewParameter(
                name=given["Name"],
                value=given["Value"],
                type=given.get("Type", ""),
                tier=given.get("Tier", ""),
                description=given.get("Description"),
                overwrite=given.get("Overwrite", False),
                tags=_tags(given),
            ),
        )
        return {"Version": version.number, "Tier": version.tier}

    async def get(self, request: Request) -> dict[str, Any]:
        version, selection = self._ops.get(request.input["Name"])
        return {"Parameter": self._shape(request.input, version, selection)}

    async def get_many(self, request: Request) -> dict[str, Any]:
        names = request.input["Names"]
        if len(set(names)) != len(names):
            raise Invalid("Names must not repeat a parameter.")
        found, missing = self._ops.get_many(names)
        return {
            "Parameters": [self._shape(request.input, v, s) for v, s in found],
            "InvalidParameters": missing,
        }

    async def get_by_path(self, request: Request) -> dict[str, Any]:
        given = request.input
        path = given["Path"].rstrip("/") + "/"
        if not path.startswith("/"):
            raise Invalid(
                "The parameter doesn't meet the parameter name requirements. The parameter name must begin with a "
                'forward slash "/".'
            )
        matches = filters_of(given, by_path=True)
        recursive = given.get("Recursive", False)

        def wanted(record: Parameter, version: ParameterVersion) -> bool:
            name = record.name if record.name.startswith("/") else f"/{record.name}"
            return (
                name.startswith(path)
                and (recursive or "/" not in name[len(path) :])
                and matches(record, version)
            )

        scope = f"GetParametersByPath/{path}/{recursive}"
        after = self._after(scope, given)
        page, more = self._ops.page(wanted, after, given.get("MaxResults", MAX_PATH_PAGE))
        shapes = [self._shape(given, v, Selection(name=v.name)) for v in page]
        return self._paged({"Parameters": shapes}, scope, page, more)

    async def describe(self, request: Request) -> dict[str, Any]:
        given = request.input
        after = self._after("DescribeParameters", given)
        page, more = self._ops.page(filters_of(given), after, given.get("MaxResults", MAX_PAGE))
        shapes = [metadata_shape(v, self._ops.arn(v.name), OWN_KEY) for v in page]
        return self._paged({"Parameters": shapes}, "DescribeParameters", page, more)

    async def history(self, request: Request) -> dict[str, Any]:
        given = request.input
        scope = f"GetParameterHistory/{given['Name']}"
        page, more = self._ops.history(
            given["Name"], self._after(scope, given), given.get("MaxResults", MAX_PAGE)
        )
        answer: dict[str, Any] = {
            "Parameters": [history_shape(v, self._value(given, v), OWN_KEY) for v in page]
        }
        if more:
            last = page[-1]
            answer["NextToken"] = self._paging.encode_token(scope, (last.name, f"{last.number:010d}"))
        return answer

    async def delete(self, request: Request) -> dict[str, Any]:
        _, missing = await self._ops.delete(request.cause, [request.input["Name"]])
        if missing:
            raise NotFound(f"Parameter {missing[0][:200]} not found.")
        return {}

    async def delete_many(self, request: Request) -> dict[str, Any]:
        gone, missing = await self._ops.delete(request.cause, request.input["Names"])
        return {"DeletedParameters": gone, "InvalidParameters": missing}

    async def label(self, request: Request) -> dict[str, Any]:
        given = request.input
        number, invalid = await self._ops.label(
            request.cause, given["Name"], given.get("ParameterVersion"), given["Labels"]
        )
        return {"ParameterVersion": number, "InvalidLabels": invalid}

    async def unlabel(self, request: Request) -> dict[str, Any]:
        given = request.input
        removed, invalid = await self._ops.unlabel(
            request.cause, given["Name"], given["ParameterVersion"], given["Labels"]
        )
        return {"RemovedLabels": removed, "InvalidLabels": invalid}

    async def add_tags(self, request: Request) -> dict[str, Any]:
        name = _parameter_of(request.input)
        await self._ops.change_tags(request.cause, name, _tags(request.input))
        return {}

    async def remove_tags(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(request.cause, _parameter_of(given), {}, given["TagKeys"])
        return {}

    async def list_tags(self, request: Request) -> dict[str, Any]:
        tags = self._ops.tags(_parameter_of(request.input))
        return {"TagList": [{"Key": k, "Value": v} for k, v in tags.items()]}

    def _shape(
        self, given: dict[str, Any], version: ParameterVersion, selection: Selection
    ) -> dict[str, Any]:
        return parameter_shape(
            version, self._value(given, version), self._ops.arn(version.name), selection.selector
        )

    def _value(self, given: dict[str, Any], version: ParameterVersion) -> str:
        """In the clear, or of a SecureString without WithDecryption what is stored."""
        if version.type == "SecureString" and not given.get("WithDecryption", False):
            return version.sealed.ciphertext.hex()
        return self._ops.open(version)

    def _after(self, scope: str, given: dict[str, Any]) -> tuple[str, ...] | None:
        token = given.get("NextToken")
        try:
            return self._paging.decode_token(scope, token) if token else None
        except Invalid as error:
            raise Invalid(error.message, code="InvalidNextToken") from None

    def _paged(
        self, answer: dict[str, Any], scope: str, page: list[ParameterVersion], more: bool
    ) -> dict[str, Any]:
        if more:
            answer["NextToken"] = self._paging.encode_token(scope, (page[-1].name,))
        return answer


def _parameter_of(given: dict[str, Any]) -> str:
    if given["ResourceType"] != "Parameter":
        raise Invalid(f"hutch keeps no {given['ResourceType']}s.", code="InvalidResourceType")
    name: str = given["ResourceId"]
    return name


def _tags(given: dict[str, Any]) -> dict[str, str]:
    return tags_from_list({"key": t.get("Key"), "value": t.get("Value")} for t in given.get("Tags", ()))


def service(ops: ParameterOps, paging: Paging, sessions: ExecSessions) -> Service:
    """Systems Manager, on these use cases."""
    return Service(
        name="ssm",
        operations=(*ParameterHandlers(ops, paging).operations(), *SessionHandlers(sessions).operations()),
        faults=(
            (NotFound, "ParameterNotFound"),
            (AlreadyExists, "ParameterAlreadyExists"),
            (AccessDenied, "AccessDeniedException"),
            (Unavailable, "InternalServerError"),
            (HutchError, "ValidationException"),
        ),
        access={**ParameterAccess(ops.arn_prefix).rules(), **SESSION_RULES},
    )
