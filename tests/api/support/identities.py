"""IAM and STS on a store: what every API server of the tests needs to know who is calling."""

from hutch.api.aws.iam import service as iam
from hutch.api.aws.sts import service as sts
from hutch.api.gateway.operation import Service
from hutch.api.gateway.paging import Paging
from hutch.base.clock import Clock, SystemClock
from hutch.base.ids import RandomIds
from hutch.control.authorizer import Authorizer
from hutch.control.ops.sts import StsOps
from hutch.control.ops.taskroles import TaskRoles
from hutch.control.sessions import SessionTokens
from hutch.control.vault import Vault
from hutch.store.contract import Store

ACCOUNT_ID = "000000000000"


def vault() -> Vault:
    """A vault under a key that all servers of the tests share."""
    return Vault({1: bytes(32)}, RandomIds())


def sts_ops(store: Store, clock: Clock | None = None) -> StsOps:
    """STS's use cases."""
    clock = clock or SystemClock()
    authorizer = Authorizer(store, clock, account_id=ACCOUNT_ID)
    return StsOps(store, clock, SessionTokens(vault(), RandomIds()), authorizer, account_id=ACCOUNT_ID)


def identity_services(store: Store, clock: Clock | None = None) -> list[Service]:
    """IAM and STS."""
    return [
        iam.service(
            store, clock or SystemClock(), RandomIds(), vault(), Paging("00" * 32), account_id=ACCOUNT_ID
        ),
        sts.service(sts_ops(store, clock)),
    ]


def task_roles(store: Store) -> TaskRoles:
    """Credentials of tasks."""
    where = {"region": "us-east-1", "account_id": ACCOUNT_ID}
    return TaskRoles(store, SystemClock(), sts_ops(store), **where, path_key="00" * 32)
