"""Use cases of instance profiles."""

from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.control.ops.iam import common
from hutch.control.ops.iam.common import get_profile, get_role, no_such_entity
from hutch.model.iam import InstanceProfile, Role
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx


class ProfileOps:
    """Instance profile use cases. A profile holds at most one role."""

    def __init__(self, store: Store, clock: Clock, ids: IdSource) -> None:
        self._store = store
        self._clock = clock
        self._ids = ids

    async def create(self, cause: Cause, name: str, path: str, tags: dict[str, str]) -> InstanceProfile:
        common.check_name_and_path(name, path)

        def work(tx: Tx) -> InstanceProfile:
            if tx.get(tables.INSTANCE_PROFILES, name.lower()):
                raise common.taken(f"Instance Profile {name} already exists.")
            return tx.put(
                tables.INSTANCE_PROFILES,
                InstanceProfile(
                    name=name,
                    profile_id=self._ids.access_key_id("AIPA"),
                    path=path,
                    created_at=self._clock.now(),
                    tags=common.tagged({}, tags),
                ),
            )

        return await self._store.write(cause, work)

    def get(self, name: str) -> tuple[InstanceProfile, list[Role]]:
        with self._store.read() as reader:
            profile = get_profile(reader, name)
            return profile, _roles(reader, profile)

    def page(
        self, path_prefix: str, role: str, after: str | None, count: int
    ) -> tuple[list[tuple[InstanceProfile, list[Role]]], bool]:
        """A page of profiles under a path; with `role`, of those that hold it."""
        with self._store.read() as reader:
            if role:
                get_role(reader, role)
            page, more = common.page_of(
                reader,
                tables.INSTANCE_PROFILES,
                after,
                count,
                lambda p: p.path.startswith(path_prefix) and (not role or role in p.roles),
            )
            return [(p, _roles(reader, p)) for p in page], more

    async def add_role(self, cause: Cause, name: str, role: str) -> None:
        def work(tx: Tx) -> None:
            profile = get_profile(tx, name)
            found = get_role(tx, role)
            if found.service:
                raise common.unmodifiable(found.name)
            if profile.roles:
                raise common.limit("Cannot exceed quota for InstanceSessionsPerInstanceProfile: 1")
            tx.put(tables.INSTANCE_PROFILES, replace(profile, roles=(role,)))

        await self._store.write(cause, work)

    async def remove_role(self, cause: Cause, name: str, role: str) -> None:
        def work(tx: Tx) -> None:
            profile = get_profile(tx, name)
            if role not in profile.roles:
                raise no_such_entity(f"The role with name {role} cannot be found.")
            tx.put(tables.INSTANCE_PROFILES, replace(profile, roles=()))

        await self._store.write(cause, work)

    async def delete(self, cause: Cause, name: str) -> None:
        def work(tx: Tx) -> None:
            if get_profile(tx, name).roles:
                raise common.delete_conflict(
                    "Cannot delete entity, must remove roles from instance profile first."
                )
            tx.delete(tables.INSTANCE_PROFILES, name.lower())

        await self._store.write(cause, work)


def _roles(reader: Reader, profile: InstanceProfile) -> list[Role]:
    found = (reader.get(tables.IAM_ROLES, name.lower()) for name in profile.roles)
    return [r for r in found if r]
