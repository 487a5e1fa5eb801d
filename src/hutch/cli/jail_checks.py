"""What `hutch doctor` says about the jails of VM monitors: what this host lacks for them, by looking only."""

import os
from pathlib import Path

Check = tuple[str, str, str]
_PROGRAMS = {"bwrap": "bubblewrap", "setpriv": "util-linux"}
"""What makes a jail, and the Debian packages."""
_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
_CAPABILITIES = {"SETGID": 6, "SETUID": 7, "SETPCAP": 8, "NET_ADMIN": 12, "SYS_CHROOT": 18, "SYS_ADMIN": 21}
_CONTROLLERS = ("cpu", "memory", "pids")


def jail_checks(root: Path = Path("/")) -> list[Check]:
    """(check, state, detail) rows. States: ok; limited (works, with less around it); missing."""
    return [
        _programs(root / "usr/bin"),
        _namespaces(root / "proc"),
        _capabilities(root / "proc"),
        _seccomp(root / "proc"),
        *_cgroups(root / "sys/fs/cgroup"),
    ]


def _programs(directory: Path) -> Check:
    lacking = [package for program, package in _PROGRAMS.items() if not (directory / program).exists()]
    if lacking:
        return "jail", "missing", f"VM monitors start in it: install {', '.join(lacking)}"
    return "jail", "ok", str(directory / "bwrap")


def _namespaces(proc: Path) -> Check:
    lacking = [n for n in _NAMESPACES if not (proc / "self/ns" / n).is_symlink()]
    if lacking:
        return "namespaces", "missing", f"this kernel has none of kind {', '.join(lacking)}"
    release = os.uname().release.split(".")
    if (int(release[0]), int(release[1])) < (5, 8):
        return "namespaces", "limited", "before Linux 5.8 a VM monitor can read the host's /proc/sys"
    return "namespaces", "ok", ""


def _capabilities(proc: Path) -> Check:
    status = dict(
        line.split(":\t", 1) for line in (proc / "self/status").read_text().splitlines() if ":\t" in line
    )
    held = int(status.get("CapEff", "0"), 16)
    lacking = [name for name, number in _CAPABILITIES.items() if not held >> number & 1]
    if lacking:
        return "capabilities", "missing", f"run hutch with {', '.join('CAP_' + name for name in lacking)}"
    return "capabilities", "ok", ""


def _seccomp(proc: Path) -> Check:
    if (proc / "sys/kernel/seccomp/actions_avail").exists():
        return "seccomp", "ok", ""
    return "seccomp", "missing", "the kernel must be built with CONFIG_SECCOMP_FILTER"


def _cgroups(mount: Path) -> list[Check]:
    listed = mount / "cgroup.controllers"
    version = 2 if listed.exists() else 1
    there = listed.read_text().split() if version == 2 else [c for c in _CONTROLLERS if (mount / c).is_dir()]
    if lacking := [c for c in _CONTROLLERS if c not in there]:
        fix = (
            "enable them on the kernel's command line (cgroup_enable=memory)"
            if version == 2
            else "mount cgroup2 on /sys/fs/cgroup"
        )
        return [("cgroup", "missing", f"no {', '.join(lacking)} controller: {fix}")]
    checks: list[Check] = [("cgroup", "ok", f"version {version}")]
    disk = "io" in there if version == 2 else (mount / "blkio").is_dir()
    if not disk:
        checks.append(("cgroup disk", "limited", "no io controller: --vm-disk-mib-per-s is refused"))
    if version == 1 and not (mount / "cpu/cpu.cfs_quota_us").exists():
        checks.append(("cgroup cpu", "limited", "no CFS bandwidth control: --cpu-burst off is refused"))
    return checks
