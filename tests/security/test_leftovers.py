"""A platform of real microVMs whose every process is killed at once: what it leaves is removed from the host by names alone."""

import os
import signal
from pathlib import Path

import pytest
from tests.support.platform import Platform

from hutch.host.kernel.cgroup import CGROUP_MOUNT

pytestmark = pytest.mark.needs("root", "qemu", "haproxy", "guest_image", "skopeo", "nft")
WEB_IMAGE = Path(__file__).resolve().parents[2] / "build/images/web.tar"


def test_down_after_everything_was_killed_leaves_nothing(tmp_path: Path) -> None:
    platform = Platform(tmp_path, drivers="microvm")
    platform.start()
    try:
        platform.hutch("image", "import", str(WEB_IMAGE), "localhost/web:latest")
        platform.hutch("run", "localhost/web:latest", "--name", "web")
        assert platform.pids("qemu-system")
        assert list(CGROUP_MOUNT.glob(f"**/hutch-{platform.platform_id}"))
        for module in ("hutch.apps.up", "hutch.apps.host", "hutch.apps.control"):
            for pid in platform.pids(module):
                os.kill(pid, signal.SIGKILL)
        assert platform.pids("qemu-system"), "microVMs outlive the platform"
        assert platform.leftovers() != []
    finally:
        platform.stop()
    assert platform.leftovers() == []
