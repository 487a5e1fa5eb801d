"""The OCI `process` object of a further process in a container. Pure; shared by the drivers."""

from typing import Any

import msgspec

from hutch.host.drivers.contract import DriverError, RootImage
from hutch.host.drivers.oci_config import OciContext, build_further_process
from hutch.model.exec import ExecSpec
from hutch.wire.taskspec import ContainerSpec


def exec_process(
    container: ContainerSpec, image: RootImage, context: OciContext, spec: ExecSpec
) -> dict[str, Any]:
    """As the container's own process, but for command, user and terminal. Raises `DriverError` (unknown user)."""
    if not spec.command:
        raise DriverError("NoCommand", "the command is empty")
    wanted = msgspec.structs.replace(
        container, entry_point=spec.command, command=None, user=spec.user or container.user
    )
    process = build_further_process(wanted, image, context)
    process["terminal"] = spec.tty
    if spec.tty:
        process["consoleSize"] = {"height": spec.rows, "width": spec.cols}
        if not any(e.startswith("TERM=") for e in process["env"]):
            process["env"] = [*process["env"], "TERM=xterm"]
    return process


def exec_fault(message: str) -> DriverError:
    """What the runtime said on failing to run a process, as an error with a fix. Its words are the image's to influence."""
    words = message.lower()
    text = f"the command can't be run: {message.strip()[:1000]}"
    if "not found" in words or "no such file" in words:
        return DriverError("ExecNotFound", text, fix="name a program that the image has")
    if "permission denied" in words or "exec format" in words:
        return DriverError("ExecNotExecutable", text, fix="run it through its interpreter")
    return DriverError("ExecFailed", text)
