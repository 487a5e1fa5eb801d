"""Seals values before they are stored: AES-256-GCM under a data key that is kept beside the database, never in it.

The key file (mode 0600) holds all key versions; the newest seals, every one opens. So a key is rotated by adding a
version, and values that are written afterwards use it. Without its key file a platform's values are lost for good.
"""

import base64
import os
from pathlib import Path

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from hutch.base.errors import HutchError, StorageFull, Unavailable
from hutch.base.ids import IdSource
from hutch.model.secret import Sealed

FORMAT = 1
KEY_BYTES = 32
NONCE_BYTES = 12


class _Key(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    key: str
    """32 bytes, base64."""


class _KeyFile(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    keys: tuple[_Key, ...]


class Vault:
    """Seals and opens values. `belongs_to` names the record of a value: sealed for one record, it opens for no other."""

    def __init__(self, keys: dict[int, bytes], ids: IdSource) -> None:
        """`keys`: data keys of 32 bytes by version."""
        self._ciphers = {version: AESGCM(key) for version, key in keys.items()}
        self._newest = max(keys)
        self._ids = ids

    def seal(self, value: bytes, belongs_to: str) -> Sealed:
        """Encrypt under the newest key."""
        nonce = bytes.fromhex(self._ids.hex(2 * NONCE_BYTES))
        sealed = self._ciphers[self._newest].encrypt(nonce, value, belongs_to.encode())
        return Sealed(key_version=self._newest, nonce=nonce, ciphertext=sealed)

    def open(self, sealed: Sealed, belongs_to: str) -> bytes:
        """Decrypt. Raises `Unavailable` if the key file lacks the key, or the value was tampered with."""
        cipher = self._ciphers.get(sealed.key_version)
        if cipher is None:
            raise Unavailable(
                f"the data key file lacks key version {sealed.key_version}; restore secrets.key from a backup",
                code="DecryptionFailure",
            )
        try:
            return cipher.decrypt(sealed.nonce, sealed.ciphertext, belongs_to.encode())
        except InvalidTag:
            raise Unavailable(
                "a stored value can't be decrypted: the data key file is another platform's, or the database was "
                "changed; restore both from the same backup",
                code="DecryptionFailure",
            ) from None


def open_vault(path: Path, ids: IdSource, *, values_exist: bool) -> Vault:
    """The vault of a key file, which is made if there is none. Raises `HutchError` if it is damaged, or missing
    although values were sealed with it; `StorageFull` if it can't be written."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=_KeyFile)
        if document.format != FORMAT:
            raise ValueError(f"format {document.format} is not {FORMAT}")
        keys = {k.version: base64.b64decode(k.key, validate=True) for k in document.keys}
        if not keys or any(len(k) != KEY_BYTES for k in keys.values()):
            raise ValueError(f"a key has {KEY_BYTES} bytes")
        path.chmod(0o600)
    except FileNotFoundError:
        if values_exist:
            raise HutchError(
                f"{path} is missing, and secrets, parameters or access keys are stored that only its key opens; restore it from a "
                f"backup of the data directory"
            ) from None
        keys = {1: bytes.fromhex(ids.hex(2 * KEY_BYTES))}
        _write(path, keys)
    except (ValueError, msgspec.DecodeError) as error:
        raise HutchError(f"{path} is damaged ({error}); restore it from a backup") from None
    except OSError as error:
        raise HutchError(f"can't read {path}: {error.strerror}") from None
    return Vault(keys, ids)


def _write(path: Path, keys: dict[int, bytes]) -> None:
    """Durable before anything is sealed with it."""
    document = _KeyFile(
        format=FORMAT,
        keys=tuple(_Key(version=v, key=base64.b64encode(k).decode()) for v, k in sorted(keys.items())),
    )
    temporary = path.with_suffix(".tmp")
    try:
        temporary.unlink(missing_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as f:
            f.write(msgspec.json.encode(document))
            f.flush()
            os.fsync(f.fileno())
        temporary.rename(path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise StorageFull(f"can't write {path}: {error.strerror}") from None
