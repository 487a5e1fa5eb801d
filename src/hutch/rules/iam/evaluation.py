"""Whether policies allow an action. An explicit deny anywhere wins; each layer that is there must allow."""

from collections.abc import Iterable, Sequence

import msgspec

from hutch.rules.iam.document import Policy, Statement
from hutch.rules.iam.patterns import Context

ALLOW = "allowed"
DENY = "explicitDeny"
NONE = "implicitDeny"

IDENTITY_BASED = "identity-based policy"
BOUNDARY = "permissions boundary"
SESSION = "session policy"


class PolicySet(msgspec.Struct, frozen=True, kw_only=True):
    """All policies that a principal's requests are decided by. None: there is no such layer, so it limits nothing."""

    identity: tuple[Policy, ...] = ()
    boundary: tuple[Policy, ...] | None = None
    session: tuple[Policy, ...] | None = None

    @property
    def needs_context(self) -> bool:
        """Whether a decision depends on more than action and resource."""
        layers = (self.identity, self.boundary or (), self.session or ())
        return any(p.needs_context for layer in layers for p in layer)


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """`effect` is ALLOW, DENY or NONE; `layer` says which kind of policy refused."""

    effect: str
    layer: str = ""

    @property
    def allowed(self) -> bool:
        return self.effect == ALLOW


def decide(policies: PolicySet, action: str, resource: str, context: Context) -> Decision:
    """The decision on one action (`ecs:RunTask`) and one resource (an ARN or `*`)."""
    layers = [(IDENTITY_BASED, policies.identity)]
    if policies.boundary is not None:
        layers.append((BOUNDARY, policies.boundary))
    if policies.session is not None:
        layers.append((SESSION, policies.session))
    refused = ""
    for name, layer in layers:
        effect = effect_of(layer, action, resource, context)
        if effect == DENY:
            return Decision(effect=DENY, layer=name)
        if effect == NONE and not refused:
            refused = name
    return Decision(effect=NONE, layer=refused) if refused else Decision(effect=ALLOW)


def effect_of(policies: Iterable[Policy], action: str, resource: str, context: Context) -> str:
    """What policies of one kind say together: ALLOW, DENY or NONE."""
    effect = NONE
    for policy in policies:
        for statement in policy.statements:
            if (effect == ALLOW and statement.allows) or not applies(statement, action, resource, context):
                continue
            if not statement.allows:
                return DENY
            effect = ALLOW
    return effect


def applies(statement: Statement, action: str, resource: str, context: Context) -> bool:
    """Whether a statement of an identity policy is about this request."""
    return (
        any(p.matches(action, context) for p in statement.actions) != statement.not_actions
        and any(p.matches(resource, context) for p in statement.resources) != statement.not_resources
        and all(c.holds(context) for c in statement.conditions)
    )


class TrustDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What a role's trust policy says of somebody.

    `direct`: it names the principal itself, who then needs no policy of its own; else it trusts the account, and the
    principal's own policies must allow the action, too.
    """

    allowed: bool
    direct: bool = False


def decide_trust(
    policy: Policy, principals: Sequence[tuple[str, str]], account_id: str, action: str, context: Context
) -> TrustDecision:
    """Whether a trust policy lets somebody do `action` (`sts:AssumeRole`).

    `principals` are all names the caller goes by: ("AWS", its ARN), ("AWS", its role's ARN), ("Service", name).
    """
    direct = delegated = False
    for statement in policy.statements:
        if any(p.matches(action, context) for p in statement.actions) == statement.not_actions:
            continue
        named = any(p in statement.principals for p in principals) or ("*", "*") in statement.principals
        by_account = any(kind == "AWS" for kind, _ in principals) and any(
            kind == "AWS" and value in (account_id, f"arn:aws:iam::{account_id}:root")
            for kind, value in statement.principals
        )
        if (named or by_account) == statement.not_principals:
            continue
        if not all(c.holds(context) for c in statement.conditions):
            continue
        if not statement.allows:
            return TrustDecision(allowed=False)
        # NotPrincipal with Allow names nobody: whoever is let in by it still needs a policy of their own.
        if named and not statement.not_principals:
            direct = True
        else:
            delegated = True
    return TrustDecision(allowed=direct or delegated, direct=direct)


def denial(principal_arn: str, action: str, resource: str, decision: Decision) -> str:
    """AWS's words for a refusal."""
    who = f"User: {principal_arn} is not authorized to perform: {action} on resource: {resource}"
    article = "an" if decision.layer == IDENTITY_BASED else "a"
    if decision.effect == DENY:
        return f"{who} with an explicit deny in {article} {decision.layer}"
    return f"{who} because no {decision.layer} allows the {action} action"
