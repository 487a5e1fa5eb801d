"""The devices of a microVM that a container may be given, by their path. Pure."""

from hutch.host.drivers.contract import DriverError
from hutch.host.drivers.oci_config import DeviceNode
from hutch.wire.taskspec import TaskSpec

_MISC = 10
_LOOP = 7
_KNOWN = {
    "/dev/fuse": DeviceNode(kind="c", major=_MISC, minor=229),
    "/dev/net/tun": DeviceNode(kind="c", major=_MISC, minor=200),
    "/dev/loop-control": DeviceNode(kind="c", major=_MISC, minor=237),
    "/dev/kmsg": DeviceNode(kind="c", major=1, minor=11),
    "/dev/hwrng": DeviceNode(kind="c", major=_MISC, minor=183),
    **{f"/dev/loop{n}": DeviceNode(kind="b", major=_LOOP, minor=n) for n in range(8)},
}


def guest_devices(task: TaskSpec) -> dict[str, DeviceNode]:
    """The nodes of all devices that the task's containers ask for. Raises `DriverError` for one that no VM has."""
    found = {}
    for container in task.containers:
        for device in container.devices:
            node = _KNOWN.get(device.host_path)
            if node is None:
                raise DriverError(
                    "NoSuchDevice",
                    f'container "{container.name}" asks for {device.host_path[:100]}, which a microVM does not have',
                    fix=f"use one of {', '.join(p for p in _KNOWN if not p.startswith('/dev/loop'))}, /dev/loop-control, "
                    "/dev/loop0 to /dev/loop7",
                    aws_prefix="CannotCreateContainerError",
                )
            found[device.host_path] = node
    return found
