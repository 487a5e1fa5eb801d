"""The ECS service: which operations hutch serves, and AWS's names for what can go wrong."""

from hutch.api.aws.ecs.access import EcsAccess
from hutch.api.aws.ecs.clusters import AccountHandlers, ClusterHandlers
from hutch.api.aws.ecs.common import Arns
from hutch.api.aws.ecs.exec import ExecHandlers
from hutch.api.aws.ecs.instances import InstanceHandlers
from hutch.api.aws.ecs.task_shapes import TaskShapes
from hutch.api.aws.ecs.taskdefs import TaskDefinitionHandlers
from hutch.api.aws.ecs.tasks import TaskHandlers
from hutch.api.gateway.operation import Service
from hutch.api.gateway.paging import Paging
from hutch.base.clock import Clock
from hutch.base.errors import Conflict, HutchError, NotServed, Unavailable
from hutch.base.ids import IdSource
from hutch.control.exec_sessions import ExecSessions
from hutch.control.ops.clusters import AccountSettingOps, ClusterOps
from hutch.control.ops.instances import InstanceOps
from hutch.control.ops.tagging import TagOps
from hutch.control.ops.taskdefs import TaskDefinitionOps
from hutch.control.ops.tasks import TaskOps
from hutch.store.contract import Store


def service(
    store: Store,
    clock: Clock,
    ids: IdSource,
    tasks: TaskOps,
    paging: Paging,
    sessions: ExecSessions,
    *,
    region: str,
    account_id: str,
    strict_aws: bool,
) -> Service:
    """ECS, on this store."""
    arns, tags = Arns(region, account_id), TagOps(store)
    access = EcsAccess(store, tags, region, account_id)
    return Service(
        name="ecs",
        operations=(
            *ClusterHandlers(ClusterOps(store, clock), arns, paging).operations(),
            *TaskDefinitionHandlers(
                TaskDefinitionOps(store, clock, strict_aws=strict_aws), arns, paging
            ).operations(),
            *TaskHandlers(tasks, TaskShapes(region, account_id), paging).operations(),
            *ExecHandlers(sessions, arns).operations(),
            *InstanceHandlers(InstanceOps(store, clock, ids), arns, paging).operations(),
            *AccountHandlers(AccountSettingOps(store), tags, paging, account_id).operations(),
        ),
        faults=(
            (Conflict, "ConflictException"),
            (Unavailable, "ServerException"),
            (NotServed, "UnsupportedFeatureException"),
            (HutchError, "InvalidParameterException"),
        ),
        access=access.rules(),
        tags_of=access.tags_of,
    )
