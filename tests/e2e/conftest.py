"""Platforms for end-to-end tests: on the fake driver, with real microVMs, and one for all that need nothing of their own."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.busybox_archive import busybox_platform
from tests.support.platform import Platform, running
from tests.support.python_archive import NAME as PYTHON
from tests.support.python_archive import make_python_archive

REPO = Path(__file__).resolve().parents[2]
WEB_IMAGE = REPO / "build/images/web.tar"


@pytest.fixture(scope="session")
def fake_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One for all modules that have clusters, definitions and names of their own; others have it start anew."""
    with running(tmp_path_factory.mktemp("fake"), drivers="fake") as platform:
        yield platform


@pytest.fixture(scope="module")
def real_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("real"), drivers="microvm")
    platform.start()
    try:
        platform.hutch("image", "import", str(WEB_IMAGE), "localhost/web:latest")
        yield platform
    finally:
        platform.stop()
    assert platform.leftovers() == []


@pytest.fixture(scope="session")
def vm_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """One with microVMs and containers, and the busybox image, whose templates are made once for all modules. What it is
    used for has names of its own, and stops the tasks that it has started."""
    with busybox_platform(tmp_path_factory.mktemp("vms"), "microvm,container", "wget", "stty", "tty") as made:
        yield made


@pytest.fixture(scope="session")
def python_image(vm_platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The name of an image with Python and boto3 on that platform."""
    archive = make_python_archive(tmp_path_factory.mktemp("python"))
    vm_platform.hutch("image", "import", str(archive), PYTHON)
    return PYTHON
