"""Platforms for end-to-end tests: one on the fake driver, one with real microVMs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.platform import Platform

REPO = Path(__file__).resolve().parents[2]
WEB_IMAGE = REPO / "build/images/web.tar"


@pytest.fixture(scope="module")
def fake_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    platform = Platform(tmp_path_factory.mktemp("fake"), drivers="fake")
    platform.start()
    yield platform
    platform.stop()


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
