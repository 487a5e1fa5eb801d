"""What `hutch doctor` says about the Firecracker driver: what this host lacks for it, by looking only. Which version there is,
and whether a guest boots, the host agent finds out by trying; it says so when it offers its drivers."""

import shutil
from pathlib import Path

Check = tuple[str, str, str]
GET = (
    "get 1.8.0 or later from github.com/firecracker-microvm/firecracker and put `firecracker` on the PATH, "
    "or use --firecracker-program"
)


def firecracker_checks(drivers: str, program: str, search: str, root: Path = Path("/")) -> list[Check]:
    """(check, state, detail) rows; `search` is a PATH. States: ok; off (nobody asked for it); missing."""
    if "firecracker" not in [d.strip() for d in drivers.split(",")]:
        return [("firecracker", "off", "a second driver for hosts with KVM: --drivers firecracker,container")]
    return [_program(program, search), _kvm(root), _open_to_all(root, "dev/net/tun"), _vmlinux(root)]


def _program(program: str, search: str) -> Check:
    where = shutil.which(program, path=search)
    return ("firecracker", "ok", where) if where else ("firecracker", "missing", GET)


def _kvm(root: Path) -> Check:
    flags = (root / "proc/cpuinfo").read_text()
    if not (" vmx" in flags or " svm" in flags):
        return (
            "firecracker kvm",
            "missing",
            "the CPU shows neither vmx nor svm: Firecracker can't run here, QEMU can",
        )
    return _open_to_all(root, "dev/kvm", "firecracker kvm")


def _open_to_all(root: Path, device: str, name: str = "") -> Check:
    name = name or f"firecracker {Path(device).name}"
    try:
        status = (root / device).stat()
    except OSError:
        return name, "missing", f"there is no /{device}: load its kernel module"
    by_all = status.st_mode & 0o006 == 0o006
    by_group = bool(status.st_gid) and status.st_mode & 0o060 == 0o060
    if by_all or by_group:
        return name, "ok", ""
    return (
        name,
        "missing",
        f"only root can open /{device}, and Firecracker is not run as root: chmod 0666 /{device}",
    )


def _vmlinux(root: Path) -> Check:
    built = Path(__file__).resolve().parents[3] / "build" / "guest" / "vmlinux"
    installed = root / "usr/lib/hutch/guest/vmlinux"
    if built.exists() or installed.exists():
        return "firecracker kernel", "ok", ""
    return "firecracker kernel", "missing", "the guest image has no vmlinux: build it with `make setup`"
