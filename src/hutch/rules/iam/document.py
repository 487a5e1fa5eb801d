"""Policy documents: from JSON to what can be decided by, with AWS's words for what is wrong with one."""

import json
import re
from typing import Any

import msgspec

from hutch.base.errors import Invalid
from hutch.rules.iam.conditions import Condition, compile_conditions
from hutch.rules.iam.patterns import Pattern

IDENTITY = "identity"
TRUST = "trust"
VERSION = "2012-10-17"
_VERSIONS = ("2008-10-17", VERSION)
_MEMBERS = frozenset({"Version", "Id", "Statement"})
_STATEMENT_MEMBERS = frozenset(
    {
        "Sid",
        "Effect",
        "Action",
        "NotAction",
        "Resource",
        "NotResource",
        "Principal",
        "NotPrincipal",
        "Condition",
    }
)
_SID = re.compile("[0-9A-Za-z]*")
_VENDOR = re.compile(r"[A-Za-z0-9-]+")
_ACTION_NAME = re.compile(r"[A-Za-z0-9*?_-]+")
_PARTITIONS = frozenset({"aws", "aws-cn", "aws-us-gov", "aws-iso", "aws-iso-b", "*"})
_PRINCIPAL_KINDS = ("AWS", "Service", "Federated", "CanonicalUser")
_ACCOUNT = re.compile("[0-9]{12}")
_PRINCIPAL_ARN = re.compile(
    r"arn:aws[a-z-]*:(iam|sts)::[0-9]{12}:(root|user/\S+|role/\S+|assumed-role/\S+|federated-user/\S+)"
)


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """One statement, compiled."""

    sid: str
    allows: bool
    actions: tuple[Pattern, ...]
    not_actions: bool
    resources: tuple[Pattern, ...] = ()
    not_resources: bool = False
    principals: tuple[tuple[str, str], ...] = ()
    """(kind, value) pairs; `("*", "*")` is everybody."""
    not_principals: bool = False
    conditions: tuple[Condition, ...] = ()


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """A document, compiled. `needs_context`: a decision by it depends on more than action and resource."""

    statements: tuple[Statement, ...]
    needs_context: bool


def parse_policy(text: str, kind: str = IDENTITY) -> Policy:
    """An identity policy (also a boundary or session policy) or a role's trust policy.

    Raises `Invalid` (`MalformedPolicyDocument`) with AWS's words.
    """
    try:
        statements = _statements(_json(text), kind)
    except ValueError as error:
        raise malformed(str(error)) from None
    return Policy(
        statements=statements,
        needs_context=any(s.conditions or any(p.has_variables for p in s.resources) for s in statements),
    )


def malformed(message: str) -> Invalid:
    """The error for a document that is none."""
    return Invalid(message, code="MalformedPolicyDocument")


def _json(text: str) -> dict[str, Any]:
    try:
        document = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ValueError("This policy contains invalid Json") from None
    if "\\u0000" in text or not isinstance(document, dict):
        raise ValueError("Syntax errors in policy.")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(constant)


def _statements(document: dict[str, Any], kind: str) -> tuple[Statement, ...]:
    if not set(document) <= _MEMBERS or not isinstance(document.get("Id", ""), str):
        raise ValueError("Syntax errors in policy.")
    version = document.get("Version", _VERSIONS[0])
    given = document.get("Statement")
    listed: list[Any] = given if isinstance(given, list) else [given]
    if version not in _VERSIONS or not listed or not all(isinstance(s, dict) for s in listed):
        raise ValueError("Syntax errors in policy.")
    if kind == IDENTITY and version != VERSION:
        raise ValueError(f"Policy document must be version {VERSION} or greater.")
    statements = tuple(_statement(s, kind, variables=version == VERSION) for s in listed)
    sids = [s.sid for s in statements if s.sid]
    if len(sids) != len(set(sids)):
        raise ValueError("Statement IDs (SID) in a single policy must be unique.")
    return statements


def _statement(given: dict[str, Any], kind: str, *, variables: bool) -> Statement:
    if not set(given) <= _STATEMENT_MEMBERS or given.get("Effect") not in ("Allow", "Deny"):
        raise ValueError("Syntax errors in policy.")
    for name in ("Action", "Resource", "Principal"):
        if name in given and f"Not{name}" in given:
            raise ValueError("Syntax errors in policy.")
    sid = given.get("Sid", "")
    if not isinstance(sid, str):
        raise ValueError("Syntax errors in policy.")
    if not _SID.fullmatch(sid) and kind == IDENTITY:
        raise ValueError(
            "Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression "
            "[0-9A-Za-z]*"
        )
    resources, principals = _applies_to(given, kind, variables=variables)
    return Statement(
        sid=sid,
        allows=given["Effect"] == "Allow",
        actions=_actions(given, kind),
        not_actions="NotAction" in given,
        resources=resources,
        not_resources="NotResource" in given,
        principals=principals,
        not_principals="NotPrincipal" in given,
        conditions=compile_conditions(given.get("Condition", {}), variables=variables),
    )


def _applies_to(
    given: dict[str, Any], kind: str, *, variables: bool
) -> tuple[tuple[Pattern, ...], tuple[tuple[str, str], ...]]:
    """The resources of an identity policy, or the principals of a trust policy."""
    if kind == TRUST:
        if "Resource" in given or "NotResource" in given:
            raise ValueError("Has prohibited field Resource")
        if "Principal" not in given and "NotPrincipal" not in given:
            raise ValueError("Missing required field Principal")
        return (), _principals(given.get("Principal", given.get("NotPrincipal")))
    if "Principal" in given or "NotPrincipal" in given:
        raise ValueError("Policy document should not specify a principal.")
    resources = _texts(given.get("Resource", given.get("NotResource", [])))
    if not resources:
        raise ValueError("Policy statement must contain resources.")
    for resource in resources:
        _check_resource(resource)
    return tuple(Pattern(r, variables=variables) for r in resources), ()


def _texts(value: Any) -> list[str]:
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(v, str) for v in listed):
        raise ValueError("Syntax errors in policy.")
    return listed


def _actions(given: dict[str, Any], kind: str) -> tuple[Pattern, ...]:
    actions = _texts(given.get("Action", given.get("NotAction", [])))
    if not actions:
        raise ValueError("Policy statement must contain actions.")
    for action in actions:
        if kind == TRUST and not action.lower().startswith("sts:"):
            raise ValueError("AssumeRole policy may only specify STS AssumeRole actions.")
        if action == "*":
            continue
        vendor, colon, name = action.partition(":")
        if not colon:
            raise ValueError("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
        if not _VENDOR.fullmatch(vendor):
            raise ValueError(f"Vendor {vendor[:100]} is not valid")
        if not _ACTION_NAME.fullmatch(name):
            raise ValueError(
                "Actions/Conditions must not contain any other characters than letters and digits."
            )
    return tuple(Pattern(a, fold=True) for a in actions)


def _check_resource(resource: str) -> None:
    if resource == "*":
        return
    shown = resource[:200]
    parts = resource.split(":")
    if resource.startswith("*"):
        return  # AWS takes `*:name` and the like
    if parts[0] != "arn":
        raise ValueError(f'Resource {shown} must be in ARN format or "*".')
    if len(parts) < 6:
        if resource.endswith("*"):
            return  # arn:aws:ecs:* and the like: the star stands for the rest
        raise ValueError("The policy failed legacy parsing")
    if parts[1] not in _PARTITIONS and "*" not in parts[1] and "$" not in parts[1]:
        raise ValueError(f'Partition "{parts[1][:50]}" is not valid for resource "{shown}".')
    if parts[2] == "iam" and parts[3]:
        raise ValueError(f"IAM resource {shown} cannot contain region information.")


def _principals(given: Any) -> tuple[tuple[str, str], ...]:
    if given == "*":
        return (("*", "*"),)
    if not isinstance(given, dict) or not given:
        raise ValueError("Syntax errors in policy.")
    found: list[tuple[str, str]] = []
    for kind, values in given.items():
        if kind not in _PRINCIPAL_KINDS:
            raise ValueError(f'Invalid principal in policy: "{kind[:50]}"')
        for value in _texts(values):
            if kind == "AWS" and not (
                value == "*" or _ACCOUNT.fullmatch(value) or _PRINCIPAL_ARN.fullmatch(value)
            ):
                raise ValueError(f'Invalid principal in policy: "AWS":"{value[:200]}"')
            if not value or (kind == "Service" and "." not in value):
                raise ValueError(f'Invalid principal in policy: "{kind.upper()}":"{value[:200]}"')
            found.append(("*", "*") if kind == "AWS" and value == "*" else (kind, value))
    return tuple(found)
