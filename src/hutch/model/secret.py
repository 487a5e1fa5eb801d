"""Secrets Manager's secrets and Systems Manager's parameters. Values are only ever stored sealed."""

import msgspec

from hutch.model.record import Record


class Sealed(msgspec.Struct, frozen=True, kw_only=True):
    """An encrypted value: AES-256-GCM under the data key of this version. What it belongs to is authenticated too."""

    key_version: int
    nonce: bytes
    ciphertext: bytes


class Secret(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A secret without its values. Names are unique; `suffix` tells apart secrets that had the name one after another."""

    name: str
    suffix: str
    """Six random letters and digits at the end of the ARN."""
    description: str = ""
    tags: dict[str, str] = {}
    created_at: float
    changed_at: float
    accessed_at: float | None = None
    """The day (00:00 UTC) of the last time that a value was read."""
    deleted_at: float | None = None
    deletion_at: float | None = None
    """When it will be gone for good; None: not marked for deletion."""


class SecretVersion(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One value of a secret. Without stages it is deprecated, and the oldest such go when there are many."""

    name: str
    version_id: str
    stages: tuple[str, ...] = ()
    is_binary: bool = False
    sealed: Sealed
    created_at: float
    accessed_at: float | None = None


class Parameter(Record, frozen=True, kw_only=True, omit_defaults=True):
    """What all versions of a parameter have in common."""

    name: str
    newest: int
    """Number of the newest version, which is the current one."""
    tags: dict[str, str] = {}


class ParameterVersion(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One value of a parameter, with the settings that came with it."""

    name: str
    number: int
    type: str
    """String, StringList or SecureString; all are stored sealed."""
    tier: str = "Standard"
    description: str = ""
    sealed: Sealed
    labels: tuple[str, ...] = ()
    modified_at: float
    modified_by: str
