"""The API of a control plane, put together: AWS's services and hutch's own routes, on its use cases."""

from pathlib import Path

from hutch.api.aws.ec2 import service as ec2
from hutch.api.aws.ecs import service as ecs
from hutch.api.aws.ecs.access import EcsAccess
from hutch.api.aws.efs import service as efs
from hutch.api.aws.iam import service as iam
from hutch.api.aws.logs import service as logs
from hutch.api.aws.s3 import service as s3
from hutch.api.aws.secretsmanager import service as secretsmanager
from hutch.api.aws.ssm import service as ssm
from hutch.api.aws.sts import service as sts
from hutch.api.gateway.app import Gateway
from hutch.api.gateway.native import NativeRoute
from hutch.api.gateway.operation import Service
from hutch.api.native import NativeApi
from hutch.api.native_check import NativeCheck
from hutch.api.native_exec import NativeExec
from hutch.api.native_hosts import HostApi
from hutch.api.sessions.app import SessionSockets
from hutch.apps.usecases import UseCases
from hutch.control.ops.disk_snapshots import DiskSnapshotOps
from hutch.control.ops.filesystems import FileSystemOps
from hutch.control.ops.host_loss import HostLossOps
from hutch.control.ops.images import ImageOps
from hutch.control.ops.tagging import TagOps


def gateway(cases: UseCases, upload_directory: Path) -> Gateway:
    """All that is served over HTTP. Files that are sent are kept in `upload_directory` until they are taken in."""
    return Gateway(
        services=_aws_services(cases),
        identity=cases.identity,
        authorizer=cases.authorizer,
        ids=cases.ids,
        clock=cases.clock,
        native_routes=_native_routes(cases),
        upload_directory=upload_directory,
        websockets=SessionSockets(cases.sessions, cases.clock, cases.ids),
        **cases.where,
    )


def _aws_services(cases: UseCases) -> list[Service]:
    store, clock, ids, where = cases.store, cases.clock, cases.ids, cases.where
    account_id, paging = cases.settings.account_id, cases.paging
    return [
        ecs.service(
            store,
            clock,
            ids,
            cases.tasks,
            paging,
            cases.sessions,
            strict_aws=cases.settings.strict_aws,
            **where,
        ),
        logs.service(cases.logs, paging, clock, ids, **where),
        secretsmanager.service(cases.secrets, paging),
        ssm.service(cases.parameters, paging, cases.sessions),
        iam.service(store, clock, ids, cases.vault, paging, account_id=account_id),
        sts.service(cases.sts),
        ec2.service(store, paging, DiskSnapshotOps(store, clock, ids, cases.fleet), **where),
        efs.service(FileSystemOps(store, clock, ids, cases.fleet, **where), paging, account_id=account_id),
        s3.service(cases.objects, paging, **where),
        *cases.events.services(paging),
    ]


def _native_routes(cases: UseCases) -> tuple[NativeRoute, ...]:
    store, tasks, fleet, authorizer = cases.store, cases.tasks, cases.fleet, cases.authorizer
    hosts = HostApi(cases.hosts, HostLossOps(store, cases.clock), cases.host_loss.gives_up_at)
    access = EcsAccess(store, TagOps(store), cases.settings.region, cases.settings.account_id)
    return (
        *NativeApi(tasks, cases.suspending, ImageOps(store, fleet), fleet, hosts.of_task).routes(),
        *hosts.routes(),
        *cases.events.routes(),
        *NativeExec(tasks, cases.sessions, authorizer, **cases.where).routes(),
        *NativeCheck(store, cases.preflight, authorizer, access).routes(),
    )
