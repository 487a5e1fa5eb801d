"""The IAM service: which operations hutch serves, and AWS's names for what can go wrong."""

from hutch.api.aws.iam.access import IamAccess
from hutch.api.aws.iam.policies import PolicyHandlers
from hutch.api.aws.iam.roles import ProfileHandlers, RoleHandlers
from hutch.api.aws.iam.shapes import Pages, Shapes
from hutch.api.aws.iam.simulate import SimulateHandlers
from hutch.api.aws.iam.users import UserHandlers
from hutch.api.gateway.operation import Service
from hutch.api.gateway.paging import Paging
from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, HutchError, InUse, LimitExceeded, NotFound, Unavailable
from hutch.base.ids import IdSource
from hutch.control.ops.iam.policies import PolicyOps
from hutch.control.ops.iam.profiles import ProfileOps
from hutch.control.ops.iam.roles import RoleOps
from hutch.control.ops.iam.simulate import Simulator
from hutch.control.ops.iam.users import UserOps
from hutch.control.vault import Vault
from hutch.store.contract import Store


def service(
    store: Store, clock: Clock, ids: IdSource, vault: Vault, paging: Paging, *, account_id: str
) -> Service:
    """IAM, on this store."""
    shapes, pages, access = Shapes(account_id), Pages(paging), IamAccess(store, account_id)
    return Service(
        name="iam",
        operations=(
            *RoleHandlers(
                RoleOps(store, clock, ids, account_id=account_id), shapes, pages, account_id
            ).operations(),
            *UserHandlers(
                UserOps(store, clock, ids, vault, account_id=account_id), shapes, pages, account_id
            ).operations(),
            *PolicyHandlers(PolicyOps(store, clock, ids, account_id=account_id), shapes, pages).operations(),
            *SimulateHandlers(store, Simulator(store, account_id), pages).operations(),
            *ProfileHandlers(ProfileOps(store, clock, ids), shapes, pages).operations(),
        ),
        faults=(
            (NotFound, "NoSuchEntity"),
            (AlreadyExists, "EntityAlreadyExists"),
            (InUse, "DeleteConflict"),
            (LimitExceeded, "LimitExceeded"),
            (Unavailable, "ServiceFailure"),
            (HutchError, "ValidationError"),
        ),
        access=access.rules(),
        tags_of=access.tags_of,
    )
