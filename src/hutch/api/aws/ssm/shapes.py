"""Shapes and filters of Parameter Store's answers."""

from collections.abc import Callable, Sequence
from typing import Any

from hutch.base.errors import Invalid
from hutch.model.secret import Parameter, ParameterVersion

Wanted = Callable[[Parameter, ParameterVersion], bool]


def parameter_shape(version: ParameterVersion, value: str, arn: str, selector: str) -> dict[str, Any]:
    """The `Parameter` shape."""
    shape = {
        "Name": version.name,
        "Type": version.type,
        "Value": value,
        "Version": version.number,
        "LastModifiedDate": version.modified_at,
        "ARN": arn,
        "DataType": "text",
    }
    return {**shape, "Selector": selector} if selector else shape


def metadata_shape(version: ParameterVersion, arn: str, key_id: str) -> dict[str, Any]:
    """The `ParameterMetadata` shape; no value in it."""
    shape = {
        "Name": version.name,
        "ARN": arn,
        "Type": version.type,
        "LastModifiedDate": version.modified_at,
        "LastModifiedUser": version.modified_by,
        "Version": version.number,
        "Tier": version.tier,
        "Policies": [],
        "DataType": "text",
    }
    if version.description:
        shape["Description"] = version.description
    return {**shape, "KeyId": key_id} if version.type == "SecureString" else shape


def history_shape(version: ParameterVersion, value: str, key_id: str) -> dict[str, Any]:
    """The `ParameterHistory` shape."""
    shape = metadata_shape(version, "", key_id)
    del shape["ARN"]
    return {**shape, "Value": value, "Labels": list(version.labels)}


def filters_of(given: dict[str, Any], *, by_path: bool = False) -> Wanted:
    """What `Filters` (old) and `ParameterFilters` (new) of a request ask for. Raises AWS's refusals."""
    checks: list[Wanted] = []
    if given.get("Filters") and given.get("ParameterFilters"):
        raise Invalid("You can use either Filters or ParameterFilters in a single request.")
    for item in given.get("Filters", ()):
        checks.append(
            _check(item["Key"], "BeginsWith" if item["Key"] == "Name" else "Equals", item["Values"])
        )
    for item in given.get("ParameterFilters", ()):
        if by_path and item["Key"] not in ("Type", "KeyId", "Label"):
            raise Invalid(
                f"The following filter key is not valid: {item['Key']}. Valid filter keys include: [Type, KeyId, Label].",
                code="InvalidFilterKey",
            )
        if not by_path and item["Key"] == "Label":
            raise Invalid("Label is a filter of GetParametersByPath only.", code="InvalidFilterKey")
        default = "OneLevel" if item["Key"] == "Path" else "Equals"
        checks.append(_check(item["Key"], item.get("Option", default), item.get("Values", ())))
    return lambda record, version: all(c(record, version) for c in checks)


def _check(key: str, option: str, values: Sequence[str]) -> Wanted:
    if key == "Path":
        return _path_check(option, values)
    allowed = ("Equals", "BeginsWith", "Contains") if key == "Name" else ("Equals", "BeginsWith")
    if option not in allowed:
        raise Invalid(
            f"The following filter option is not valid: {option}. Valid options include: {list(allowed)}.",
            code="InvalidFilterOption",
        )

    def matches(record: Parameter, version: ParameterVersion) -> bool:
        fields = _fields(key, record, version)
        return any(_compare(option, f, v) for f in fields for v in values) if values else bool(fields)

    return matches


def _fields(key: str, record: Parameter, version: ParameterVersion) -> Sequence[str]:
    if key.startswith("tag:"):
        tag = key.removeprefix("tag:")
        return (record.tags[tag],) if tag in record.tags else ()
    if key == "Name":
        return (record.name, record.name.removeprefix("/"))
    if key == "KeyId":
        return ("alias/aws/ssm",) if version.type == "SecureString" else ()
    return {"Type": (version.type,), "Tier": (version.tier,), "DataType": ("text",), "Label": version.labels}[
        key
    ]


def _compare(option: str, field: str, value: str) -> bool:
    if option == "Contains":
        return value in field
    return field.startswith(value) if option == "BeginsWith" else field == value


def _path_check(option: str, values: Sequence[str]) -> Wanted:
    if option not in ("OneLevel", "Recursive"):
        raise Invalid(
            f"The following filter option is not valid: {option}. Valid options include: [OneLevel, Recursive].",
            code="InvalidFilterOption",
        )
    paths = [v.rstrip("/") + "/" for v in values]

    def matches(record: Parameter, version: ParameterVersion) -> bool:
        name = record.name if record.name.startswith("/") else f"/{record.name}"
        return any(name.startswith(p) and (option == "Recursive" or "/" not in name[len(p) :]) for p in paths)

    return matches
