"""Who may sign requests: root, users with their access keys, and whoever holds temporary credentials."""

import hmac
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec.structs import replace

from hutch.base import sigv4
from hutch.base.clock import Clock
from hutch.base.errors import StorageFull
from hutch.base.ids import IdSource
from hutch.base.sigv4 import SignatureRefused
from hutch.control.sessions import SessionTokens
from hutch.control.vault import Vault
from hutch.control.watch import TableWatch
from hutch.model.iam import ROOT, USER, AccessKey, Caller
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Store, Tx

MAX_CACHED_KEYS = 1024
_INVALID_TOKEN = "The security token included in the request is invalid."
_MISMATCH = (
    "The request signature we calculated does not match the signature you provided. Check your "
    "AWS Secret Access Key and signing method. Consult the service documentation for details."
)


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """The root key as `hutch env` and `hutch configure` read it from the data directory (mode 0600)."""

    access_key_id: str
    secret_access_key: str
    account_id: str


class _Known(msgspec.Struct, frozen=True):
    """A key that may sign, opened."""

    secret: str
    caller: Caller


class Identity:
    """Verifies signatures against the access keys in the store and the session tokens that we issued."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource, vault: Vault, *, account_id: str) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._vault = vault
        self._tokens = SessionTokens(vault, ids)
        self._account_id = account_id
        self._watch = TableWatch(store, [tables.ACCESS_KEYS])
        self._signing_keys: dict[tuple[str, str, str, str], bytes] = {}
        self._known: dict[str, _Known] = {}
        self._sessions: dict[str, _Known] = {}

    async def ensure_root_key(self, credentials_path: Path) -> bool:
        """Make the root key on first start and write it where only root can read it; True if it is new."""
        arn = f"arn:aws:iam::{self._account_id}:root"

        def work(tx: Tx) -> tuple[AccessKey, str, bool]:
            for key in tx.scan(tables.ACCESS_KEYS):
                if key.principal_arn == arn and key.status == "Active":
                    if key.sealed is None:
                        key = tx.put(tables.ACCESS_KEYS, sealed_key(self._vault, key, key.secret_key))
                    return key, secret_of(self._vault, key), False
            secret = self._ids.secret_key()
            fresh = AccessKey(
                access_key_id=self._ids.access_key_id(),
                principal_arn=arn,
                user_id=self._account_id,
                created_at=self._clock.now(),
            )
            return tx.put(tables.ACCESS_KEYS, sealed_key(self._vault, fresh, secret)), secret, True

        cause = Cause(id="start", actor="control", action="root key")
        key, secret, is_new = await self._store.write(cause, work)
        document = msgspec.json.encode(
            Credentials(
                access_key_id=key.access_key_id, secret_access_key=secret, account_id=self._account_id
            )
        )
        try:
            if not credentials_path.exists() or credentials_path.read_bytes() != document:
                temporary = credentials_path.with_suffix(".tmp")
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                with os.fdopen(fd, "wb") as f:
                    f.write(document)
                temporary.rename(credentials_path)
        except OSError as error:
            raise StorageFull(f"can't write {credentials_path}: {error.strerror}") from None
        return is_new

    def verify(
        self,
        scope: sigv4.Scope,
        method: str,
        raw_path: bytes,
        query: str,
        headers: Mapping[str, str],
        payload_sha256: str,
    ) -> Caller:
        """Who signed a request. Raises `SignatureRefused`.

        `scope` is what the request says of itself (`sigv4.parse_scope`); `payload_sha256` the body's digest
        as received, or as declared if the caller checks it against the body later. Header names are lower
        case.
        """
        sigv4.check_time(scope, self._clock.now())
        known = self._session(scope) if scope.security_token else self._stored(scope.access_key_id)
        if known is None:
            raise SignatureRefused("UnknownKey", _INVALID_TOKEN)
        sigv4.check_signed_headers(scope, headers)
        expected = sigv4.signature_of(
            self._signing_key(known.secret, scope), scope, method, raw_path, query, headers, payload_sha256
        )
        if not hmac.compare_digest(expected.encode(), scope.signature.encode()):
            raise SignatureRefused("Mismatch", _MISMATCH)
        return known.caller

    def _stored(self, access_key_id: str) -> _Known | None:
        """An active access key. What is kept in memory is dropped once the store's feed shows a changed key."""
        if self._watch.changed():
            self._known.clear()
        known = self._known.get(access_key_id)
        if known is None:
            with self._store.read() as reader:
                record = reader.get(tables.ACCESS_KEYS, access_key_id)
            if record is None or record.status != "Active":
                return None
            is_root = record.principal_arn.endswith(":root")
            caller = Caller(
                kind=ROOT if is_root else USER,
                arn=record.principal_arn,
                user_id=record.user_id,
                access_key_id=access_key_id,
                name="" if is_root else record.principal_arn.rpartition("/")[2],
                entity_id="" if is_root else record.user_id,
            )
            if len(self._known) >= MAX_CACHED_KEYS:
                self._known.clear()
            known = self._known[access_key_id] = _Known(secret_of(self._vault, record), caller)
        return known

    def _session(self, scope: sigv4.Scope) -> _Known | None:
        """Temporary credentials. Raises `SignatureRefused` once they have expired."""
        known = self._sessions.get(scope.security_token)
        if known is None:
            opened = self._tokens.open(scope.security_token)
            if opened is None:
                return None
            if len(self._sessions) >= MAX_CACHED_KEYS:
                self._sessions.clear()
            known = self._sessions[scope.security_token] = _Known(opened.secret, opened.caller)
        session = known.caller.session
        if session is None or known.caller.access_key_id != scope.access_key_id:
            return None
        if session.expires_at <= self._clock.now():
            raise SignatureRefused("ExpiredToken", "The security token included in the request is expired")
        return known

    def _signing_key(self, secret: str, scope: sigv4.Scope) -> bytes:
        name = (secret, scope.date, scope.region, scope.service)
        key = self._signing_keys.get(name)
        if key is None:
            if len(self._signing_keys) >= MAX_CACHED_KEYS:
                self._signing_keys.clear()
            key = self._signing_keys[name] = sigv4.signing_key(
                secret, scope.date, scope.region, scope.service
            )
        return key


def sealed_key(vault: Vault, key: AccessKey, secret: str) -> AccessKey:
    """The key as it is stored: with its secret sealed for it alone."""
    return replace(key, secret_key="", sealed=vault.seal(secret.encode(), _owner(key)))


def secret_of(vault: Vault, key: AccessKey) -> str:
    """The secret of a stored key."""
    return vault.open(key.sealed, _owner(key)).decode() if key.sealed else key.secret_key


def _owner(key: AccessKey) -> str:
    return f"access key {key.access_key_id}"
