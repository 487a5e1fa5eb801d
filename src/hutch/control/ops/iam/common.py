"""What all IAM use cases share: finding things in AWS's words, limits, inline and attached policies."""

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from msgspec.structs import replace

from hutch.base.errors import AlreadyExists, HutchError, InUse, Invalid, LimitExceeded, NotFound
from hutch.control.ops.iam.managed import find_managed_policy
from hutch.model.iam import Entity, InstanceProfile, ManagedPolicy, Role, User
from hutch.model.record import Record
from hutch.rules.iam.arns import parse_policy_arn
from hutch.rules.iam.document import parse_policy
from hutch.store import tables
from hutch.store.contract import IndexKey, Reader, Table, Tx

MAX_ATTACHED = 20
MAX_INLINE_CHARACTERS = {"role": 10_240, "user": 2_048}
MAX_POLICY_CHARACTERS = 6_144
MAX_TRUST_CHARACTERS = 4_096
MAX_TAGS = 50
_PATH = re.compile(r"/|/[!-~]{1,510}/")
_NAME = re.compile(r"[A-Za-z0-9_+=,.@-]+")

E = TypeVar("E", bound=Entity)
N = TypeVar("N", User, Role, InstanceProfile)


def no_such_entity(message: str) -> NotFound:
    return NotFound(message, code="NoSuchEntity")


def invalid_input(message: str) -> Invalid:
    return Invalid(message, code="InvalidInput")


def limit(message: str) -> LimitExceeded:
    return LimitExceeded(message, code="LimitExceeded")


def delete_conflict(message: str) -> InUse:
    return InUse(message, code="DeleteConflict")


def taken(message: str) -> HutchError:
    return AlreadyExists(message, code="EntityAlreadyExists")


def unmodifiable(role: str) -> Invalid:
    return Invalid(
        f"Cannot perform the operation on the protected role '{role}' - this role is only modifiable by AWS",
        code="UnmodifiableEntity",
    )


def get_role(reader: Reader, name: str) -> Role:
    """A role by name. Raises `NotFound`."""
    return _get(reader, tables.IAM_ROLES, name, f"The role with name {name} cannot be found.")


def get_user(reader: Reader, name: str) -> User:
    """A user by name. Raises `NotFound`."""
    return _get(reader, tables.IAM_USERS, name, f"The user with name {name} cannot be found.")


def get_profile(reader: Reader, name: str) -> InstanceProfile:
    """An instance profile by name. Raises `NotFound`."""
    return _get(reader, tables.INSTANCE_PROFILES, name, f"Instance Profile {name} cannot be found.")


def _get(reader: Reader, table: Table[N], name: str, words: str) -> N:
    found = reader.get(table, name.lower())
    if found is None or found.name != name:
        raise no_such_entity(words)
    return found


def get_policy(reader: Reader, account_id: str, arn: str, words: str = "") -> ManagedPolicy:
    """A managed policy by ARN. Raises `NotFound` (in `words`), or `Invalid` for what is no ARN."""
    if parse_policy_arn(arn) is None:
        raise invalid_input(f"ARN {arn[:200]} is not valid.")
    found = find_managed_policy(reader, account_id, arn)
    if found is None:
        raise no_such_entity(words or f"Policy {arn} was not found.")
    return found


def check_name_and_path(name: str, path: str) -> None:
    """The model's own limits, whose patterns are too costly for the gateway."""
    if not _NAME.fullmatch(name):
        raise Invalid(
            "The specified value for name is invalid. It must contain only alphanumeric characters and/or the "
            "following: +=,.@_-",
            code="ValidationError",
        )
    if not _PATH.fullmatch(path):
        raise Invalid(
            "The specified value for path is invalid. It must begin and end with / and contain only alphanumeric "
            "characters and/or / characters.",
            code="ValidationError",
        )


def check_boundary(reader: Reader, account_id: str, arn: str) -> str:
    """The ARN of a permissions boundary, which must exist; "" is none."""
    if arn:
        get_policy(reader, account_id, arn, f"Scope ARN: {arn} does not exist or is not attachable.")
    return arn


def tagged(before: Mapping[str, str], more: Mapping[str, str]) -> dict[str, str]:
    """Tags after adding some. Keys are told apart whatever their case."""
    merged = dict(before)
    for key, value in more.items():
        same = next((k for k in merged if k.lower() == key.lower()), key)
        merged.pop(same, None)
        merged[key] = value
    if len(merged) > MAX_TAGS:
        raise limit(f"The number of tags has reached the maximum limit: {MAX_TAGS}.")
    return merged


def untagged(before: Mapping[str, str], keys: list[str]) -> dict[str, str]:
    """Tags without some."""
    gone = {k.lower() for k in keys}
    return {k: v for k, v in before.items() if k.lower() not in gone}


def page_of(
    reader: Reader, table: Table[Any], after: str | None, count: int, wanted: Callable[[Any], bool]
) -> tuple[list[Any], bool]:
    """A page of records in order of their names, from behind the name `after`, and whether there are more."""
    page: list[Any] = []
    start: IndexKey | None = (after,) if after is not None else None
    while True:
        batch: list[Record] = reader.scan(table, after=start, limit=500)
        for record in batch:
            if wanted(record):
                if len(page) == count:
                    return page, True
                page.append(record)
        if len(batch) < 500:
            return page, False
        start = table.key(batch[-1])


class PolicyHolder:
    """Inline and attached policies of a kind of entity (`kind`: role or user)."""

    def __init__(self, kind: str, table: Table[Any], account_id: str) -> None:
        self._kind = kind
        self._table = table
        self._account_id = account_id

    def put_inline(self, tx: Tx, entity: E, name: str, document: str) -> None:
        """Add or replace an inline policy. Raises `Invalid`, `LimitExceeded`."""
        parse_policy(document)
        inline = {**entity.inline, name: document}
        most = MAX_INLINE_CHARACTERS[self._kind]
        if sum(size_of(d) for d in inline.values()) > most:
            raise limit(f"Maximum policy size of {most} bytes exceeded for {self._kind} {entity.name}")
        self._store(tx, entity, replace(entity, inline=inline))

    def inline(self, entity: Entity, name: str) -> str:
        """An inline policy's document. Raises `NotFound`."""
        if name not in entity.inline:
            raise no_such_entity(f"The {self._kind} policy with name {name} cannot be found.")
        return entity.inline[name]

    def delete_inline(self, tx: Tx, entity: E, name: str) -> None:
        self.inline(entity, name)
        kept = {k: v for k, v in entity.inline.items() if k != name}
        self._store(tx, entity, replace(entity, inline=kept))

    def attach(self, tx: Tx, entity: E, arn: str) -> None:
        """Attaching what is attached changes nothing."""
        policy = get_policy(tx, self._account_id, arn, f"Policy {arn} does not exist or is not attachable.")
        if policy.path.startswith("/aws-service-role/"):
            raise Invalid(
                "Cannot attach a Service Role Policy to a Customer Role.", code="PolicyNotAttachable"
            )
        if arn in entity.attached:
            return
        if len(entity.attached) >= MAX_ATTACHED:
            raise limit(f"Cannot exceed quota for PoliciesPer{self._kind.capitalize()}: {MAX_ATTACHED}")
        self._store(tx, entity, replace(entity, attached=(*entity.attached, arn)))

    def detach(self, tx: Tx, entity: E, arn: str) -> None:
        if parse_policy_arn(arn) is None:
            raise invalid_input(f"ARN {arn[:200]} is not valid.")
        if arn not in entity.attached:
            raise no_such_entity(f"Policy {arn} was not found.")
        self._store(tx, entity, replace(entity, attached=tuple(a for a in entity.attached if a != arn)))

    def attached(self, reader: Reader, entity: Entity, path_prefix: str) -> list[ManagedPolicy]:
        """The attached policies under a path, in order of their names."""
        found = (find_managed_policy(reader, self._account_id, arn) for arn in entity.attached)
        return sorted((p for p in found if p and p.path.startswith(path_prefix)), key=lambda p: p.name)

    def check_free(self, entity: Entity) -> None:
        """Raises `InUse` while the entity has policies."""
        if entity.attached:
            raise delete_conflict("Cannot delete entity, must detach all policies first.")
        if entity.inline:
            raise delete_conflict("Cannot delete entity, must delete policies first.")

    def _store(self, tx: Tx, before: Entity, after: Entity) -> None:
        if after != before:
            tx.put(self._table, after)


def size_of(document: str) -> int:
    """A document's size as quotas count it: without white space."""
    return sum(1 for c in document if not c.isspace())


def under(path_prefix: str) -> Callable[[Any], bool]:
    """A filter: records whose path starts so."""
    return lambda record: bool(record.path.startswith(path_prefix))
