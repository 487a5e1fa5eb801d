"""What a driver tells of itself when it can't run anything."""

from hutch.host.drivers.contract import Capabilities, DriverError
from hutch.wire.facts import DriverFactMsg


def unhealthy(name: str, capabilities: Capabilities, error: DriverError) -> DriverFactMsg:
    """The error, with what to do about it, as the reason."""
    reason = f"{error.message}; {error.fix}" if error.fix else error.message
    return DriverFactMsg(name=name, launch_types=capabilities.launch_types, healthy=False, reason=reason)
