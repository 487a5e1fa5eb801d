"""Who may sign requests: the root key now, users and roles later."""

import hmac
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from hutch.base import sigv4
from hutch.base.clock import Clock
from hutch.base.errors import StorageFull
from hutch.base.ids import IdSource
from hutch.base.sigv4 import SignatureRefused
from hutch.model.cluster import AccessKey
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Store, Tx

MAX_CACHED_KEYS = 256


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """The root key as `hutch env` and `hutch configure` read it from the data directory (mode 0600)."""

    access_key_id: str
    secret_access_key: str
    account_id: str


class Identity:
    """Verifies signatures against the access keys in the store."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource, *, account_id: str) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._account_id = account_id
        self._seen_seq = 0
        self._keys: dict[tuple[str, str, str, str], bytes] = {}
        self._records: dict[str, AccessKey] = {}

    async def ensure_root_key(self, credentials_path: Path) -> bool:
        """Make the root key on first start and write it where only root can read it; True if it is new."""

        def work(tx: Tx) -> tuple[AccessKey, bool]:
            for key in tx.scan(tables.ACCESS_KEYS):
                if key.principal_arn.endswith(":root"):
                    return key, False
            fresh = AccessKey(
                access_key_id=self._ids.access_key_id(),
                secret_key=self._ids.secret_key(),
                principal_arn=f"arn:aws:iam::{self._account_id}:root",
                user_id=self._account_id,
                created_at=self._clock.now(),
            )
            return tx.put(tables.ACCESS_KEYS, fresh), True

        key, is_new = await self._store.write(Cause(id="start", actor="control", action="root key"), work)
        document = msgspec.json.encode(
            Credentials(
                access_key_id=key.access_key_id, secret_access_key=key.secret_key, account_id=self._account_id
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
    ) -> AccessKey:
        """Whose key signed a request. Raises `SignatureRefused`.

        `scope` is what the request says of itself (`sigv4.parse_scope`); `payload_sha256` the body's digest
        as received, or as declared if the caller checks it against the body later. Header names are lower
        case.
        """
        sigv4.check_time(scope, self._clock.now())
        record = self._record(scope.access_key_id)
        if record is None or record.status != "Active":
            raise SignatureRefused("UnknownKey", "The security token included in the request is invalid.")
        sigv4.check_signed_headers(scope, headers)
        expected = sigv4.signature_of(
            self._key(record, scope), scope, method, raw_path, query, headers, payload_sha256
        )
        if not hmac.compare_digest(expected.encode(), scope.signature.encode()):
            raise SignatureRefused(
                "Mismatch",
                "The request signature we calculated does not match the signature you provided. Check your "
                "AWS Secret Access Key and signing method. Consult the service documentation for details.",
            )
        return record

    def _record(self, access_key_id: str) -> AccessKey | None:
        """The stored key. What is kept in memory is dropped once the store's feed shows a changed key."""
        seq = self._store.last_seq()
        if seq != self._seen_seq:
            changes = self._store.changes(self._seen_seq)
            seen_all = changes is not None and len(changes) >= seq - self._seen_seq
            if not seen_all or any(c.table == tables.ACCESS_KEYS.name for c in changes or ()):
                self._records.clear()
            self._seen_seq = seq
        record = self._records.get(access_key_id)
        if record is None:
            with self._store.read() as reader:
                record = reader.get(tables.ACCESS_KEYS, access_key_id)
            if record is not None:
                self._records[access_key_id] = record
        return record

    def _key(self, record: AccessKey, scope: sigv4.Scope) -> bytes:
        name = (record.secret_key, scope.date, scope.region, scope.service)
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) >= MAX_CACHED_KEYS:
                self._keys.clear()
            key = self._keys[name] = sigv4.signing_key(
                record.secret_key, scope.date, scope.region, scope.service
            )
        return key
