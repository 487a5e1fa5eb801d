"""A docker archive with nothing but a static busybox, for platforms that import their images."""

from pathlib import Path
from typing import Any

from tests.support.archives import make_archive
from tests.support.busybox_image import make_busybox_directory

NAME = "localhost/busybox:latest"


def make_busybox_archive(directory: Path, *applets: str, name: str = NAME, **config: Any) -> Path:
    """The archive's path; `applets` come in addition to the usual ones, `config` is as in `make_archive`."""
    root = Path(make_busybox_directory(directory).directory)
    for applet in applets:
        if not (root / "bin" / applet).is_symlink():
            (root / "bin" / applet).symlink_to("busybox")
    return make_archive(root, directory / "busybox.tar", name, **config)
