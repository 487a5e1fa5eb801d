"""CloudWatch Logs: shape in, one use case, shape out."""

from hutch.api.aws.logs.access import LogsAccess
from hutch.api.aws.logs.groups import GroupHandlers
from hutch.api.aws.logs.shapes import LogShapes
from hutch.api.aws.logs.streams import StreamHandlers
from hutch.api.aws.logs.tail import TailHandlers
from hutch.api.gateway.operation import Service
from hutch.api.gateway.paging import Paging
from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, HutchError, NotFound, Unavailable
from hutch.base.ids import IdSource
from hutch.control.ops.logs import LogOps


def service(
    ops: LogOps, paging: Paging, clock: Clock, ids: IdSource, *, region: str, account_id: str
) -> Service:
    """CloudWatch Logs on these use cases."""
    shapes = LogShapes(region, account_id)
    return Service(
        name="logs",
        operations=(
            *GroupHandlers(ops, paging, shapes).operations(),
            *StreamHandlers(ops, paging, ids, shapes).operations(),
            *TailHandlers(ops, clock, ids, shapes).operations(),
        ),
        faults=(
            (NotFound, "ResourceNotFoundException"),
            (AlreadyExists, "ResourceAlreadyExistsException"),
            (Unavailable, "ServiceUnavailableException"),
            (HutchError, "InvalidParameterException"),
        ),
        access=LogsAccess(region, account_id).rules(),
    )
