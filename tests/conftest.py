"""What tests need of the machine. On a laptop a missing need skips the test; under CI it fails it."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples each time, so that a clone that passes the tests passes them everywhere. By hand: other ones each time.
settings.register_profile("reproducible", derandomize=True)
if os.environ.get("HUTCH_REQUIRE_ALL") == "1":
    settings.load_profile("reproducible")

REPO = Path(__file__).resolve().parent.parent


def _program(*names: str) -> Callable[[], bool]:
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return lambda: all(shutil.which(name, path=path) for name in names)


_CHECKS: dict[str, Callable[[], bool]] = {
    "root": lambda: os.geteuid() == 0,
    "qemu": _program("qemu-system-x86_64", "bwrap", "setpriv"),
    "haproxy": _program("haproxy"),
    "runc": _program("runc", "conmon"),
    "catatonit": _program("catatonit"),
    "xfs": _program("mkfs.xfs"),
    "virtiofsd": lambda: any(
        os.access(p, os.X_OK) for p in ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd")
    ),
    "buildah": _program("buildah", "crun"),
    "runsc": _program("runsc"),
    "skopeo": _program("skopeo", "umoci", "mkfs.erofs"),
    "nft": _program("nft", "ip"),
    "registry": _program("docker-registry"),
    "aws_cli_v2": lambda: Path("/usr/bin/aws").exists(),
    "node": _program("node"),
    "js_sdk": lambda: (REPO / "build" / "js" / ".installed").exists(),
    "cargo": _program("cargo"),
    "guest_image": lambda: (REPO / "build" / "guest" / "initrd.img").exists(),
    "toolbox": lambda: (REPO / "build" / "guest" / "toolbox.erofs").exists(),
    "session_manager_plugin": lambda: (REPO / "build" / "plugin" / "session-manager-plugin").exists(),
}

_OPTIONAL = frozenset({"runsc", "session_manager_plugin"})
"""Not in Debian: what needs it may be skipped everywhere."""


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for name in mark.args:
            if not _CHECKS[name]():
                required = name not in _OPTIONAL
                if required and (
                    os.environ.get("CI") == "true" or os.environ.get("HUTCH_REQUIRE_ALL") == "1"
                ):
                    pytest.fail(f"this machine lacks {name}, which this test needs; CI does not skip")
                pytest.skip(f"needs {name}")
