"""Use cases of STS: temporary credentials for roles, users and tasks."""

import re
from collections.abc import Mapping, Sequence

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import AccessDenied, Invalid
from hutch.control.authorizer import Authorizer
from hutch.control.ops.iam.managed import find_managed_policy
from hutch.control.sessions import SessionTokens, TemporaryCredentials
from hutch.model.iam import ASSUMED_ROLE, Caller, Role, Session
from hutch.rules.iam.arns import assumed_role_arn, entity_arn, parse_role_arn
from hutch.rules.iam.document import TRUST, parse_policy
from hutch.rules.iam.evaluation import DENY, decide_trust
from hutch.store import tables
from hutch.store.contract import Reader, Store

MAX_CHAINED_S = 3600
USER_SESSION_S = 43_200
ROOT_SESSION_S = 3600
MAX_SESSION_POLICY_CHARACTERS = 2048
MAX_SESSION_POLICY_ARNS = 10
MAX_SESSION_TAGS = 50
ASSUME_ROLE = "sts:AssumeRole"
_SESSION_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")

Context = Mapping[str, Sequence[str]]


class AssumeRoleRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What AssumeRole is given. `duration_s` 0: as long as usual."""

    role_arn: str
    session_name: str
    duration_s: int = 0
    policy: str = ""
    policy_arns: tuple[str, ...] = ()
    external_id: str = ""
    source_identity: str = ""
    tags: dict[str, str] = {}
    transitive_tags: tuple[str, ...] = ()


class AssumedRole(msgspec.Struct, frozen=True, kw_only=True):
    """Who the caller has become, and what to sign with."""

    arn: str
    role_session_id: str
    credentials: TemporaryCredentials
    source_identity: str = ""
    packed_percent: int | None = None
    """How much of the room for session policies is used; None without one."""


class StsOps:
    """STS's use cases. Nothing is stored: a session token says all there is to know."""

    def __init__(
        self, store: Store, clock: Clock, tokens: SessionTokens, authorizer: Authorizer, *, account_id: str
    ) -> None:
        self._store = store
        self._clock = clock
        self._tokens = tokens
        self._authorizer = authorizer
        self._account_id = account_id

    def assume_role(self, caller: Caller, given: AssumeRoleRequest, request_context: Context) -> AssumedRole:
        """Credentials of a role that trusts the caller. Raises `AccessDenied`, also for a role that is not there."""
        if not _SESSION_NAME.fullmatch(given.session_name):
            raise Invalid(
                "The specified value for roleSessionName is invalid. It must contain only alphanumeric characters "
                "and/or the following: +=,.@_-",
                code="ValidationError",
            )
        role = self.find_role(given.role_arn)
        if role is None:
            raise self._refused(caller, ASSUME_ROLE, given.role_arn)
        tags, transitive = _session_tags(caller, given)
        context = {
            **request_context,
            **self._authorizer.context_of(caller),
            **_context_of(given),
        }
        actions = [ASSUME_ROLE]
        actions += ["sts:TagSession"] if given.tags else []
        actions += ["sts:SetSourceIdentity"] if given.source_identity else []
        for action in actions:
            self._check_trust(caller, role, given.role_arn, action, context)
        session = self._session(caller, role, given, tags, transitive)
        return self.become(role, given.session_name, session, len(given.policy))

    def become(
        self, role: Role, session_name: str, session: Session, policy_characters: int = 0
    ) -> AssumedRole:
        """Credentials of a role, without asking whether it trusts anybody: that was the caller's part."""
        user_id = f"{role.entity_id}:{session_name}"
        arn = assumed_role_arn(self._account_id, role.name, session_name)
        credentials = self._tokens.issue(
            Caller(
                kind=ASSUMED_ROLE,
                arn=arn,
                user_id=user_id,
                access_key_id="",
                name=role.name,
                entity_id=role.entity_id,
                session=session,
            )
        )
        return AssumedRole(
            arn=arn,
            role_session_id=user_id,
            credentials=credentials,
            source_identity=session.source_identity,
            packed_percent=100 * policy_characters // MAX_SESSION_POLICY_CHARACTERS
            if session.limited
            else None,
        )

    def session_token(self, caller: Caller, duration_s: int) -> TemporaryCredentials:
        """GetSessionToken: the caller's own permissions, for a while."""
        if caller.session is not None:
            raise AccessDenied("Cannot call GetSessionToken with session credentials")
        usual = ROOT_SESSION_S if caller.is_root else USER_SESSION_S
        duration_s = duration_s or usual
        if caller.is_root:
            duration_s = min(duration_s, ROOT_SESSION_S)
        now = self._clock.now()
        session = Session(issued_at=now, expires_at=now + duration_s)
        return self._tokens.issue(msgspec.structs.replace(caller, session=session))

    def find_role(self, arn: str) -> Role | None:
        """A role of this account by its ARN."""
        parts = parse_role_arn(arn)
        if parts is None:
            raise Invalid(f"{arn[:200]} is invalid", code="ValidationError")
        account, path, name = parts
        with self._store.read() as reader:
            role = reader.get(tables.IAM_ROLES, name.lower())
        found = role is not None and (account, path, name) == (self._account_id, role.path, role.name)
        return role if found else None

    def check_service(self, role: Role, service: str, context: Context) -> bool:
        """Whether a role trusts a service (`ecs-tasks.amazonaws.com`)."""
        trust = parse_policy(role.trust_policy, TRUST)
        return decide_trust(trust, [("Service", service)], self._account_id, ASSUME_ROLE, context).allowed

    def _check_trust(self, caller: Caller, role: Role, role_arn: str, action: str, context: Context) -> None:
        """The role must trust the caller, and unless it names the caller itself, the caller's policies must agree."""
        principals = [("AWS", caller.arn)]
        if caller.kind == ASSUMED_ROLE:
            principals += [("AWS", a) for a in context.get("aws:principalarn", ())]
        trust = parse_policy(role.trust_policy, TRUST)
        decision = decide_trust(trust, principals, self._account_id, action, context)
        if not decision.allowed:
            raise self._refused(caller, action, role_arn)
        own = self._authorizer.decide(caller, action, role_arn, lambda: context)
        if own.effect == DENY or not (own.allowed or decision.direct):
            raise self._refused(caller, action, role_arn)

    def _refused(self, caller: Caller, action: str, role_arn: str) -> AccessDenied:
        return AccessDenied(
            f"User: {caller.arn} is not authorized to perform: {action} on resource: {role_arn}",
            code="AccessDenied",
        )

    def _session(
        self,
        caller: Caller,
        role: Role,
        given: AssumeRoleRequest,
        tags: dict[str, str],
        transitive: tuple[str, ...],
    ) -> Session:
        chained = caller.kind == ASSUMED_ROLE
        duration_s = given.duration_s or MAX_CHAINED_S
        if chained and duration_s > MAX_CHAINED_S:
            raise Invalid(
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
                code="ValidationError",
            )
        if duration_s > role.max_session_s:
            raise Invalid(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
                code="ValidationError",
            )
        if given.policy:
            parse_policy(given.policy)
        if len(given.policy) > MAX_SESSION_POLICY_CHARACTERS:
            raise Invalid(
                f"The session policy can have at most {MAX_SESSION_POLICY_CHARACTERS} characters.",
                code="PackedPolicyTooLarge",
            )
        with self._store.read() as reader:
            _check_policy_arns(reader, self._account_id, given.policy_arns)
        before = caller.session.source_identity if caller.session else ""
        if before and given.source_identity and before != given.source_identity:
            raise AccessDenied("A source identity can't be changed once it is set.", code="AccessDenied")
        now = self._clock.now()
        return Session(
            issued_at=now,
            expires_at=now + duration_s,
            policies=(given.policy,) if given.policy else (),
            policy_arns=given.policy_arns,
            limited=bool(given.policy or given.policy_arns),
            tags=tags,
            transitive_tags=transitive,
            source_identity=given.source_identity or before,
        )


def role_arn(account_id: str, role: Role) -> str:
    """A role's ARN."""
    return entity_arn(account_id, "role", role.path, role.name)


def _session_tags(caller: Caller, given: AssumeRoleRequest) -> tuple[dict[str, str], tuple[str, ...]]:
    """The new session's tags, transitive ones of the caller's session included, which can't be changed."""
    if len(given.tags) > MAX_SESSION_TAGS:
        raise Invalid(f"A session can have at most {MAX_SESSION_TAGS} tags.", code="ValidationError")
    if unknown := [k for k in given.transitive_tags if k not in given.tags]:
        raise Invalid(f"The transitive tag key {unknown[0]!r} is not among the tags.", code="ValidationError")
    before = caller.session
    inherited = {k: before.tags[k] for k in before.transitive_tags} if before else {}
    if same := {k.lower() for k in inherited} & {k.lower() for k in given.tags}:
        raise Invalid(
            f"One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key "
            f"from the calling session: {min(same)}",
            code="InvalidParameterValue",
        )
    return {**given.tags, **inherited}, (*inherited, *given.transitive_tags)


def _context_of(given: AssumeRoleRequest) -> dict[str, Sequence[str]]:
    context: dict[str, Sequence[str]] = {"sts:rolesessionname": (given.session_name,)}
    if given.external_id:
        context["sts:externalid"] = (given.external_id,)
    if given.source_identity:
        context["sts:sourceidentity"] = (given.source_identity,)
    if given.transitive_tags:
        context["sts:transitivetagkeys"] = given.transitive_tags
    if given.tags:
        context["aws:tagkeys"] = tuple(given.tags)
        context |= {f"aws:requesttag/{k.lower()}": (v,) for k, v in given.tags.items()}
    return context


def _check_policy_arns(reader: Reader, account_id: str, arns: Sequence[str]) -> None:
    if len(arns) > MAX_SESSION_POLICY_ARNS:
        raise Invalid(
            f"A session can have at most {MAX_SESSION_POLICY_ARNS} managed policies.", code="ValidationError"
        )
    for arn in arns:
        if find_managed_policy(reader, account_id, arn) is None:
            raise Invalid(f"Policy {arn} does not exist or is not attachable.", code="ValidationError")
