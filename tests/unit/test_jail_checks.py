"""`hutch doctor` on hosts that lack something of the jail."""

from pathlib import Path

import pytest

from hutch.cli.jail_checks import jail_checks


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host with cgroup version 2 that lacks nothing."""
    (tmp_path / "usr/bin").mkdir(parents=True)
    for program in ("bwrap", "setpriv"):
        (tmp_path / "usr/bin" / program).touch()
    (tmp_path / "proc/self/ns").mkdir(parents=True)
    for name in ("mnt", "pid", "net", "ipc", "uts", "cgroup"):
        (tmp_path / "proc/self/ns" / name).symlink_to(f"{name}:[1]")
    (tmp_path / "proc/self/status").write_text("Name:\thutch\nCapEff:\t000001ffffffffff\n")
    (tmp_path / "proc/sys/kernel/seccomp").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/seccomp/actions_avail").write_text("kill_process allow")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    (tmp_path / "sys/fs/cgroup/cgroup.controllers").write_text("cpu io memory pids")
    return tmp_path


def states(root: Path) -> dict[str, tuple[str, str]]:
    return {check: (state, detail) for check, state, detail in jail_checks(root)}


def test_a_whole_host(root: Path) -> None:
    assert {state for state, _ in states(root).values()} == {"ok"}
    assert states(root)["cgroup"] == ("ok", "version 2")


def test_each_lack_is_named(root: Path) -> None:
    (root / "usr/bin/bwrap").unlink()
    (root / "proc/self/ns/pid").unlink()
    (root / "proc/self/status").write_text("CapEff:\t000001ffffdfffff\n")
    (root / "proc/sys/kernel/seccomp/actions_avail").unlink()
    (root / "sys/fs/cgroup/cgroup.controllers").write_text("cpu pids")
    found = states(root)
    assert found["jail"] == ("missing", "VM monitors start in it: install bubblewrap")
    assert found["namespaces"] == ("missing", "this kernel has none of kind pid")
    assert found["capabilities"] == ("missing", "run hutch with CAP_SYS_ADMIN")
    assert found["seccomp"][0] == "missing"
    assert found["cgroup"][0] == "missing" and "memory" in found["cgroup"][1]


def test_version_1_with_less(root: Path) -> None:
    mount = root / "sys/fs/cgroup"
    (mount / "cgroup.controllers").unlink()
    for name in ("cpu", "memory", "pids"):
        (mount / name).mkdir()
    found = states(root)
    assert found["cgroup"] == ("ok", "version 1")
    assert found["cgroup disk"][0] == "limited" and found["cgroup cpu"][0] == "limited"
