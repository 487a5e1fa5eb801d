"""Whether a caller may do what it asks for: its policies from the store, kept compiled until one of them changes.

Root may everything and costs nothing: callers ask `Caller.is_root` first.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from hutch.base.clock import Clock
from hutch.base.errors import AccessDenied, Invalid
from hutch.base.log import get_logger
from hutch.control.ops.iam.managed import find_managed_policy
from hutch.control.watch import TableWatch
from hutch.model.iam import USER, Caller, Entity, Session
from hutch.rules.iam import evaluation
from hutch.rules.iam.arns import entity_arn
from hutch.rules.iam.document import Policy, parse_policy
from hutch.rules.iam.evaluation import Decision, PolicySet
from hutch.store import tables
from hutch.store.contract import Reader, Store

log = get_logger(__name__)

MAX_CACHED_PRINCIPALS = 1024
MAX_CACHED_DECISIONS = 4096

RequestContext = Callable[[], Mapping[str, Sequence[str]]]
"""The condition keys that the request brings; made only if a policy looks at them."""


class _Principal:
    """A caller's policies, compiled; decisions are kept as long as only action and resource matter."""

    def __init__(self, policies: PolicySet, arn: str, tags: Mapping[str, str]) -> None:
        self.policies = policies
        self.arn = arn
        self.tags = tags
        self.needs_context = policies.needs_context
        self.decisions: dict[tuple[str, str], Decision] = {}


class Authorizer:
    """Decides requests by the policies of their callers."""

    def __init__(self, store: Store, clock: Clock, *, account_id: str) -> None:
        self._store = store
        self._clock = clock
        self._account_id = account_id
        self._watch = TableWatch(store, [tables.IAM_USERS, tables.IAM_ROLES, tables.IAM_POLICIES])
        self._principals: dict[str, _Principal] = {}

    def check(self, caller: Caller, action: str, resource: str, context: RequestContext) -> None:
        """Raises `AccessDenied` in AWS's words unless the caller may do `action` (`ecs:RunTask`) on `resource`."""
        if caller.is_root and not (caller.session and caller.session.limited):
            return
        decision = self.decide(caller, action, resource, context)
        if not decision.allowed:
            raise AccessDenied(evaluation.denial(caller.arn, action, resource, decision))

    def decide(self, caller: Caller, action: str, resource: str, context: RequestContext) -> Decision:
        """What the caller's policies say of one action on one resource."""
        if caller.is_root:
            return Decision(effect=evaluation.ALLOW)
        principal = self._principal(caller)
        if principal.needs_context:
            given = {**context(), **self.context_of(caller)}
            return evaluation.decide(principal.policies, action, resource, given)
        key = (action, resource)
        decision = principal.decisions.get(key)
        if decision is None:
            if len(principal.decisions) >= MAX_CACHED_DECISIONS:
                principal.decisions.clear()
            decision = evaluation.decide(principal.policies, action, resource, {})
            principal.decisions[key] = decision
        return decision

    def context_of(self, caller: Caller) -> dict[str, Sequence[str]]:
        """The condition keys that say who is calling, and when."""
        now = self._clock.now()
        context: dict[str, Sequence[str]] = {
            "aws:currenttime": (_iso(now),),
            "aws:epochtime": (str(int(now)),),
            "aws:principalaccount": (self._account_id,),
            "aws:principaltype": ("Account" if caller.is_root else caller.kind,),
            "aws:principalisawsservice": ("false",),
            "aws:userid": (caller.user_id,),
        }
        if caller.is_root:
            return {**context, "aws:principalarn": (caller.arn,)}
        principal = self._principal(caller)
        context["aws:principalarn"] = (principal.arn,)
        if caller.kind == USER:
            context["aws:username"] = (caller.name,)
        tags = dict(principal.tags)
        if caller.session:
            context["aws:tokenissuetime"] = (_iso(caller.session.issued_at),)
            context["aws:multifactorauthpresent"] = ("false",)
            tags |= caller.session.tags
            if caller.session.source_identity:
                context["aws:sourceidentity"] = (caller.session.source_identity,)
        for name, value in tags.items():
            context[f"aws:principaltag/{name.lower()}"] = (value,)
        return context

    def _principal(self, caller: Caller) -> _Principal:
        if self._watch.changed():
            self._principals.clear()
        # Sessions of one role share its policies; one with policies of its own is kept by its key.
        key = caller.access_key_id if caller.session and caller.session.limited else caller.entity_id
        principal = self._principals.get(key)
        if principal is None:
            if len(self._principals) >= MAX_CACHED_PRINCIPALS:
                self._principals.clear()
            with self._store.read() as reader:
                principal = self._principals[key] = self._load(reader, caller)
        return principal

    def _load(self, reader: Reader, caller: Caller) -> _Principal:
        """Of a user or role that is gone, or was made anew, nothing is left."""
        kind = "user" if caller.kind == USER else "role"
        name = caller.name.lower()
        entity: Entity | None = (
            reader.get(tables.IAM_USERS, name) if kind == "user" else reader.get(tables.IAM_ROLES, name)
        )
        if entity is None or entity.entity_id != caller.entity_id:
            return _Principal(PolicySet(), caller.arn, {})
        documents = [*entity.inline.values(), *_managed(reader, self._account_id, entity.attached)]
        boundary = None
        if entity.boundary_arn:
            boundary = _compiled(_managed(reader, self._account_id, (entity.boundary_arn,)))
        policies = PolicySet(
            identity=_compiled(documents),
            boundary=boundary,
            session=self._session_policies(reader, caller.session),
        )
        return _Principal(policies, entity_arn(self._account_id, kind, entity.path, entity.name), entity.tags)

    def _session_policies(self, reader: Reader, session: Session | None) -> tuple[Policy, ...] | None:
        if session is None or not session.limited:
            return None
        return _compiled([*session.policies, *_managed(reader, self._account_id, session.policy_arns)])


def _managed(reader: Reader, account_id: str, arns: Sequence[str]) -> list[str]:
    found = (find_managed_policy(reader, account_id, arn) for arn in arns)
    return [p.default_document for p in found if p is not None]


def _compiled(documents: Sequence[str]) -> tuple[Policy, ...]:
    return tuple(_parse(d) for d in documents)


_DENY_ALL = '{"Version":"2012-10-17","Statement":{"Effect":"Deny","Action":"*","Resource":"*"}}'


def _parse(document: str) -> Policy:
    try:
        return parse_policy(document)
    except Invalid as error:
        # Stored by a version that took it. What can't be read might forbid something: so it forbids everything.
        log.error("a stored policy can't be read", reason=error.message)
        return parse_policy(_DENY_ALL)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
