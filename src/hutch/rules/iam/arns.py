"""ARNs of IAM."""

import re

_POLICY = re.compile(r"arn:aws:iam::(aws|[0-9]{12}):policy(/(?:[!-~]{1,510}/)?)([A-Za-z0-9_+=,.@-]{1,128})")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::([0-9]{12}):role(/(?:[!-~]{1,510}/)?)([A-Za-z0-9_+=,.@-]{1,64})")


def entity_arn(account_id: str, kind: str, path: str, name: str) -> str:
    """The ARN of a user, role, policy or instance-profile. `path` begins and ends with a slash."""
    return f"arn:aws:iam::{account_id}:{kind}{path}{name}"


def parse_policy_arn(arn: str) -> tuple[str, str, str] | None:
    """(account or `aws`, path, name) of a managed policy's ARN; None if it is none."""
    match = _POLICY.fullmatch(arn)
    return (match[1], match[2], match[3]) if match else None


def parse_role_arn(arn: str) -> tuple[str, str, str] | None:
    """(account, path, name) of a role's ARN; None if it is none."""
    match = _ROLE.fullmatch(arn)
    return (match[1], match[2], match[3]) if match else None


def assumed_role_arn(account_id: str, role: str, session_name: str) -> str:
    """The ARN of somebody who has become a role."""
    return f"arn:aws:sts::{account_id}:assumed-role/{role}/{session_name}"
