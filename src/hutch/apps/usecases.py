"""The use cases of a control plane, put together: what its API and its loops have in common."""

from typing import TypedDict

from hutch.api.gateway.paging import Paging
from hutch.apps.events import EventParts
from hutch.apps.paths import Paths, reachable_address
from hutch.base.clock import Clock
from hutch.base.ids import IdSource
from hutch.control.authorizer import Authorizer
from hutch.control.controllers.host_loss import HostLossLoop
from hutch.control.exec_sessions import ExecSessions
from hutch.control.execution_roles import ExecutionRoles
from hutch.control.fleet import Fleet
from hutch.control.host_session import FleetContext
from hutch.control.identity import Identity
from hutch.control.launch_secrets import LaunchSecrets
from hutch.control.ops.hosts import HostOps
from hutch.control.ops.logs import LogOps
from hutch.control.ops.objects import ObjectOps
from hutch.control.ops.parameters import ParameterOps
from hutch.control.ops.placing import PlacementLimits
from hutch.control.ops.platform import Platform, ensure_platform
from hutch.control.ops.secrets import SecretOps, values_exist
from hutch.control.ops.sts import StsOps
from hutch.control.ops.suspending import SuspendOps
from hutch.control.ops.taskroles import TaskRoles
from hutch.control.ops.tasks import TaskOps
from hutch.control.preflight import Preflight
from hutch.control.sessions import SessionTokens
from hutch.control.surroundings import TaskAddresses
from hutch.control.vault import open_vault
from hutch.host.network.bridge import networks_in_use
from hutch.rules.netplan import pick_vpc_cidr
from hutch.settings import Settings
from hutch.store.contract import Store
from hutch.store.logs import LogStore


class Where(TypedDict):
    """What ARNs begin with."""

    region: str
    account_id: str


async def open_use_cases(
    settings: Settings, paths: Paths, store: Store, log_store: LogStore, clock: Clock, ids: IdSource
) -> "UseCases":
    """The use cases on stores that are open: the platform and its root key are made when it is started for the first time,
    and no host counts as connected. Raises `HutchError` if the stores are another platform's, or their key is damaged or lost."""
    cidr = settings.vpc_cidr
    platform = await ensure_platform(
        store,
        clock,
        ids,
        region=settings.region,
        account_id=settings.account_id,
        vpc_cidr=pick_vpc_cidr(await networks_in_use()) if cidr == "auto" else cidr,
    )
    cases = UseCases(settings, paths, platform, store, log_store, clock, ids)
    await cases.hosts.all_disconnected()
    await cases.identity.ensure_root_key(paths.credentials)
    return cases


class UseCases:
    """The use cases, one of each, and what they share."""

    def __init__(
        self,
        settings: Settings,
        paths: Paths,
        platform: Platform,
        store: Store,
        log_store: LogStore,
        clock: Clock,
        ids: IdSource,
    ) -> None:
        self.settings, self.store, self.clock, self.ids = settings, store, clock, ids
        account_id = settings.account_id
        self.where: Where = {"region": settings.region, "account_id": account_id}
        where = self.where
        self.limits = placement_limits(settings)
        self.paging = Paging(platform.identity.token_key)
        self.logs = LogOps(log_store, clock)
        clusters, zone = tuple(settings.host_clusters.split(",")), f"{settings.region}a"
        self.hosts = HostOps(store, clock, ids, clusters=clusters, default_zone=zone)
        self.host_loss = HostLossLoop(store, self.hosts, clock, ids, lost_after_s=settings.host_lost_after_s)

        self.vault = open_vault(paths.secrets_key, ids, values_exist=values_exist(store))
        self.identity = Identity(store, clock, ids, self.vault, account_id=account_id)
        self.authorizer = Authorizer(store, clock, account_id=account_id)
        tokens = SessionTokens(self.vault, ids)
        self.sts = StsOps(store, clock, tokens, self.authorizer, account_id=account_id)

        self.secrets = SecretOps(store, self.vault, clock, ids, **where)
        self.parameters = ParameterOps(store, self.vault, clock, **where)
        self.objects = ObjectOps(store, self.vault, clock, ids)
        self.roles = ExecutionRoles(self.sts, self.authorizer, clock, **where)
        self.launch_secrets = LaunchSecrets(
            self.secrets, self.parameters, self.objects, self.roles, self.logs.group_exists, **where
        )

        self.tasks = TaskOps(
            store,
            clock,
            ids,
            limits=self.limits,
            wait_for_placement=settings.placement == "wait",
            strict_aws=settings.strict_aws,
        )
        self.events = EventParts(store, self.tasks, self.logs, clock, ids, **where)
        self.fleet = Fleet(self._fleet_context(platform))
        self.suspending = SuspendOps(store, clock, ids, self.tasks, self.fleet, limits=self.limits)
        self.sessions = ExecSessions(store, clock, ids, self.fleet)
        self.preflight = Preflight(
            store,
            self.fleet,
            self.launch_secrets,
            self.roles,
            self.logs,
            clock,
            ids,
            limits=self.limits,
            **where,
        )

    def _fleet_context(self, platform: Platform) -> FleetContext:
        settings, path_key = self.settings, platform.identity.token_key
        has_task_api = settings.task_api == "on"
        api_of_host = f"http://{reachable_address(settings.listen)}" if has_task_api else ""
        return FleetContext(
            store=self.store,
            clock=self.clock,
            ids=self.ids,
            hosts=self.hosts,
            logs=self.logs,
            findings=self.events.findings,
            launch_secrets=self.launch_secrets,
            task_roles=TaskRoles(self.store, self.clock, self.sts, path_key=path_key, **self.where),
            addresses=TaskAddresses(path_key=path_key, api_of_host=api_of_host),
            region=settings.region,
            account_id=settings.account_id,
            platform_id=platform.identity.platform_id,
            vpc_cidr=platform.vpc_cidr,
            silence_s=settings.host_silence_s,
        )


def placement_limits(settings: Settings) -> PlacementLimits:
    """The settings that placement goes by."""
    first, _, last = settings.ingress_ports.partition("-")
    return PlacementLimits(
        cpu_overcommit=settings.cpu_overcommit,
        memory_reserve_mib=settings.memory_reserve_mib,
        ingress_ports=(int(first), int(last or first)),
    )
