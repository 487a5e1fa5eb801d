"""What every stored noun has in common."""

import msgspec


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A stored document. Frozen: change one with `msgspec.structs.replace` and put it back.

    `version` belongs to the store: 0 means never stored; each put raises it by one and is refused as stale if
    the stored version is not the one this copy was read at (optimistic locking).
    """

    version: int = 0


class Cause(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who or what made a change; every entry of the change feed carries one.

    `id` is the API request id, or the id of the report or plan that led to the change; `actor` is a principal's
    ARN, `host:<id>` or `controller:<name>`; `action` is the operation or step in a few words.
    """

    id: str
    actor: str
    action: str
