"""A docker archive with nothing but a static busybox, for platforms that import their images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.archives import make_archive
from tests.support.busybox_image import make_busybox_directory
from tests.support.platform import Platform

NAME = "localhost/busybox:latest"


def make_busybox_archive(directory: Path, *applets: str, name: str = NAME, **config: Any) -> Path:
    """The archive's path; `applets` come in addition to the usual ones, `config` is as in `make_archive`."""
    root = Path(make_busybox_directory(directory).directory)
    for applet in applets:
        if not (root / "bin" / applet).is_symlink():
            (root / "bin" / applet).symlink_to("busybox")
    return make_archive(root, directory / "busybox.tar", name, **config)


@contextmanager
def busybox_platform(directory: Path, drivers: str, *applets: str) -> Iterator[Platform]:
    """A running platform that has the image, with these applets too; afterwards nothing of it may be left."""
    platform = Platform(directory, drivers=drivers)
    platform.start()
    try:
        platform.hutch("image", "import", str(make_busybox_archive(directory, *applets)))
        yield platform
    finally:
        platform.stop()
    assert platform.leftovers() == []
