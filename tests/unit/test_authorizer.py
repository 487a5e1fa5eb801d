"""Sessions end when they say so; policies are kept compiled, and never a moment longer than they hold."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from hutch.base import sigv4
from hutch.base.clock import ManualClock
from hutch.base.errors import AccessDenied
from hutch.base.ids import SeededIds
from hutch.base.sigv4 import SignatureRefused
from hutch.control.authorizer import Authorizer
from hutch.control.identity import Identity
from hutch.control.ops.iam.policies import PolicyOps
from hutch.control.ops.iam.users import UserOps
from hutch.control.sessions import SessionTokens, TemporaryCredentials
from hutch.control.vault import Vault
from hutch.model.iam import ASSUMED_ROLE, USER, Caller, Session
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.memory import MemoryStore

ACCOUNT = "000000000000"
CAUSE = Cause(id="1", actor="test", action="test")
HEADERS = {"host": "h"}


def document(action: str) -> str:
    return json.dumps(
        {"Version": "2012-10-17", "Statement": {"Effect": "Allow", "Action": action, "Resource": "*"}}
    )


class Room:
    """A store with a user named ann, and what decides about her."""

    def __init__(self) -> None:
        self.clock, self.ids, self.store = ManualClock(), SeededIds(1), MemoryStore()
        self.vault = Vault({1: bytes(32)}, self.ids)
        self.users = UserOps(self.store, self.clock, self.ids, self.vault, account_id=ACCOUNT)
        self.policies = PolicyOps(self.store, self.clock, self.ids, account_id=ACCOUNT)
        self.authorizer = Authorizer(self.store, self.clock, account_id=ACCOUNT)
        self.identity = Identity(self.store, self.clock, self.ids, self.vault, account_id=ACCOUNT)
        self.tokens = SessionTokens(self.vault, self.ids)

    async def open(self) -> Caller:
        await self.store.open()
        user = await self.users.create(CAUSE, "ann", "/", "", {})
        return Caller(
            kind=USER,
            arn=f"arn:aws:iam::{ACCOUNT}:user/ann",
            user_id=user.entity_id,
            access_key_id="AKIA",
            name="ann",
            entity_id=user.entity_id,
        )

    def allowed(self, caller: Caller, action: str) -> bool:
        try:
            self.authorizer.check(caller, action, "*", dict)
        except AccessDenied:
            return False
        return True

    def verify(self, credentials: TemporaryCredentials) -> Caller:
        """Sign a request with temporary credentials and have it verified."""
        headers = {**HEADERS, "x-amz-security-token": credentials.session_token}
        headers |= sigv4.sign(
            access_key_id=credentials.access_key_id,
            secret_key=credentials.secret_access_key,
            region="us-east-1",
            service="ecs",
            method="POST",
            raw_path=b"/",
            query="",
            headers=headers,
            payload_sha256=sigv4.EMPTY_SHA256,
            now=self.clock.now(),
        )
        scope = sigv4.parse_scope("", headers)
        return self.identity.verify(scope, "POST", b"/", "", headers, sigv4.EMPTY_SHA256)


async def test_each_change_of_a_policy_counts_at_once() -> None:
    room = Room()
    ann = await room.open()
    assert not room.allowed(ann, "ecs:RunTask")
    await room.users.put_policy(CAUSE, "ann", "p", document("ecs:*"))
    assert room.allowed(ann, "ecs:RunTask") and room.allowed(ann, "ecs:RunTask")
    await room.users.delete_policy(CAUSE, "ann", "p")
    assert not room.allowed(ann, "ecs:RunTask")

    policy = await room.policies.create(CAUSE, "m", "/", document("ecs:*"), "", {})
    arn = room.policies.arn(policy)
    await room.users.attach(CAUSE, "ann", arn)
    assert room.allowed(ann, "ecs:RunTask")
    await room.policies.create_version(CAUSE, arn, document("logs:*"), as_default=True)
    assert not room.allowed(ann, "ecs:RunTask") and room.allowed(ann, "logs:GetLogEvents")
    await room.users.detach(CAUSE, "ann", arn)
    assert not room.allowed(ann, "logs:GetLogEvents")


async def test_a_new_user_of_an_old_name_is_another_one() -> None:
    room = Room()
    ann = await room.open()
    await room.users.put_policy(CAUSE, "ann", "p", document("*"))
    assert room.allowed(ann, "ecs:RunTask")
    await room.users.delete_policy(CAUSE, "ann", "p")
    await room.users.delete(CAUSE, "ann")
    await room.users.create(CAUSE, "ann", "/", "", {})
    await room.users.put_policy(CAUSE, "ann", "p", document("*"))
    assert not room.allowed(ann, "ecs:RunTask")


async def test_a_stored_policy_that_can_not_be_read_forbids_everything() -> None:
    room = Room()
    ann = await room.open()
    await room.users.put_policy(CAUSE, "ann", "p", document("*"))

    def spoil(tx: Any) -> None:
        user = tx.get(tables.IAM_USERS, "ann")
        tx.put(tables.IAM_USERS, replace(user, inline={**user.inline, "q": "{"}))

    await room.store.write(CAUSE, spoil)
    assert not room.allowed(ann, "ecs:RunTask")


async def test_sessions_with_policies_of_their_own_are_told_apart() -> None:
    room = Room()
    ann = await room.open()
    await room.users.put_policy(CAUSE, "ann", "p", document("*"))
    session = Session(issued_at=0, expires_at=1e12)
    narrow = replace(
        ann,
        access_key_id="ASIA1",
        session=replace(session, limited=True, policies=(document("ecs:*"),)),
    )
    none = replace(ann, access_key_id="ASIA2", session=replace(session, limited=True))
    assert room.allowed(ann, "logs:GetLogEvents")
    assert room.allowed(narrow, "ecs:RunTask") and not room.allowed(narrow, "logs:GetLogEvents")
    assert not room.allowed(none, "ecs:RunTask")
    assert room.allowed(replace(ann, access_key_id="ASIA3", session=session), "logs:GetLogEvents")


def issue(room: Room, life_s: float) -> TemporaryCredentials:
    now = room.clock.now()
    return room.tokens.issue(
        Caller(
            kind=ASSUMED_ROLE,
            arn=f"arn:aws:sts::{ACCOUNT}:assumed-role/r/s",
            user_id="AROA:s",
            access_key_id="",
            name="r",
            entity_id="AROA",
            session=Session(issued_at=now, expires_at=now + life_s),
        )
    )


async def test_a_session_ends_when_it_says() -> None:
    room = Room()
    await room.open()
    credentials = issue(room, 900)
    caller = room.verify(credentials)
    assert caller.access_key_id == credentials.access_key_id and caller.name == "r"
    room.clock.advance(899)
    room.verify(credentials)
    room.clock.advance(1)
    with pytest.raises(SignatureRefused, match="expired") as raised:
        room.verify(credentials)
    assert raised.value.kind == "ExpiredToken"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda c, other: replace(c, session_token=""),
        lambda c, other: replace(c, session_token="x" * 100_000),
        lambda c, other: replace(c, session_token="AAAA"),
        lambda c, other: replace(c, session_token=c.session_token[:-8] + "AAAAAAA="),
        lambda c, other: replace(c, session_token=other.session_token),
        lambda c, other: replace(c, access_key_id=other.access_key_id),
        lambda c, other: replace(c, secret_access_key=other.secret_access_key),
    ],
)
async def test_a_token_is_good_only_as_it_was_issued(
    spoil: Callable[[TemporaryCredentials, TemporaryCredentials], TemporaryCredentials],
) -> None:
    room = Room()
    await room.open()
    credentials, other = issue(room, 900), issue(room, 900)
    room.verify(credentials)
    with pytest.raises(SignatureRefused) as raised:
        room.verify(spoil(credentials, other))
    assert raised.value.kind in ("UnknownKey", "Mismatch")


async def test_another_platforms_token_is_nobodys() -> None:
    room, other = Room(), Room()
    await room.open()
    other.tokens = SessionTokens(Vault({1: b"x" * 32}, other.ids), other.ids)
    with pytest.raises(SignatureRefused) as raised:
        room.verify(issue(other, 900))
    assert raised.value.kind == "UnknownKey"
