"""Opaque pagination tokens: where a listing stopped, authenticated so that nobody can make one up."""

import base64
import binascii
import hmac

import msgspec

from hutch.base.errors import Invalid

_TAG_BYTES = 12


class Paging:
    """Encodes and decodes tokens with the platform's key (64 hex digits)."""

    def __init__(self, key_hex: str) -> None:
        self._key = bytes.fromhex(key_hex)

    def encode_token(self, scope: str, key: tuple[str, ...]) -> str:
        """A token for going on after `key` in the listing `scope` names."""
        body = msgspec.msgpack.encode([scope, list(key)])
        return base64.urlsafe_b64encode(self._tag(body) + body).decode().rstrip("=")

    def decode_token(self, scope: str, token: str) -> tuple[str, ...]:
        """Where to go on. Raises `Invalid` for a token that is not one of ours, or of another listing."""
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
            if not hmac.compare_digest(raw[:_TAG_BYTES], self._tag(raw[_TAG_BYTES:])):
                raise ValueError
            found, key = msgspec.msgpack.decode(raw[_TAG_BYTES:], type=tuple[str, list[str]])
            if found != scope:
                raise ValueError
        except (ValueError, binascii.Error, msgspec.DecodeError):
            raise Invalid("Invalid token.") from None
        return tuple(key)

    def _tag(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")[:_TAG_BYTES]
