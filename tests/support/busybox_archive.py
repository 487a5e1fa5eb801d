"""A docker archive with nothing but a static busybox, for platforms that import their images."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

from tests.support.busybox_image import make_busybox_directory

NAME = "localhost/busybox:latest"


def make_busybox_archive(directory: Path, *applets: str) -> Path:
    """The archive's path; `applets` come in addition to the usual ones."""
    root = Path(make_busybox_directory(directory).directory)
    for applet in applets:
        (root / "bin" / applet).symlink_to("busybox")
    layer = directory / "layer.tar"
    with tarfile.open(layer, "w") as tar:
        tar.add(root, arcname=".")
    layer_id = hashlib.sha256(layer.read_bytes()).hexdigest()
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
            "history": [{}],
        }
    ).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    layer_name = f"{layer_id}/layer.tar"
    manifest = [{"Config": config_name, "RepoTags": [NAME], "Layers": [layer_name]}]
    archive = directory / "busybox.tar"
    with tarfile.open(archive, "w") as tar:
        for name, data in (
            (config_name, config),
            (layer_name, layer.read_bytes()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return archive
