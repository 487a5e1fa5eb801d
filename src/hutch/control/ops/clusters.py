"""Use cases of clusters, their capacity providers and account settings."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.control.ops.tasks import active_cluster
from hutch.model.cluster import AccountSetting, Cluster
from hutch.model.record import Cause
from hutch.model.task import RUNNING
from hutch.rules.arns import short_name
from hutch.rules.capacity_providers import check_bases
from hutch.store import tables
from hutch.store.contract import IndexKey, Reader, Store, Tx

_ON_THEIR_WAY = ("PROVISIONING", "PENDING", "ACTIVATING")
_NAME = re.compile(r"[A-Za-z0-9_-]{1,255}")
PROVIDERS = ("FARGATE", "FARGATE_SPOT")
SETTING_NAMES = ("containerInsights",)
ACCOUNT_SETTING_DEFAULTS = {
    "serviceLongArnFormat": "enabled",
    "taskLongArnFormat": "enabled",
    "containerInstanceLongArnFormat": "enabled",
    "awsvpcTrunking": "disabled",
    "containerInsights": "disabled",
    "fargateFIPSMode": "disabled",
    "tagResourceAuthorization": "off",
    "fargateTaskRetirementWaitPeriod": "7",
    "guardDutyActivate": "off",
    "defaultLogDriverMode": "non-blocking",
    "fargateEventWindows": "disabled",
}
AWS_MANAGED_SETTINGS = ("guardDutyActivate",)
"""Those that AWS itself sets: everybody may read them, nobody may change them."""
_ACCOUNT_SETTING_VALUES = {
    "tagResourceAuthorization": ("on", "off"),
    "fargateTaskRetirementWaitPeriod": ("0", "7", "14"),
    "defaultLogDriverMode": ("blocking", "non-blocking"),
    "containerInsights": ("enabled", "disabled", "enhanced"),
}


class ClusterCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What DescribeClusters counts: tasks that run and that are on their way, and the instances of the cluster."""

    running: int
    pending: int
    instances: int
    by_launch_type: dict[tuple[str, str], int] = {}
    """By "running" or "pending" and launch type; empty unless it was asked for."""


class ClusterOps:
    """Cluster use cases."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def create(
        self, cause: Cause, name: str, given: dict[str, Any], tags: dict[str, str]
    ) -> tuple[Cluster, ClusterCounts]:
        """A cluster; one of that name that is there already is returned as it is."""
        if not _NAME.fullmatch(name):
            raise Invalid("Cluster name must have 1 to 255 letters, digits, '-' and '_'.")

        def work(tx: Tx) -> tuple[Cluster, ClusterCounts]:
            before = tx.get(tables.CLUSTERS, name)
            if before and before.status == "ACTIVE":
                return before, _counts(tx, name)
            fresh = _configured(Cluster(name=name, created_at=self._clock.now(), tags=tags), given)
            fresh = tx.put(tables.CLUSTERS, replace(fresh, version=before.version if before else 0))
            return fresh, _counts(tx, name)

        return await self._store.write(cause, work)

    async def update(
        self, cause: Cause, reference: str, given: dict[str, Any]
    ) -> tuple[Cluster, ClusterCounts]:
        """Change settings, configuration, capacity providers or Service Connect defaults."""

        def work(tx: Tx) -> tuple[Cluster, ClusterCounts]:
            before = active_cluster(tx, reference)
            after = _configured(before, given)
            stored = before if after == before else tx.put(tables.CLUSTERS, after)
            return stored, _counts(tx, stored.name)

        return await self._store.write(cause, work)

    async def delete(self, cause: Cause, reference: str) -> Cluster:
        """ACTIVE to INACTIVE; refused while tasks are there. Instances that joined by themselves leave by themselves."""

        def work(tx: Tx) -> Cluster:
            cluster = active_cluster(tx, reference)
            if any(not t.is_stopped for t in tx.scan(tables.TASKS, cluster.name)):
                raise Invalid(
                    "The Cluster cannot be deleted while Tasks are active.",
                    code="ClusterContainsTasksException",
                )
            for instance in tx.scan(tables.CONTAINER_INSTANCES, cluster.name):
                tx.delete(tables.CONTAINER_INSTANCES, cluster.name, instance.instance_id)
            return tx.put(tables.CLUSTERS, replace(cluster, status="INACTIVE"))

        return await self._store.write(cause, work)

    def describe(
        self, references: Sequence[str], *, by_launch_type: bool = False
    ) -> tuple[list[tuple[Cluster, ClusterCounts]], list[str]]:
        """(found with counts, missing); without names the default cluster."""
        if len(references) > 100:
            raise Invalid("clusters can have at most 100 items.")
        with self._store.read() as reader:
            found, missing = [], []
            for reference in references or ("default",):
                cluster = reader.get(tables.CLUSTERS, short_name(reference))
                if cluster is None:
                    missing.append(reference)
                else:
                    counts = _counts(reader, cluster.name)
                    if by_launch_type:
                        counts = replace(counts, by_launch_type=_by_launch_type(reader, cluster.name))
                    found.append((cluster, counts))
            return found, missing

    def providers(self, names: Sequence[str], cluster: str) -> tuple[list[str], list[str]]:
        """(found, missing) capacity providers: those named, or all; of a cluster (if one is given) only its own."""
        known: Sequence[str] = PROVIDERS
        if cluster:
            with self._store.read() as reader:
                known = sorted(active_cluster(reader, cluster).capacity_providers)
        wanted = tuple(dict.fromkeys(short_name(n) for n in names)) or known
        return [n for n in wanted if n in known], [n for n in wanted if n not in known]

    def page(self, after: IndexKey | None, limit: int) -> tuple[list[Cluster], bool]:
        """A page of ACTIVE clusters."""
        with self._store.read() as reader:
            page = [c for c in reader.scan(tables.CLUSTERS, after=after) if c.status == "ACTIVE"]
        return page[:limit], len(page) > limit


def _configured(cluster: Cluster, given: dict[str, Any]) -> Cluster:
    if "settings" in given:
        for setting in given["settings"]:
            if setting.get("name") not in SETTING_NAMES:
                raise Invalid(f"Unknown cluster setting {setting.get('name')!r}.")
            if setting.get("value") not in ("enabled", "disabled", "enhanced"):
                raise Invalid("containerInsights must be enabled, enhanced or disabled.")
        cluster = replace(cluster, settings={s["name"]: s["value"] for s in given["settings"]})
    if "configuration" in given:
        cluster = replace(cluster, configuration=given["configuration"])
    if "serviceConnectDefaults" in given:
        cluster = replace(cluster, service_connect_defaults=given["serviceConnectDefaults"])
    if "capacityProviders" in given:
        unknown = [p for p in given["capacityProviders"] if p not in PROVIDERS]
        if unknown:
            raise Invalid(f"The specified capacity provider '{unknown[0]}' was not found.")
        cluster = replace(cluster, capacity_providers=tuple(dict.fromkeys(given["capacityProviders"])))
    if "defaultCapacityProviderStrategy" in given:
        strategy = tuple(given["defaultCapacityProviderStrategy"])
        check_bases(strategy)
        for item in strategy:
            if item["capacityProvider"] not in cluster.capacity_providers:
                raise Invalid(
                    f"The capacity provider '{item['capacityProvider']}' is not associated with the cluster."
                )
        cluster = replace(cluster, default_capacity_provider_strategy=strategy)
    return cluster


def _counts(reader: Reader, name: str) -> ClusterCounts:
    running = reader.count(tables.TASKS, name, RUNNING, index="by_last")
    pending = sum(reader.count(tables.TASKS, name, s, index="by_last") for s in _ON_THEIR_WAY)
    instances = sum(1 for i in reader.scan(tables.CONTAINER_INSTANCES, name) if i.status != "INACTIVE")
    return ClusterCounts(running=running, pending=pending, instances=instances)


def _by_launch_type(reader: Reader, name: str) -> dict[tuple[str, str], int]:
    found: Counter[tuple[str, str]] = Counter()
    for task in reader.scan(tables.TASKS, name):
        if task.last_status == RUNNING:
            found["running", task.launch_type] += 1
        elif task.last_status in _ON_THEIR_WAY:
            found["pending", task.launch_type] += 1
    return dict(found)


class AccountSettingOps:
    """ECS account settings: kept and shown. Which of them have an effect is in the coverage page."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def put(self, cause: Cause, principal_arn: str, name: str, value: str) -> AccountSetting:
        """Set one for a principal ("" for the account's default)."""
        _check_setting(name)
        allowed = _ACCOUNT_SETTING_VALUES.get(name, ("enabled", "disabled"))
        if value not in allowed:
            raise Invalid(f"{name} must be one of {', '.join(allowed)}.")

        def work(tx: Tx) -> AccountSetting:
            before = tx.get(tables.ACCOUNT_SETTINGS, principal_arn, name)
            return tx.put(
                tables.ACCOUNT_SETTINGS,
                AccountSetting(
                    version=before.version if before else 0,
                    principal_arn=principal_arn,
                    name=name,
                    value=value,
                ),
            )

        return await self._store.write(cause, work)

    async def delete(self, cause: Cause, principal_arn: str, name: str) -> AccountSetting:
        """Back to the account's default; of the account's default back to AWS's."""
        _check_setting(name)

        def work(tx: Tx) -> AccountSetting:
            tx.delete(tables.ACCOUNT_SETTINGS, principal_arn, name)
            return AccountSetting(
                principal_arn=principal_arn, name=name, value=_effective(tx, principal_arn, name)
            )

        return await self._store.write(cause, work)

    def list(self, principal_arn: str, name: str, *, effective: bool) -> list[AccountSetting]:
        """Those that were set for a principal; with `effective` all, defaults included."""
        with self._store.read() as reader:
            if not effective:
                found = reader.scan(tables.ACCOUNT_SETTINGS, principal_arn)
                return [s for s in found if not name or s.name == name]
            return [
                AccountSetting(
                    principal_arn=principal_arn, name=n, value=_effective(reader, principal_arn, n)
                )
                for n in sorted(ACCOUNT_SETTING_DEFAULTS)
                if not name or n == name
            ]


def _check_setting(name: str) -> None:
    if name not in ACCOUNT_SETTING_DEFAULTS:
        raise Invalid(f"Unknown account setting {name!r}.")
    if name in AWS_MANAGED_SETTINGS:
        raise Invalid(f"The account setting {name} is managed by AWS and can only be read.")


def _effective(reader: Reader, principal_arn: str, name: str) -> str:
    own = reader.get(tables.ACCOUNT_SETTINGS, principal_arn, name)
    default = own or reader.get(tables.ACCOUNT_SETTINGS, "", name)
    return default.value if default else ACCOUNT_SETTING_DEFAULTS.get(name, "")
