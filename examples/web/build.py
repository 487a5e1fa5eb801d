"""Builds a web image from Debian packages (nginx serving a page) as an OCI archive.

    python3 examples/web/build.py --out build/images/web.tar

No container registry is needed: the root file system is made by mmdebstrap from the host's own package sources.
A second run with the same inputs does nothing.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SUITE = "bookworm"
NAME = "localhost/web:latest"
CONFIG = {
    "Cmd": ["/usr/sbin/nginx", "-g", "daemon off;"],
    "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
    "ExposedPorts": {"80/tcp": {}},
    "StopSignal": "SIGQUIT",
    "WorkingDir": "/",
}


def progress(text: str) -> None:
    print(f"web image: {text}", file=sys.stderr, flush=True)


def make_root(tar: Path) -> None:
    """The root file system, by mmdebstrap; documentation, caches and package lists are left out."""
    progress("installing nginx into a new root file system (about half a minute)")
    page = HERE / "index.html"
    argv = [
        "mmdebstrap", "--quiet", "--variant=essential", "--include=nginx-light", "--mode=root",
        "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        f"--customize-hook=copy-in {page} /var/www/html",
        "--customize-hook=ln -sf /dev/stdout $1/var/log/nginx/access.log",
        "--customize-hook=ln -sf /dev/stderr $1/var/log/nginx/error.log",
        "--customize-hook=rm -rf $1/var/lib/apt/lists $1/var/cache/apt $1/var/cache/debconf $1/var/log/apt",
        SUITE, str(tar),
    ]  # fmt: skip
    sources = [p for p in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list"))
               if p.exists() and p.stat().st_size]  # fmt: skip
    argv += [str(p) for p in sources[:1]]
    done = subprocess.run(argv, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"web image: mmdebstrap failed:\n{done.stderr[-3000:]}")


def write_archive(root_tar: Path, out: Path) -> None:
    """One layer, a configuration, a manifest and an index, as the OCI image layout has them."""
    progress("packing")
    plain = root_tar.read_bytes()
    layer = gzip.compress(plain, compresslevel=3, mtime=0)
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": CONFIG,
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(plain).hexdigest()}"]},
        }
    ).encode()
    blobs: dict[str, bytes] = {}

    def add(data: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        blobs[digest] = data
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": add(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [add(layer, "application/vnd.oci.image.layer.v1.tar+gzip")],
        }
    ).encode()
    entry = add(manifest, "application/vnd.oci.image.manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": NAME}
    index = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}', "index.json": index}
    files |= {f"blobs/sha256/{d}": data for d, data in blobs.items()}
    temporary = out.with_suffix(".tmp")
    with tarfile.open(temporary, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    os.replace(temporary, out)
    progress(f"done: {out} ({out.stat().st_size / 2**20:.0f} MiB)")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(Path(__file__).read_bytes() + (HERE / "index.html").read_bytes()).hexdigest()
    stamp = out.with_suffix(".key")
    if out.exists() and stamp.exists() and stamp.read_text() == key:
        progress("up to date")
        return
    root_tar = out.with_suffix(".root.tar")
    make_root(root_tar)
    write_archive(root_tar, out)
    root_tar.unlink()
    stamp.write_text(key)


if __name__ == "__main__":
    main()
