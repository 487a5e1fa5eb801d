"""Use cases of users and their access keys."""

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.control.identity import sealed_key
from hutch.control.ops.iam import common
from hutch.control.ops.iam.common import PolicyHolder, get_user, no_such_entity
from hutch.control.vault import Vault
from hutch.model.iam import AccessKey, Caller, ManagedPolicy, User
from hutch.model.record import Cause
from hutch.rules.iam.arns import entity_arn
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx

MAX_KEYS_PER_USER = 2
ROOT_NAME = "root"
"""How answers call the account's root, which has no name."""


class KeyOwner(msgspec.Struct, frozen=True, kw_only=True):
    """Whose access keys are meant: a user, or root."""

    name: str
    arn: str
    user_id: str


class UserOps:
    """User use cases. Refusals carry AWS's codes and words."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource, vault: Vault, *, account_id: str) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids
        self._vault = vault
        self._account_id = account_id
        self._policies = PolicyHolder("user", tables.IAM_USERS, account_id)

    async def create(
        self, cause: Cause, name: str, path: str, boundary_arn: str, tags: dict[str, str]
    ) -> User:
        """A user that nobody has by this name yet."""
        common.check_name_and_path(name, path)

        def work(tx: Tx) -> User:
            if tx.get(tables.IAM_USERS, name.lower()):
                raise common.taken(f"User with name {name} already exists.")
            return tx.put(
                tables.IAM_USERS,
                User(
                    name=name,
                    entity_id=self._ids.access_key_id("AIDA"),
                    path=path,
                    created_at=self._clock.now(),
                    boundary_arn=common.check_boundary(tx, self._account_id, boundary_arn),
                    tags=common.tagged({}, tags),
                ),
            )

        return await self._store.write(cause, work)

    def get(self, name: str) -> User:
        with self._store.read() as reader:
            return get_user(reader, name)

    def page(self, path_prefix: str, after: str | None, count: int) -> tuple[list[User], bool]:
        with self._store.read() as reader:
            return common.page_of(reader, tables.IAM_USERS, after, count, common.under(path_prefix))

    async def delete(self, cause: Cause, name: str) -> None:
        """Refused while it has policies or access keys."""

        def work(tx: Tx) -> None:
            user = get_user(tx, name)
            if _keys(tx, user.entity_id):
                raise common.delete_conflict("Cannot delete entity, must delete access keys first.")
            self._policies.check_free(user)
            tx.delete(tables.IAM_USERS, name.lower())

        await self._store.write(cause, work)

    async def tag(self, cause: Cause, name: str, tags: dict[str, str]) -> None:
        def work(tx: Tx) -> None:
            user = get_user(tx, name)
            tx.put(tables.IAM_USERS, replace(user, tags=common.tagged(user.tags, tags)))

        await self._store.write(cause, work)

    async def untag(self, cause: Cause, name: str, keys: list[str]) -> None:
        def work(tx: Tx) -> None:
            user = get_user(tx, name)
            tx.put(tables.IAM_USERS, replace(user, tags=common.untagged(user.tags, keys)))

        await self._store.write(cause, work)

    # -- policies

    async def put_policy(self, cause: Cause, name: str, policy: str, document: str) -> None:
        await self._store.write(
            cause, lambda tx: self._policies.put_inline(tx, get_user(tx, name), policy, document)
        )

    def policy(self, name: str, policy: str) -> str:
        return self._policies.inline(self.get(name), policy)

    async def delete_policy(self, cause: Cause, name: str, policy: str) -> None:
        await self._store.write(
            cause, lambda tx: self._policies.delete_inline(tx, get_user(tx, name), policy)
        )

    async def attach(self, cause: Cause, name: str, arn: str) -> None:
        await self._store.write(cause, lambda tx: self._policies.attach(tx, get_user(tx, name), arn))

    async def detach(self, cause: Cause, name: str, arn: str) -> None:
        await self._store.write(cause, lambda tx: self._policies.detach(tx, get_user(tx, name), arn))

    def attached(self, name: str, path_prefix: str) -> list[ManagedPolicy]:
        with self._store.read() as reader:
            return self._policies.attached(reader, get_user(reader, name), path_prefix)

    # -- access keys

    def key_owner(self, reader: Reader, caller: Caller, name: str) -> KeyOwner:
        """The user of this name; without one, whoever is calling."""
        if name:
            user = get_user(reader, name)
        elif caller.is_root:
            return KeyOwner(name=ROOT_NAME, arn=caller.arn, user_id=self._account_id)
        else:
            user = get_user(reader, caller.name)
        arn = entity_arn(self._account_id, "user", user.path, user.name)
        return KeyOwner(name=user.name, arn=arn, user_id=user.entity_id)

    async def create_key(self, cause: Cause, caller: Caller, name: str) -> tuple[KeyOwner, AccessKey, str]:
        """A new key with its secret, which is told this once."""

        def work(tx: Tx) -> tuple[KeyOwner, AccessKey, str]:
            owner = self.key_owner(tx, caller, name)
            if len(_keys(tx, owner.user_id)) >= MAX_KEYS_PER_USER:
                raise common.limit(f"Cannot exceed quota for AccessKeysPerUser: {MAX_KEYS_PER_USER}")
            secret = self._ids.secret_key()
            key = AccessKey(
                access_key_id=self._ids.access_key_id(),
                principal_arn=owner.arn,
                user_id=owner.user_id,
                created_at=self._clock.now(),
            )
            return owner, tx.put(tables.ACCESS_KEYS, sealed_key(self._vault, key, secret)), secret

        return await self._store.write(cause, work)

    def keys(self, caller: Caller, name: str) -> tuple[KeyOwner, list[AccessKey]]:
        with self._store.read() as reader:
            owner = self.key_owner(reader, caller, name)
            return owner, _keys(reader, owner.user_id)

    async def set_key_status(self, cause: Cause, caller: Caller, name: str, key_id: str, status: str) -> None:
        """Active or Inactive; counts from the next request on."""

        def work(tx: Tx) -> None:
            key = _key_of(tx, self.key_owner(tx, caller, name), key_id)
            if key.status != status:
                tx.put(tables.ACCESS_KEYS, replace(key, status=status))

        await self._store.write(cause, work)

    async def delete_key(self, cause: Cause, caller: Caller, name: str, key_id: str) -> None:
        def work(tx: Tx) -> None:
            key = _key_of(tx, self.key_owner(tx, caller, name), key_id)
            tx.delete(tables.ACCESS_KEYS, key.access_key_id)

        await self._store.write(cause, work)


def _keys(reader: Reader, user_id: str) -> list[AccessKey]:
    return [k for k in reader.scan(tables.ACCESS_KEYS) if k.user_id == user_id]


def _key_of(reader: Reader, owner: KeyOwner, key_id: str) -> AccessKey:
    key = reader.get(tables.ACCESS_KEYS, key_id)
    if key is None or key.user_id != owner.user_id:
        raise no_such_entity(f"The Access Key with id {key_id} cannot be found.")
    return key
