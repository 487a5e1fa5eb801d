"""Shapes, filters and orders of Secrets Manager's answers."""

from collections.abc import Callable, Sequence
from typing import Any

from hutch.base.errors import Invalid
from hutch.control.ops.secrets import SecretValue
from hutch.model.secret import Secret, SecretVersion

_SORT_KEYS: dict[str, Callable[[Secret], str]] = {
    "created-date": lambda s: f"{s.created_at:020.6f}",
    "last-changed-date": lambda s: f"{s.changed_at:020.6f}",
    "last-accessed-date": lambda s: f"{s.accessed_at or 0.0:020.6f}",
    "name": lambda s: "",
}


class SecretShapes:
    """Makes the shapes; `arn` gives a secret's."""

    def __init__(self, arn: Callable[[Secret], str]) -> None:
        self._arn = arn

    def named(self, secret: Secret, version: SecretVersion | None = None) -> dict[str, Any]:
        """ARN, name and, if there is one, the version's id."""
        shape = {"ARN": self._arn(secret), "Name": secret.name}
        return shape if version is None else {**shape, "VersionId": version.version_id}

    def value(self, found: SecretValue) -> dict[str, Any]:
        """A value in the clear."""
        version = found.version
        value: Any = found.value if version.is_binary else found.value.decode()
        return {
            **self.named(found.secret, version),
            "SecretBinary" if version.is_binary else "SecretString": value,
            "VersionStages": list(version.stages),
            "CreatedDate": version.created_at,
        }

    def described(self, secret: Secret, versions: Sequence[SecretVersion]) -> dict[str, Any]:
        """DescribeSecret's answer."""
        shape = self._common(secret)
        stages = {v.version_id: list(v.stages) for v in versions if v.stages}
        return {**shape, "VersionIdsToStages": stages} if stages else shape

    def listed(self, secret: Secret, versions: Sequence[SecretVersion]) -> dict[str, Any]:
        """ListSecrets' entry."""
        shape = self._common(secret)
        stages = {v.version_id: list(v.stages) for v in versions if v.stages}
        return {**shape, "SecretVersionsToStages": stages} if stages else shape

    def _common(self, secret: Secret) -> dict[str, Any]:
        shape = {
            **self.named(secret),
            "Description": secret.description or None,
            "LastChangedDate": secret.changed_at,
            "LastAccessedDate": secret.accessed_at,
            "DeletedDate": secret.deleted_at,
            "CreatedDate": secret.created_at,
            "Tags": [{"Key": k, "Value": v} for k, v in secret.tags.items()],
        }
        return {k: v for k, v in shape.items() if v is not None}

    @staticmethod
    def version(version: SecretVersion) -> dict[str, Any]:
        """ListSecretVersionIds' entry."""
        shape = {
            "VersionId": version.version_id,
            "VersionStages": list(version.stages) or None,
            "LastAccessedDate": version.accessed_at,
            "CreatedDate": version.created_at,
        }
        return {k: v for k, v in shape.items() if v is not None}


def sort_order(sort_by: str) -> Callable[[Secret], tuple[str, ...]]:
    """The key of an order; the name makes it one of its own for each secret."""
    key = _SORT_KEYS[sort_by]
    return lambda secret: (key(secret), secret.name)


def secret_filter(filters: Sequence[dict[str, Any]]) -> Callable[[Secret], bool]:
    """All filters must match, each by one of its values. A value with `!` before it must not match. Prefixes; names
    and tags with regard to case, descriptions and `all` without, as AWS does."""
    checks = []
    for item in filters:
        key, values = item.get("Key", ""), item.get("Values") or []
        if key not in _FIELDS:
            raise Invalid(f"hutch does not filter secrets by {key or 'nothing'!r}.")
        checks.append((_FIELDS[key], key in ("description", "all"), values))

    def matches(secret: Secret) -> bool:
        return all(_one_matches(fields(secret), values, folded) for fields, folded, values in checks)

    return matches


def _one_matches(fields: Sequence[str], values: Sequence[str], folded: bool) -> bool:
    shown = [f.lower() for f in fields] if folded else list(fields)
    for value in values:
        wanted = (value.lower() if folded else value).removeprefix("!")
        hit = any(_starts(field, wanted, folded) for field in shown)
        if hit != value.startswith("!"):
            return True
    return False


def _starts(field: str, wanted: str, folded: bool) -> bool:
    return field.startswith(wanted) or (folded and any(w.startswith(wanted) for w in field.split()))


_FIELDS: dict[str, Callable[[Secret], Sequence[str]]] = {
    "name": lambda s: (s.name,),
    "description": lambda s: (s.description,),
    "tag-key": lambda s: tuple(s.tags),
    "tag-value": lambda s: tuple(s.tags.values()),
    "all": lambda s: (s.name, s.description, *s.tags, *s.tags.values()),
}
