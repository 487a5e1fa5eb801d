"""What is made on first start: the platform's identity, the default VPC, the default cluster."""

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.base.ids import IdSource
from hutch.control.ops.vpc import ensure_default_vpc
from hutch.model.cluster import Cluster
from hutch.model.network import PlatformIdentity
from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Store, Tx


class Platform(msgspec.Struct, frozen=True, kw_only=True):
    """The platform's identity and its address range."""

    identity: PlatformIdentity
    vpc_cidr: str


async def ensure_platform(
    store: Store, clock: Clock, ids: IdSource, *, region: str, account_id: str, vpc_cidr: str
) -> Platform:
    """The platform as it was first started. Raises `Invalid` if region, account or range are others now."""

    def work(tx: Tx) -> Platform:
        identity = tx.get(tables.IDENTITY, "platform")
        if identity is None:
            identity = tx.put(
                tables.IDENTITY,
                PlatformIdentity(
                    platform_id=ids.hex(8),
                    region=region,
                    account_id=account_id,
                    created_at=clock.now(),
                    token_key=ids.hex(64),
                ),
            )
        for flag, was, now in (
            ("--region", identity.region, region),
            ("--account-id", identity.account_id, account_id),
        ):
            if was != now:
                raise Invalid(
                    f"{flag}: this data directory belongs to {was}, not {now}; start it with {flag} {was}, or give "
                    f"the new platform a --data-dir of its own"
                )
        vpc = ensure_default_vpc(tx, vpc_cidr, region, ids)
        if tx.get(tables.CLUSTERS, "default") is None:
            tx.put(tables.CLUSTERS, Cluster(name="default", created_at=clock.now()))
        return Platform(identity=identity, vpc_cidr=vpc.cidr)

    return await store.write(Cause(id="start", actor="control", action="first start"), work)
