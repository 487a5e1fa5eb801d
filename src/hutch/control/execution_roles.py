"""Execution roles: who a task's secrets, registry credentials and log streams are fetched as.

hutch needs no credentials of the role to do so; it asks whether the role may, as AWS's services would, and does not if
it may not.
"""

from collections.abc import Mapping, Sequence

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.control.authorizer import Authorizer
from hutch.control.ops.sts import StsOps
from hutch.model.iam import ASSUMED_ROLE, Caller, Role, Session
from hutch.rules.execution_role import TASKS_SERVICE
from hutch.rules.iam import evaluation
from hutch.rules.iam.arns import assumed_role_arn, entity_arn

SESSION_S = 3600
MAX_KNOWN_TRUSTS = 1024


class Denied(msgspec.Struct, frozen=True, kw_only=True):
    """An action that the role may not, in AWS's words; `explicit` if a policy denies it."""

    action: str
    resource: str
    text: str
    explicit: bool


class AssumedExecutionRole:
    """A role that was assumed for a task."""

    def __init__(
        self, arn: str, caller: Caller, authorizer: Authorizer, context: Mapping[str, Sequence[str]]
    ):
        self.arn = arn
        self._caller = caller
        self._authorizer = authorizer
        self._context = context

    def denied(self, action: str, resource: str, tags: Mapping[str, str] | None = None) -> Denied | None:
        """Why the role may not do something to a resource that has these tags; None if it may."""

        def context() -> Mapping[str, Sequence[str]]:
            given = {f"aws:resourcetag/{k.lower()}": (v,) for k, v in (tags or {}).items()}
            return {**self._context, **given}

        decision = self._authorizer.decide(self._caller, action, resource, context)
        if decision.allowed:
            return None
        text = evaluation.denial(self._caller.arn, action, resource, decision)
        return Denied(
            action=action, resource=resource, text=text, explicit=decision.effect == evaluation.DENY
        )


class Unassumable(msgspec.Struct, frozen=True, kw_only=True):
    """A role that can't be assumed: it is not there, or does not trust ECS tasks."""

    arn: str
    exists: bool


class ExecutionRoles:
    """Assumes roles for tasks."""

    def __init__(
        self, sts: StsOps, authorizer: Authorizer, clock: Clock, *, region: str, account_id: str
    ) -> None:
        self._sts = sts
        self._authorizer = authorizer
        self._clock = clock
        self._account_id = account_id
        self._trust_context = {
            "aws:sourceaccount": (account_id,),
            "aws:sourcearn": (f"arn:aws:ecs:{region}:{account_id}:*",),
        }
        self._context = {"aws:requestedregion": (region,), "aws:resourceaccount": (account_id,)}
        self._trusts: dict[str, bool] = {}
        """What trust policies, by their text, say of ECS tasks."""

    def assume(self, role: str, session_name: str) -> AssumedExecutionRole | Unassumable:
        """Become a role (ARN or name) for the task of that id."""
        arn = role if role.startswith("arn:") else entity_arn(self._account_id, "role", "/", role)
        try:
            found = self._sts.find_role(arn)
        except Invalid:
            found = None
        if found is None:
            return Unassumable(arn=arn, exists=False)
        if not self._trusted(found):
            return Unassumable(arn=arn, exists=True)
        now = self._clock.now()
        caller = Caller(
            kind=ASSUMED_ROLE,
            arn=assumed_role_arn(self._account_id, found.name, session_name),
            user_id=f"{found.entity_id}:{session_name}",
            access_key_id="",
            name=found.name,
            entity_id=found.entity_id,
            session=Session(issued_at=now, expires_at=now + SESSION_S),
        )
        return AssumedExecutionRole(arn, caller, self._authorizer, self._context)

    def _trusted(self, role: Role) -> bool:
        known = self._trusts.get(role.trust_policy)
        if known is None:
            if len(self._trusts) >= MAX_KNOWN_TRUSTS:
                self._trusts.clear()
            known = self._sts.check_service(role, TASKS_SERVICE, self._trust_context)
            self._trusts[role.trust_policy] = known
        return known
