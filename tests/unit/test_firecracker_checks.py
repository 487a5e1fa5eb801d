"""`hutch doctor` on hosts that lack something of Firecracker."""

from pathlib import Path

import pytest

from hutch.cli.firecracker_checks import firecracker_checks


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """A host that has everything but the program."""
    for name, text in (("proc/cpuinfo", "flags\t\t: fpu vmx sse\n"), ("dev/kvm", ""), ("dev/net/tun", "")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o666)
    return tmp_path


def states(host: Path, program: str = "/bin/true") -> dict[str, tuple[str, str]]:
    return {c: (s, d) for c, s, d in firecracker_checks("firecracker, container", program, "/usr/bin", host)}


def test_nobody_asked_for_it(host: Path) -> None:
    ((_, state, detail),) = firecracker_checks("microvm,container", "firecracker", "/usr/bin", host)
    assert state == "off" and "--drivers" in detail


def test_all_is_there(host: Path) -> None:
    found = states(host)
    assert {found[c][0] for c in ("firecracker", "firecracker kvm", "firecracker tun")} == {"ok"}


def test_no_program(host: Path) -> None:
    state, detail = states(host, "no-such-firecracker")["firecracker"]
    assert state == "missing" and "1.8.0" in detail and "--firecracker-program" in detail


def test_no_virtualisation(host: Path) -> None:
    (host / "proc/cpuinfo").write_text("flags\t\t: fpu sse\n")
    state, detail = states(host)["firecracker kvm"]
    assert state == "missing" and "QEMU can" in detail


@pytest.mark.parametrize(
    ("device", "check"), [("dev/kvm", "firecracker kvm"), ("dev/net/tun", "firecracker tun")]
)
def test_devices_that_it_can_not_open(host: Path, device: str, check: str) -> None:
    (host / device).chmod(0o600)
    assert "chmod" in states(host)[check][1] and states(host)[check][0] == "missing"
    (host / device).unlink()
    assert states(host)[check] == ("missing", f"there is no /{device}: load its kernel module")
