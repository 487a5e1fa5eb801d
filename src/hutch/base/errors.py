"""The tree of errors that hutch raises on purpose. Kinds, not strings: each edge maps a kind once.

    HutchError                     everything below
    ├── Rejected                   the caller's fault; nothing was changed
    │   ├── Invalid                malformed or contradictory input
    │   ├── NotFound               the named thing does not exist
    │   ├── AlreadyExists          the name is taken, with another content
    │   ├── InUse                  it can't be done while something else needs the thing
    │   ├── LimitExceeded          a documented limit would be passed
    │   ├── Conflict               same idempotency token, another request
    │   ├── AccessDenied           the caller is known, and may not
    │   └── NotServed              hutch does not do this (yet): says so instead of pretending
    ├── Unavailable                nobody's fault; the same call may work later
    │   ├── StaleWrite             the record changed since it was read (optimistic version)
    │   └── StorageFull            the data directory can't take more, or is read-only
    └── HostFault                  something on a host failed; carries a `Cause`
        (in `hutch.host`: image, network, driver faults)

A message names the one tested cause and, where there is one, the fix. It never holds a secret.
"""


class HutchError(Exception):
    """Base of all errors that are part of hutch's contracts."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        """`code`, if given, is the AWS error code to answer with instead of the kind's usual one."""
        super().__init__(message)
        self.message = message
        self.code = code


class Rejected(HutchError):
    """The request can't be carried out as it is; nothing was changed."""


class Invalid(Rejected):
    """Malformed or contradictory input."""


class NotFound(Rejected):
    """The named thing does not exist."""


class AlreadyExists(Rejected):
    """The name is taken by something else."""


class InUse(Rejected):
    """Something else still needs the thing."""


class LimitExceeded(Rejected):
    """A documented limit would be passed."""


class Conflict(Rejected):
    """An idempotency token was used before with a different request."""

    def __init__(self, message: str, *, resource_ids: tuple[str, ...] = (), code: str | None = None) -> None:
        super().__init__(message, code=code)
        self.resource_ids = resource_ids


class AccessDenied(Rejected):
    """The caller is known, and may not do this."""


class NotServed(Rejected):
    """hutch does not serve this; see docs/reference/api-coverage.md."""


class Unavailable(HutchError):
    """The same call may work later."""


class StaleWrite(Unavailable):
    """A record changed between reading and writing it."""


class StorageFull(Unavailable):
    """The data directory is full or read-only."""
