"""Use cases of Parameter Store: parameters, their versions, labels and tags."""

from collections.abc import Callable, Sequence

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, HutchError, Invalid, LimitExceeded, NotFound
from hutch.control.vault import Vault
from hutch.model.record import Cause
from hutch.model.secret import Parameter, ParameterVersion, Sealed
from hutch.rules import parameters as rules
from hutch.rules.parameters import Selection, parameter_arn, parse_selection
from hutch.rules.tags import merged
from hutch.store import tables
from hutch.store.contract import Reader, Store, Tx

INVALID_RESOURCE = "InvalidResourceId"


class NewParameter(msgspec.Struct, frozen=True, kw_only=True):
    """What PutParameter gives; "" for what it leaves out."""

    name: str
    value: str
    type: str = ""
    tier: str = ""
    description: str | None = None
    overwrite: bool = False
    tags: dict[str, str] = {}


class ParameterOps:
    """Parameter Store's use cases. One instance per control plane."""

    def __init__(self, store: Store, vault: Vault, clock: Clock, *, region: str, account_id: str) -> None:
        self._store = store
        self._vault = vault
        self._clock = clock
        self.arn_prefix = f"arn:aws:ssm:{region}:{account_id}:parameter"

    def arn(self, name: str) -> str:
        """The ARN of a parameter."""
        return parameter_arn(self.arn_prefix, name)

    def resource_of(self, name: str) -> tuple[str, dict[str, str]]:
        """The ARN by which permissions for a parameter (name or ARN) are decided, also if there is none, and its tags."""
        selection = self._select(name)
        with self._store.read() as reader:
            found = self._record(reader, selection) if selection.name else None
        arn = self.arn(found.name if found else selection.name) if selection.name else name
        return arn, found.tags if found else {}

    def open(self, version: ParameterVersion) -> str:
        """A version's value in the clear: for an answer, never to be kept or logged."""
        return self._vault.open(version.sealed, _belongs(version.name, version.number)).decode()

    # -- changing

    async def put(self, cause: Cause, given: NewParameter) -> ParameterVersion:
        """The first version of a parameter, or with `overwrite` its next one."""
        rules.check_name(given.name)
        if given.overwrite and given.tags:
            raise Invalid(
                "Invalid request: tags and overwrite can't be used together. To create a parameter with tags, please "
                "remove overwrite flag. To update tags for an existing parameter, please use AddTagsToResource or "
                "RemoveTagsFromResource."
            )

        def work(tx: Tx) -> ParameterVersion:
            before = tx.get(tables.PARAMETERS, given.name)
            if before is not None and not given.overwrite:
                raise AlreadyExists(
                    "The parameter already exists. To overwrite this value, set the overwrite option in the request "
                    "to true."
                )
            if before is None and not given.type:
                raise Invalid("A parameter type is required when you create a parameter.")
            record = before or Parameter(name=given.name, newest=0, tags=given.tags)
            last = _version(tx, record, record.newest) if before else None
            version = self._next(record, last, given, cause.actor)
            tx.put(tables.PARAMETERS, replace(record, newest=version.number))
            stored = tx.put(tables.PARAMETER_VERSIONS, version)
            self._prune(tx, given.name)
            return stored

        return await self._store.write(cause, work)

    def _next(
        self, record: Parameter, last: ParameterVersion | None, given: NewParameter, actor: str
    ) -> ParameterVersion:
        number = record.newest + 1
        description = given.description
        return ParameterVersion(
            name=record.name,
            number=number,
            type=given.type or (last.type if last else ""),
            tier=rules.tier_for(given.value, given.tier, last.tier if last else None),
            description=description if description is not None else (last.description if last else ""),
            sealed=self._seal(given, number),
            modified_at=self._clock.now(),
            modified_by=actor,
        )

    def _seal(self, given: NewParameter, number: int) -> Sealed:
        return self._vault.seal(given.value.encode(), _belongs(given.name, number))

    @staticmethod
    def _prune(tx: Tx, name: str) -> None:
        """The oldest version goes beyond the limit; not one with a label, which somebody relies on."""
        versions = tx.scan(tables.PARAMETER_VERSIONS, name)
        if len(versions) <= rules.MAX_VERSIONS:
            return
        oldest = versions[0]
        if oldest.labels:
            raise LimitExceeded(
                f"You attempted to create a new version of {name} by calling the PutParameter API with the overwrite "
                f"flag. Version {oldest.number}, the oldest version, can't be deleted because it has a label "
                f"associated with it. Move the label to another version of the parameter, and try again.",
                code="ParameterMaxVersionLimitExceeded",
            )
        tx.delete(tables.PARAMETER_VERSIONS, name, f"{oldest.number:010d}")

    async def delete(self, cause: Cause, names: Sequence[str]) -> tuple[list[str], list[str]]:
        """Remove parameters with all versions: (removed, not found)."""

        def work(tx: Tx) -> tuple[list[str], list[str]]:
            gone, missing = [], []
            for name in names:
                record = self._record(tx, self._select(name))
                if record is None:
                    missing.append(name)
                    continue
                for version in tx.scan(tables.PARAMETER_VERSIONS, record.name):
                    tx.delete(tables.PARAMETER_VERSIONS, record.name, f"{version.number:010d}")
                tx.delete(tables.PARAMETERS, record.name)
                gone.append(name)
            return gone, missing

        return await self._store.write(cause, work)

    async def label(
        self, cause: Cause, name: str, number: int | None, labels: Sequence[str]
    ) -> tuple[int, list[str]]:
        """Move labels to a version (None: the newest); its number and the labels that are not allowed."""
        good = [x for x in labels if rules.is_label(x)]

        def work(tx: Tx) -> int:
            record = self._existing(tx, name)
            target = _version(tx, record, record.newest if number is None else number)
            if target is None:
                raise _no_version(name, str(number))
            for version in tx.scan(tables.PARAMETER_VERSIONS, record.name):
                kept = tuple(x for x in version.labels if x not in good)
                if version.number == target.number:
                    kept = (*version.labels, *(x for x in good if x not in version.labels))
                if len(kept) > rules.MAX_LABELS:
                    raise LimitExceeded(
                        f"A parameter version can have at most {rules.MAX_LABELS} labels.",
                        code="ParameterVersionLabelLimitExceeded",
                    )
                if kept != version.labels:
                    tx.put(tables.PARAMETER_VERSIONS, replace(version, labels=kept))
            return target.number

        return await self._store.write(cause, work), [x for x in labels if x not in good]

    async def unlabel(
        self, cause: Cause, name: str, number: int, labels: Sequence[str]
    ) -> tuple[list[str], list[str]]:
        """Take labels from a version: (removed, not on it)."""

        def work(tx: Tx) -> tuple[list[str], list[str]]:
            version = _version(tx, self._existing(tx, name), number)
            if version is None:
                raise _no_version(name, str(number))
            removed = [x for x in labels if x in version.labels]
            if removed:
                kept = tuple(x for x in version.labels if x not in removed)
                tx.put(tables.PARAMETER_VERSIONS, replace(version, labels=kept))
            return removed, [x for x in labels if x not in version.labels]

        return await self._store.write(cause, work)

    async def change_tags(
        self, cause: Cause, name: str, more: dict[str, str], removed: Sequence[str] = ()
    ) -> None:
        """Add (or replace) and remove tags."""

        def work(tx: Tx) -> None:
            record = self._tagged(tx, name)
            tags = merged({k: v for k, v in record.tags.items() if k not in removed}, more)
            if tags != record.tags:
                tx.put(tables.PARAMETERS, replace(record, tags=tags))

        await self._store.write(cause, work)

    def tags(self, name: str) -> dict[str, str]:
        """A parameter's tags."""
        with self._store.read() as reader:
            return self._tagged(reader, name).tags

    # -- reading

    def get(self, name: str) -> tuple[ParameterVersion, Selection]:
        """A version by `name`, `name:number`, `name:label` or ARN. Raises `NotFound`."""
        with self._store.read() as reader:
            return self.read(reader, name)

    def read(self, reader: Reader, name: str) -> tuple[ParameterVersion, Selection]:
        """As `get`, in a snapshot that is open already."""
        selection = self._select(name)
        record = self._record(reader, selection)
        if record is None:
            raise _no_parameter(name)
        if selection.label:
            versions = reader.scan(tables.PARAMETER_VERSIONS, record.name)
            labelled = next((v for v in versions if selection.label in v.labels), None)
            if labelled is None:
                raise _no_version(record.name, selection.label)
            return labelled, selection
        number = record.newest if selection.number is None else selection.number
        version = _version(reader, record, number)
        if version is None:
            raise _no_version(record.name, str(number))
        return version, selection

    def get_many(self, names: Sequence[str]) -> tuple[list[tuple[ParameterVersion, Selection]], list[str]]:
        """(found, names of those that were not), each in the order asked for."""
        found, missing = [], []
        with self._store.read() as reader:
            for name in names:
                try:
                    found.append(self.read(reader, name))
                except NotFound:
                    missing.append(name)
        return found, missing

    def page(
        self,
        wanted: Callable[[Parameter, ParameterVersion], bool],
        after: tuple[str, ...] | None,
        limit: int,
    ) -> tuple[list[ParameterVersion], bool]:
        """Current versions in order of name, and whether there are more."""
        page: list[ParameterVersion] = []
        with self._store.read() as reader:
            for record in reader.scan(tables.PARAMETERS, after=after):
                version = _version(reader, record, record.newest)
                if version is not None and wanted(record, version):
                    if len(page) == limit:
                        return page, True
                    page.append(version)
        return page, False

    def history(
        self, name: str, after: tuple[str, ...] | None, limit: int
    ) -> tuple[list[ParameterVersion], bool]:
        """All versions, oldest first, and whether there are more."""
        with self._store.read() as reader:
            record = self._existing(reader, name)
            found = reader.scan(tables.PARAMETER_VERSIONS, record.name, after=after, limit=limit + 1)
        return found[:limit], len(found) > limit

    # -- inside

    def _select(self, name: str) -> Selection:
        return parse_selection(name, self.arn_prefix)

    @staticmethod
    def _record(reader: Reader, selection: Selection) -> Parameter | None:
        """An ARN does not say whether a name without levels starts with a slash: both are looked for."""
        found = reader.get(tables.PARAMETERS, selection.name)
        if found is None and selection.from_arn and "/" not in selection.name:
            found = reader.get(tables.PARAMETERS, f"/{selection.name}")
        return found

    def _existing(self, reader: Reader, name: str) -> Parameter:
        record = self._record(reader, self._select(name))
        if record is None:
            raise _no_parameter(name)
        return record

    def _tagged(self, reader: Reader, name: str) -> Parameter:
        record = self._record(reader, self._select(name))
        if record is None:
            raise NotFound(f"The resource ID {name[:200]!r} isn't a parameter.", code=INVALID_RESOURCE)
        return record


def _version(reader: Reader, record: Parameter, number: int) -> ParameterVersion | None:
    return reader.get(tables.PARAMETER_VERSIONS, record.name, f"{number:010d}") if number > 0 else None


def _belongs(name: str, number: int) -> str:
    return f"parameter:{name}:{number}"


def _no_parameter(name: str) -> HutchError:
    return NotFound(f"Parameter {name[:200]} not found.", code="ParameterNotFound")


def _no_version(name: str, selector: str) -> HutchError:
    return NotFound(
        f"Systems Manager could not find version {selector[:100]} of {name[:200]}. Verify the version and try again.",
        code="ParameterVersionNotFound",
    )
