"""What the containers of a stopped task are like when somebody looks into its disk, whatever the driver. Pure."""

from typing import Any

import msgspec

from hutch.host.drivers.contract import RootImage
from hutch.host.drivers.oci_config import environment
from hutch.wire.taskspec import ContainerSpec

TOOLBOX_PATH = "/.hutch/toolbox"
HOLD_PATH = "/.hutch/hold"


def with_toolbox(container: ContainerSpec, image: RootImage) -> ContainerSpec:
    """The container with the toolbox's programs after all that are on its PATH."""
    whole = environment(container, image, "/", "")
    path = next((e.partition("=")[2] for e in whole if e.startswith("PATH=")), "")
    changed = {**container.environment, "PATH": f"{path}:{TOOLBOX_PATH}" if path else TOOLBOX_PATH}
    return msgspec.structs.replace(container, environment=changed)


def waiting(container: ContainerSpec) -> ContainerSpec:
    """The container with a process that only waits in the place of its command."""
    return msgspec.structs.replace(
        container,
        entry_point=(HOLD_PATH, "-P"),
        command=None,
        user="0",
        working_directory="/",
        tty=False,
        interactive=False,
        init_process=False,
        log_router=None,
    )


def hold_mounts(hold: str, toolbox: str) -> list[dict[str, Any]]:
    """OCI mounts of the program that waits (catatonit) and, unless it is "", of the toolbox."""
    places = [(hold, HOLD_PATH), (toolbox, TOOLBOX_PATH)]
    return [
        {"destination": to, "source": source, "type": "bind", "options": ["bind", "ro"]}
        for source, to in places
        if source
    ]
