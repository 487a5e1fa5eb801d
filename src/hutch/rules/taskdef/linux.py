"""What a container asks of its kernel: Linux parameters, limits, devices, sysctls, namespaces. Refused here in clear words
is what no driver could do."""

import ipaddress
import re
from typing import Any

from hutch.rules.taskdef.refusals import refuse

PID_MODES = ("host", "task")
IPC_MODES = ("host", "task", "none")
MAX_SHM_MIB = 1024 * 1024
_CAPABILITY = re.compile(r"(CAP_)?[A-Z_]{2,40}")
_ACCESS = {"read": "r", "write": "w", "mknod": "m"}
_IPC_SYSCTLS = frozenset({
    "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
    "kernel.shm_rmid_forced",
})  # fmt: skip
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
_SECURITY_OPTIONS = {
    "no-new-privileges": True,
    "no-new-privileges:true": True,
    "no-new-privileges:false": False,
}


def check_task_namespaces(document: dict[str, Any]) -> None:
    """pidMode, ipcMode, runtimePlatform. Raises `Invalid`."""
    for member, modes in (("pidMode", PID_MODES), ("ipcMode", IPC_MODES)):
        mode = document.get(member)
        if mode is not None and mode not in modes:
            raise refuse(f"{member} {mode[:50]!r} is not one of {', '.join(modes)}.")
    family = document.get("runtimePlatform", {}).get("operatingSystemFamily", "LINUX")
    if family != "LINUX":
        raise refuse(f"hutch runs Linux: operatingSystemFamily {family} is not supported.")


def check_linux(container: dict[str, Any]) -> None:
    """Raises `Invalid` for the first thing that is wrong."""
    linux = container.get("linuxParameters", {})
    capabilities = linux.get("capabilities", {})
    for name in (*capabilities.get("add", ()), *capabilities.get("drop", ())):
        if not _CAPABILITY.fullmatch(name):
            raise refuse(f"linuxParameters.capabilities: {name[:50]!r} is not the name of a capability.")
    size = linux.get("sharedMemorySize")
    if size is not None and not 1 <= size <= MAX_SHM_MIB:
        raise refuse(f"sharedMemorySize must be between 1 and {MAX_SHM_MIB} MiB.")
    for mount in linux.get("tmpfs", []):
        if not _is_path(mount["containerPath"]) or mount["size"] < 1:
            raise refuse("tmpfs needs an absolute containerPath and a size of at least 1 MiB.")
    for device in linux.get("devices", []):
        if not _is_path(device["hostPath"]) or not _is_path(device.get("containerPath", "/dev")):
            raise refuse("devices need an absolute hostPath and containerPath, without '..'.")
    for limit in container.get("ulimits", []):
        if limit["softLimit"] > limit["hardLimit"] >= 0:
            raise refuse(f"Soft limit exceeds hard limit for ulimit {limit['name']}")
    for option in container.get("dockerSecurityOptions", []):
        if option not in _SECURITY_OPTIONS:
            raise refuse(
                f"hutch does not support dockerSecurityOptions {option[:100]!r}: use no-new-privileges. SELinux and "
                "AppArmor labels are Docker's; a FARGATE task has a kernel of its own."
            )
    _check_names(container)
    _check_sysctls(container)


def _check_names(container: dict[str, Any]) -> None:
    for mapping in container.get("extraHosts", []):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,255}", mapping["hostname"]):
            raise refuse(f"extraHosts: {mapping['hostname'][:100]!r} is not a host name.")
        _check_address("extraHosts", mapping["ipAddress"])
    hostname = container.get("hostname", "")
    if hostname and not _HOST_NAME.fullmatch(hostname):
        raise refuse(f"hostname {hostname[:100]!r} is not a host name.")
    if hostname and container.get("disableNetworking"):
        raise refuse("hostname and disableNetworking exclude each other.")
    for server in container.get("dnsServers", []):
        _check_address("dnsServers", server)
    for domain in container.get("dnsSearchDomains", []):
        if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", domain):
            raise refuse(f"dnsSearchDomains: {domain[:100]!r} is not a domain.")


def _check_address(member: str, text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise refuse(f"{member}: {text[:100]!r} is not an IP address.") from None


def _check_sysctls(container: dict[str, Any]) -> None:
    """Only those that a container has for itself: any other would be the whole task's, or the host's."""
    for control in container.get("systemControls", []):
        name = control.get("namespace", "")
        if "value" not in control:
            raise refuse(f"systemControls: {name[:100]!r} needs a value.")
        if name.startswith("net.") and not container.get("disableNetworking"):
            continue
        if name not in _IPC_SYSCTLS and not name.startswith(("fs.mqueue.", "net.")):
            raise refuse(
                f"systemControls: {name[:100]!r} is not one of a container's own; those are net.*, fs.mqueue.*, "
                f"{', '.join(sorted(_IPC_SYSCTLS))}."
            )


def _is_path(path: str) -> bool:
    return path.startswith("/") and ".." not in path.split("/") and "\0" not in path


def device_access(device: dict[str, Any]) -> str:
    """A device's permissions in the kernel's letters; all of them if none is named."""
    return "".join(_ACCESS[p] for p in device.get("permissions", ())) or "rwm"


def no_new_privileges(container: dict[str, Any]) -> bool:
    """Whether a checked container definition asks for it."""
    return any(_SECURITY_OPTIONS[o] for o in container.get("dockerSecurityOptions", ()))
