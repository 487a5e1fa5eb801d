"""Managed policies: ours from the store, AWS's own from the data that comes with hutch."""

import hashlib
from base64 import b32encode
from functools import lru_cache
from importlib import resources

import msgspec

from hutch.model.iam import ManagedPolicy, PolicyVersion
from hutch.rules.iam.arns import entity_arn, parse_policy_arn
from hutch.store import tables
from hutch.store.contract import Reader


class _AwsPolicy(msgspec.Struct, frozen=True):
    path: str
    version_id: str
    created_at: float
    updated_at: float
    document: str


@lru_cache(maxsize=1)
def aws_policies() -> dict[str, ManagedPolicy]:
    """AWS's own managed policies that hutch knows, by name; read on first use."""
    data = resources.files(__package__).joinpath("aws_managed_policies.json").read_bytes()
    found = msgspec.json.decode(data, type=dict[str, _AwsPolicy])
    return {name: _managed(name, p) for name, p in found.items()}


def _managed(name: str, given: _AwsPolicy) -> ManagedPolicy:
    version = PolicyVersion(version_id=given.version_id, document=given.document, created_at=given.updated_at)
    return ManagedPolicy(
        name=name,
        policy_id="ANPA" + b32encode(hashlib.sha256(name.encode()).digest())[:16].decode(),
        path=given.path,
        versions=(version,),
        default_version_id=given.version_id,
        created_at=given.created_at,
        updated_at=given.updated_at,
        is_aws=True,
    )


def policy_arn(account_id: str, policy: ManagedPolicy) -> str:
    """A managed policy's ARN."""
    return entity_arn("aws" if policy.is_aws else account_id, "policy", policy.path, policy.name)


def find_managed_policy(reader: Reader, account_id: str, arn: str) -> ManagedPolicy | None:
    """A managed policy by its ARN."""
    parts = parse_policy_arn(arn)
    if parts is None:
        return None
    owner, path, name = parts
    if owner == "aws":
        found = aws_policies().get(name)
    elif owner == account_id:
        found = reader.get(tables.IAM_POLICIES, name.lower())
    else:
        return None
    return found if found and found.path == path and found.name == name else None
