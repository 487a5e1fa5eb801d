"""Use cases of Secrets Manager: secrets, their versions and staging labels."""

import hmac
from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, Invalid, LimitExceeded, NotFound
from hutch.base.ids import IdSource
from hutch.control.vault import Vault
from hutch.model.record import Cause
from hutch.model.secret import Secret, SecretVersion
from hutch.rules import secrets as rules
from hutch.rules.tags import merged
from hutch.store import tables
from hutch.store.contract import IndexKey, Reader, Store, Tx

DAY_S = 86400
MIN_RECOVERY_DAYS, MAX_RECOVERY_DAYS, RECOVERY_DAYS = 7, 30, 30
REQUEST_REFUSED = "InvalidRequestException"


class SecretValue(msgspec.Struct, frozen=True, kw_only=True):
    """A version with its value in the clear: for an answer, never to be kept or logged."""

    secret: Secret
    version: SecretVersion
    value: bytes


class NewValue(msgspec.Struct, frozen=True, kw_only=True):
    """A value to store. `token` becomes the version's id; "" makes one."""

    value: bytes
    is_binary: bool
    token: str = ""


class SecretOps:
    """Secrets Manager's use cases. One instance per control plane."""

    def __init__(
        self, store: Store, vault: Vault, clock: Clock, ids: IdSource, *, region: str, account_id: str
    ) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock
        self._ids = ids
        self.arn_prefix = f"arn:aws:secretsmanager:{region}:{account_id}:secret:"

    def arn(self, secret: Secret) -> str:
        """The full ARN, with its six random characters."""
        return f"{self.arn_prefix}{secret.name}-{secret.suffix}"

    # -- making and changing

    async def create(
        self, cause: Cause, name: str, description: str, tags: dict[str, str], given: NewValue | None
    ) -> tuple[Secret, SecretVersion | None]:
        """A new secret, with its first value if one is given. The same token and value again: the same answer."""
        rules.check_name(name)

        def work(tx: Tx) -> tuple[Secret, SecretVersion | None]:
            before = self._live(tx.get(tables.SECRETS, name))
            if before is not None:
                return self._created_before(tx, before, given)
            _erase(tx, name)
            now = self._clock.now()
            secret = Secret(
                name=name,
                suffix=self._ids.hex(6),
                description=description,
                tags=tags,
                created_at=now,
                changed_at=now,
            )
            secret = tx.put(tables.SECRETS, secret)
            return secret, self._add(tx, secret, given, (rules.CURRENT,)) if given else None

        return await self._store.write(cause, work)

    def _created_before(
        self, tx: Tx, secret: Secret, given: NewValue | None
    ) -> tuple[Secret, SecretVersion | None]:
        if secret.deletion_at is not None:
            raise Invalid(
                "You can't create this secret because a secret with this name is already scheduled for deletion.",
                code=REQUEST_REFUSED,
            )
        if given and given.token:
            version = tx.get(tables.SECRET_VERSIONS, secret.name, given.token)
            if version is not None and self._same(secret, version, given):
                return secret, version
        raise AlreadyExists(f"The operation failed because the secret {secret.name} already exists.")

    async def put(
        self, cause: Cause, secret_id: str, given: NewValue, stages: Sequence[str]
    ) -> tuple[Secret, SecretVersion]:
        """A new version, to which these staging labels move."""

        def work(tx: Tx) -> tuple[Secret, SecretVersion]:
            secret = self._usable(tx, secret_id)
            version = self._add(tx, secret, given, tuple(stages) or (rules.CURRENT,))
            return self._touch(tx, secret), version

        return await self._store.write(cause, work)

    async def update(
        self, cause: Cause, secret_id: str, description: str | None, given: NewValue | None
    ) -> tuple[Secret, SecretVersion | None]:
        """Another description, another current value, or both."""

        def work(tx: Tx) -> tuple[Secret, SecretVersion | None]:
            secret = self._usable(tx, secret_id)
            version = self._add(tx, secret, given, (rules.CURRENT,)) if given else None
            if description is not None:
                secret = replace(secret, description=description)
            return self._touch(tx, secret), version

        return await self._store.write(cause, work)

    def _add(self, tx: Tx, secret: Secret, given: NewValue, stages: tuple[str, ...]) -> SecretVersion:
        """Store a version. The same token and value again changes nothing; the same with another is refused."""
        version_id = given.token or self._ids.uuid()
        before = tx.get(tables.SECRET_VERSIONS, secret.name, version_id)
        if before is not None:
            if self._same(secret, before, given):
                return before
            raise AlreadyExists(
                f"You can't use ClientRequestToken {version_id} because that value is already in use for a version "
                f"of secret {self.arn(secret)}."
            )
        others = tx.scan(tables.SECRET_VERSIONS, secret.name)
        if not others and rules.CURRENT not in stages:
            stages = (*stages, rules.CURRENT)
        version = SecretVersion(
            name=secret.name,
            version_id=version_id,
            is_binary=given.is_binary,
            sealed=self._vault.seal(given.value, self._belongs(secret, version_id)),
            created_at=self._clock.now(),
        )
        versions = [*others, version]
        for changed in rules.attach(versions, version_id, stages):
            stored = tx.put(tables.SECRET_VERSIONS, changed)
            version = stored if changed.version_id == version_id else version
        self._prune(tx, secret.name)
        return version

    @staticmethod
    def _prune(tx: Tx, name: str) -> None:
        versions = tx.scan(tables.SECRET_VERSIONS, name)
        for old in rules.surplus(versions):
            tx.delete(tables.SECRET_VERSIONS, name, old.version_id)
        if len(versions) - len(rules.surplus(versions)) > rules.MAX_VERSIONS:
            raise LimitExceeded(
                f"A secret can have at most {rules.MAX_VERSIONS} versions with staging labels."
            )

    async def move_stage(
        self, cause: Cause, secret_id: str, stage: str, remove_from: str, move_to: str
    ) -> Secret:
        """UpdateSecretVersionStage: attach, move or remove a staging label."""

        def work(tx: Tx) -> Secret:
            secret = self._usable(tx, secret_id)
            versions = tx.scan(tables.SECRET_VERSIONS, secret.name)
            holder = next((v.version_id for v in versions if stage in v.stages), "")
            if not remove_from and not move_to:
                raise _refused("You must provide RemoveFromVersionId, MoveToVersionId, or both.")
            for wanted in (remove_from, move_to):
                if wanted and wanted not in {v.version_id for v in versions}:
                    raise NotFound(f"Secrets Manager can't find the specified secret version: {wanted}.")
            if remove_from and remove_from != holder:
                raise _refused(
                    f"The staging label {stage} isn't attached to version {remove_from} of secret "
                    f"{self.arn(secret)}."
                )
            if move_to and holder not in ("", move_to) and not remove_from:
                raise _refused(
                    f"The parameter RemoveFromVersionId can't be empty. Staging label {stage} is currently attached "
                    f"to version {holder}, so you must explicitly reference that version in RemoveFromVersionId."
                )
            if not move_to and stage == rules.CURRENT:
                raise _refused(
                    f"You can only move staging label {rules.CURRENT} to a different secret version. It can't be "
                    f"completely removed."
                )
            if move_to:
                changed = rules.attach(versions, move_to, (stage,))
            else:
                held = next(v for v in versions if v.version_id == holder)
                changed = [replace(held, stages=tuple(s for s in held.stages if s != stage))]
            for version in changed:
                if len(version.stages) > rules.MAX_STAGES:
                    raise LimitExceeded(f"A version can have at most {rules.MAX_STAGES} staging labels.")
                tx.put(tables.SECRET_VERSIONS, version)
            return self._touch(tx, secret)

        return await self._store.write(cause, work)

    async def change_tags(
        self, cause: Cause, secret_id: str, more: dict[str, str], removed: Sequence[str] = ()
    ) -> None:
        """Add (or replace) and remove tags."""

        def change(secret: Secret) -> Secret:
            kept = {k: v for k, v in secret.tags.items() if k not in removed}
            return replace(secret, tags=merged(kept, more), changed_at=self._clock.now())

        await self._change(cause, secret_id, change)

    # -- the end of a secret

    async def delete(self, cause: Cause, secret_id: str, days: int | None, *, force: bool) -> Secret:
        """Mark for deletion after 7 to 30 days, or with `force` remove at once. The answer has `deletion_at`."""
        if force and days is not None:
            raise Invalid(
                "You can't use ForceDeleteWithoutRecovery in conjunction with RecoveryWindowInDays.",
                code="InvalidParameterException",
            )
        if days is not None and not MIN_RECOVERY_DAYS <= days <= MAX_RECOVERY_DAYS:
            raise Invalid(
                f"The RecoveryWindowInDays value must be between {MIN_RECOVERY_DAYS} and {MAX_RECOVERY_DAYS} days "
                f"(inclusive).",
                code="InvalidParameterException",
            )

        def work(tx: Tx) -> Secret:
            now = self._clock.now()
            try:
                secret = self._named(tx, secret_id)
            except NotFound:
                if not force or secret_id.startswith("arn:"):
                    raise
                # AWS answers this way, so that a forced deletion can be repeated.
                return Secret(
                    name=secret_id, suffix=self._ids.hex(6), created_at=now, changed_at=now, deletion_at=now
                )
            if force:
                _erase(tx, secret.name)
                return replace(secret, deleted_at=now, deletion_at=now)
            if secret.deletion_at is not None:
                raise _marked()
            gone_at = now + (days or RECOVERY_DAYS) * DAY_S
            return tx.put(tables.SECRETS, replace(secret, deleted_at=now, deletion_at=gone_at))

        return await self._store.write(cause, work)

    async def restore(self, cause: Cause, secret_id: str) -> Secret:
        """Take the mark for deletion away."""
        return await self._change(
            cause, secret_id, lambda s: replace(s, deleted_at=None, deletion_at=None), marked=True
        )

    async def expire(self, cause: Cause) -> int:
        """Remove for good what is marked and whose time has come; how many secrets."""

        def work(tx: Tx) -> int:
            now = self._clock.now()
            due = [
                s for s in tx.scan(tables.SECRETS, index="by_deletion", limit=1000) if not self._live(s, now)
            ]
            for secret in due:
                _erase(tx, secret.name)
            return len(due)

        return await self._store.write(cause, work)

    # -- reading

    async def value(self, cause: Cause, secret_id: str, version_id: str, stage: str) -> SecretValue:
        """GetSecretValue. The day of the access is written down, once a day."""
        with self._store.read() as reader:
            found = self.read_value(reader, secret_id, version_id, stage)
        today = self._clock.now() // DAY_S * DAY_S
        if found.secret.accessed_at != today or found.version.accessed_at != today:

            def work(tx: Tx) -> None:
                secret = tx.get(tables.SECRETS, found.secret.name)
                version = tx.get(tables.SECRET_VERSIONS, found.secret.name, found.version.version_id)
                if secret is not None and secret.suffix == found.secret.suffix:
                    tx.put(tables.SECRETS, replace(secret, accessed_at=today))
                    if version is not None:
                        tx.put(tables.SECRET_VERSIONS, replace(version, accessed_at=today))

            await self._store.write(cause, work)
        return found

    def read_value(self, reader: Reader, secret_id: str, version_id: str, stage: str) -> SecretValue:
        """A value by version id, staging label or both (neither: AWSCURRENT). Raises AWS's refusals."""
        secret = self._usable(reader, secret_id)
        wanted = stage or ("" if version_id else rules.CURRENT)
        versions = reader.scan(tables.SECRET_VERSIONS, secret.name)
        version = next(
            (
                v
                for v in versions
                if (not version_id or v.version_id == version_id) and (not wanted or wanted in v.stages)
            ),
            None,
        )
        if version is None:
            if version_id and stage and any(v.version_id == version_id for v in versions):
                raise _refused(
                    "You provided a VersionStage that is not associated to the provided VersionId."
                )
            how = f"VersionId: {version_id}" if version_id else f"staging label: {wanted}"
            raise NotFound(f"Secrets Manager can't find the specified secret value for {how}")
        value = self._vault.open(version.sealed, self._belongs(secret, version.version_id))
        return SecretValue(secret=secret, version=version, value=value)

    def describe(self, secret_id: str) -> tuple[Secret, list[SecretVersion]]:
        """A secret, also one that is marked for deletion, and its versions, oldest first."""
        with self._store.read() as reader:
            secret = self._named(reader, secret_id)
            versions = reader.scan(tables.SECRET_VERSIONS, secret.name)
        return secret, sorted(versions, key=lambda v: (v.created_at, v.version_id))

    def page(
        self,
        wanted: Callable[[Secret], bool],
        order: Callable[[Secret], tuple[str, ...]],
        after: IndexKey | None,
        limit: int,
        *,
        descending: bool,
    ) -> tuple[list[tuple[Secret, list[SecretVersion]]], bool]:
        """A page of secrets with their versions in an order that ends with the name; and whether there are more."""
        with self._store.read() as reader:
            found = [s for s in reader.scan(tables.SECRETS) if self._live(s) and wanted(s)]
            found.sort(key=order, reverse=descending)
            if after is not None:
                found = [s for s in found if (order(s) < after if descending else order(s) > after)]
            page = [(s, reader.scan(tables.SECRET_VERSIONS, s.name)) for s in found[:limit]]
        return page, len(found) > limit

    # -- inside

    def _belongs(self, secret: Secret, version_id: str) -> str:
        return f"{self.arn(secret)}:{version_id}"

    def _same(self, secret: Secret, version: SecretVersion, given: NewValue) -> bool:
        value = self._vault.open(version.sealed, self._belongs(secret, version.version_id))
        return version.is_binary == given.is_binary and hmac.compare_digest(value, given.value)

    def _live(self, secret: Secret | None, now: float | None = None) -> Secret | None:
        """None for a secret whose recovery window is over, whether or not it was removed already."""
        moment = self._clock.now() if now is None else now
        if secret is None or (secret.deletion_at is not None and secret.deletion_at <= moment):
            return None
        return secret

    def find(self, secret_id: str) -> Secret | None:
        """The secret that a name or ARN means."""
        with self._store.read() as reader:
            try:
                return self._named(reader, secret_id)
            except NotFound:
                return None

    def resource_of(self, secret_id: str) -> tuple[str, dict[str, str]]:
        """The ARN by which permissions for a secret are decided, also if there is none, and its tags."""
        found = self.find(secret_id)
        if found:
            return self.arn(found), found.tags
        return secret_id if secret_id.startswith("arn:") else self.arn_prefix + secret_id, {}

    def _named(self, reader: Reader, secret_id: str) -> Secret:
        for name, suffix in rules.name_candidates(secret_id, self.arn_prefix):
            secret = self._live(reader.get(tables.SECRETS, name))
            if secret is not None and suffix in ("", secret.suffix):
                return secret
        raise NotFound("Secrets Manager can't find the specified secret.")

    def _usable(self, reader: Reader, secret_id: str) -> Secret:
        secret = self._named(reader, secret_id)
        if secret.deletion_at is not None:
            raise _marked()
        return secret

    def _touch(self, tx: Tx, secret: Secret) -> Secret:
        return tx.put(tables.SECRETS, replace(secret, changed_at=self._clock.now()))

    async def _change(
        self, cause: Cause, secret_id: str, change: Callable[[Secret], Secret], *, marked: bool = False
    ) -> Secret:
        def work(tx: Tx) -> Secret:
            secret = self._named(tx, secret_id) if marked else self._usable(tx, secret_id)
            changed = change(secret)
            return secret if changed == secret else tx.put(tables.SECRETS, changed)

        return await self._store.write(cause, work)


def _erase(tx: Tx, name: str) -> None:
    """A secret and all its values. Also if there is none."""
    for version in tx.scan(tables.SECRET_VERSIONS, name):
        tx.delete(tables.SECRET_VERSIONS, name, version.version_id)
    tx.delete(tables.SECRETS, name)


def _refused(message: str) -> Invalid:
    return Invalid(message, code="InvalidParameterException")


def _marked() -> Invalid:
    return Invalid(
        "You can't perform this operation on the secret because it was marked for deletion.",
        code=REQUEST_REFUSED,
    )


def values_exist(store: Store) -> bool:
    """Whether anything is stored that only the vault's keys open."""
    with store.read() as reader:
        return bool(
            reader.scan(tables.SECRET_VERSIONS, limit=1)
            or reader.scan(tables.PARAMETER_VERSIONS, limit=1)
            or reader.scan(tables.OBJECTS, limit=1)
            or any(key.sealed for key in reader.scan(tables.ACCESS_KEYS))
        )
