"""A docker archive from a directory, for platforms that import their images."""

import hashlib
import io
import json
import tarfile
from pathlib import Path
from typing import Any


def make_archive(root: Path, archive: Path, name: str, **config: Any) -> Path:
    """`root` as an image of one layer; `config` is the image configuration (Cmd, Entrypoint, User, ...) and may hold
    `architecture`. Returns the archive's path."""
    layer = archive.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        tar.add(root, arcname=".")
    with layer.open("rb") as f:
        layer_id = hashlib.file_digest(f, "sha256").hexdigest()
    architecture = config.pop("architecture", "amd64")
    document = json.dumps(
        {
            "architecture": architecture,
            "os": "linux",
            "config": config or {"Cmd": ["/bin/sh"]},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_id}"]},
            "history": [{}],
        }
    ).encode()
    config_name = f"{hashlib.sha256(document).hexdigest()}.json"
    layer_name = f"{layer_id}/layer.tar"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [layer_name]}]
    with tarfile.open(archive, "w") as tar:
        for entry, data in ((config_name, document), ("manifest.json", json.dumps(manifest).encode())):
            info = tarfile.TarInfo(entry)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        tar.add(layer, arcname=layer_name)
    layer.unlink()
    return archive
