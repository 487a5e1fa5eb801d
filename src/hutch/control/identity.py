"""Who may sign requests: the root key now, users and roles later."""

import hmac
import os
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

    def __init__(self, store: Store, clock: Clock, ids: IdSource, *, account_id: str, region: str) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._account_id = account_id
        self._region = region
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
        method: str,
        raw_path: bytes,
        query: str,
        headers: dict[str, str],
        payload_sha256: str,
    ) -> tuple[AccessKey, sigv4.Scope]:
        """Who signed a request, and in which scope. Raises `SignatureRefused`.

        `payload_sha256` is the body's digest as received (or what the request declares, if the caller checks that
        against the body later).
        """
        scope = sigv4.parse_scope(query, headers)
        sigv4.check_time(scope, self._clock.now())
        record = self._record(scope.access_key_id)
        if record is None or record.status != "Active":
            raise SignatureRefused("UnknownKey", "The security token included in the request is invalid.")
        if "host" not in scope.signed_headers:
            raise SignatureRefused("Incomplete", "'Host' must be a 'SignedHeader' in the AWS Authorization.")
        if scope.region != self._region and scope.region not in ("us-east-1", "aws-global"):
            raise SignatureRefused(
                "Mismatch",
                f"Credential should be scoped to a valid region, not '{scope.region}'; this is {self._region}.",
            )
        expected = sigv4.signature_of(
            self._key(record, scope), scope, method, raw_path, query, headers, payload_sha256
        )
        if not hmac.compare_digest(expected, scope.signature):
            raise SignatureRefused(
                "Mismatch",
                "The request signature we calculated does not match the signature you provided. Check your AWS "
                "Secret Access Key and signing method. Consult the service documentation for details.",
            )
        return record, scope

    def _record(self, access_key_id: str) -> AccessKey | None:
        """Cached: keys are only ever added here so far; a miss asks the store."""
        if access_key_id not in self._records:
            with self._store.read() as reader:
                record = reader.get(tables.ACCESS_KEYS, access_key_id)
            if record is None:
                return None
            self._records[access_key_id] = record
        return self._records[access_key_id]

    def _key(self, record: AccessKey, scope: sigv4.Scope) -> bytes:
        name = (record.access_key_id, scope.date, scope.region, scope.service)
        key = self._keys.get(name)
        if key is None:
            if len(self._keys) >= MAX_CACHED_KEYS:
                self._keys.clear()
            key = self._keys[name] = sigv4.signing_key(
                record.secret_key, scope.date, scope.region, scope.service
            )
        return key
