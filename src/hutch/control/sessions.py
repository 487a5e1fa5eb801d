"""Temporary credentials. Nothing is stored: the session token itself holds who it is for, until when, and the secret,
sealed by the platform's vault. See ADR 0013.
"""

import base64
import binascii

import msgspec

from hutch.base.errors import Unavailable
from hutch.base.ids import IdSource
from hutch.control.vault import Vault
from hutch.model.iam import Caller
from hutch.model.secret import Sealed

_BELONGS_TO = "sts session token"
_KEY_ID_PREFIX = "ASIA"
MAX_TOKEN_CHARACTERS = 16 * 1024


class TemporaryCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """What a client signs with until `expires_at` (epoch seconds)."""

    access_key_id: str
    secret_access_key: str
    session_token: str
    expires_at: float


class OpenedToken(msgspec.Struct, frozen=True, array_like=True):
    """What is in a token."""

    caller: Caller
    secret: str


class SessionTokens:
    """Issues and opens session tokens."""

    def __init__(self, vault: Vault, ids: IdSource) -> None:
        self._vault = vault
        self._ids = ids

    def issue(self, caller: Caller) -> TemporaryCredentials:
        """Credentials for a caller with a session; its access key id is made here."""
        if caller.session is None:
            raise ValueError("temporary credentials need a session")
        key_id, secret = self._ids.access_key_id(_KEY_ID_PREFIX), self._ids.secret_key()
        opened = OpenedToken(msgspec.structs.replace(caller, access_key_id=key_id), secret)
        sealed = self._vault.seal(msgspec.msgpack.encode(opened), _BELONGS_TO)
        return TemporaryCredentials(
            access_key_id=key_id,
            secret_access_key=secret,
            session_token=base64.b64encode(msgspec.msgpack.encode(sealed)).decode(),
            expires_at=caller.session.expires_at,
        )

    def open(self, token: str) -> OpenedToken | None:
        """What a token holds; None for one that is not ours. Whether it has expired is for the caller to see."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            return None
        try:
            sealed = msgspec.msgpack.decode(base64.b64decode(token, validate=True), type=Sealed)
            return msgspec.msgpack.decode(self._vault.open(sealed, _BELONGS_TO), type=OpenedToken)
        except (binascii.Error, ValueError, msgspec.DecodeError, Unavailable):
            return None
