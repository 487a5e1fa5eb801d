"""Identifiers and randomness as an argument: every id that hutch makes comes from an `IdSource`."""

import random
import secrets
import string
from typing import Protocol

_HEX = "0123456789abcdef"
_ALNUM_UPPER = string.ascii_uppercase + "234567"
_SECRET = string.ascii_letters + string.digits + "/+"


class IdSource(Protocol):
    """Makes ids and secrets; seeded in tests, from the kernel's CSPRNG in production."""

    def hex(self, digits: int) -> str:
        """`digits` random lower-case hexadecimal digits."""
        ...

    def uuid(self) -> str:
        """A random version 4 UUID in its usual text form."""
        ...

    def digits(self, count: int) -> str:
        """`count` random decimal digits, the first one not zero."""
        ...

    def access_key_id(self, prefix: str = "AKIA") -> str:
        """An AWS access key id: a four-letter prefix and 16 characters of the base32 alphabet."""
        ...

    def secret_key(self) -> str:
        """A 40-character AWS secret access key."""
        ...


class _Choosing:
    """The ids, on top of one primitive: a random choice from an alphabet."""

    def _choose(self, alphabet: str, count: int) -> str:
        raise NotImplementedError

    def hex(self, digits: int) -> str:
        return self._choose(_HEX, digits)

    def uuid(self) -> str:
        h = self._choose(_HEX, 32)
        variant = "89ab"[int(h[16], 16) & 3]
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{variant}{h[17:20]}-{h[20:]}"

    def digits(self, count: int) -> str:
        return self._choose("123456789", 1) + self._choose(string.digits, count - 1)

    def access_key_id(self, prefix: str = "AKIA") -> str:
        return prefix + self._choose(_ALNUM_UPPER, 16)

    def secret_key(self) -> str:
        return self._choose(_SECRET, 40)


class RandomIds(_Choosing):
    """Ids from the kernel's CSPRNG."""

    def _choose(self, alphabet: str, count: int) -> str:
        return "".join(secrets.choice(alphabet) for _ in range(count))

    def hex(self, digits: int) -> str:
        return secrets.token_hex((digits + 1) // 2)[:digits]

    def uuid(self) -> str:
        # In one read of the kernel's generator: every API request gets one.
        h = secrets.token_hex(16)
        return f"{h[:8]}-{h[8:12]}-4{h[13:16]}-{'89ab'[int(h[16], 16) & 3]}{h[17:20]}-{h[20:]}"


class SeededIds(_Choosing):
    """Repeatable ids for tests and simulations; never for production."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)

    def _choose(self, alphabet: str, count: int) -> str:
        return "".join(self._random.choice(alphabet) for _ in range(count))
