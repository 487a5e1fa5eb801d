"""Images made of any bytes one likes, and a real registry to put them into."""

import base64
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.claims import free_port

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
USER, PASSWORD = "puller", "s3cret-of-the-registry"
PASSWORD_BCRYPT = "$2b$04$Em/F.yjIeeHEWWMvLwyBD.huK5kVAqjiw.emB/qb3twXl8AKClEuy"
"""As `htpasswd -nbB` writes it; the registry takes nothing else."""


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def member(name: str, data: bytes = b"", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer; `more` are attributes of `TarInfo` (type, linkname, mode...)."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o755
    for key, value in more.items():
        setattr(info, key, value)
    return info, data


def directory(name: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target)


def layer(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """An uncompressed layer."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


HELLO = (member("hello", b"hello\n"), directory("etc"), member("etc/passwd", b"root:x:0:0::/:/bin/sh\n"))


class Image:
    """A manifest with its blobs. `layers` are uncompressed."""

    def __init__(
        self,
        *layers: bytes,
        architecture: str = "amd64",
        docker: bool = False,
        config: dict[str, Any] | None = None,
        compressed: Sequence[bytes] | None = None,
    ) -> None:
        plain = layers or (layer(HELLO),)
        packed = list(compressed) if compressed else [gzip.compress(x, 1, mtime=0) for x in plain]
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": {"Cmd": ["/hello"], **(config or {})},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(x) for x in plain]},
            "history": [{"created_by": "test"} for _ in plain],
        }
        self.layers = packed
        self.plain = list(plain)
        self.config = json.dumps(document).encode()
        self.media_type = f"{DOCKER}distribution.manifest.v2+json" if docker else f"{OCI}manifest.v1+json"
        config_type = f"{DOCKER}container.image.v1+json" if docker else f"{OCI}config.v1+json"
        layer_type = f"{DOCKER}image.rootfs.diff.tar.gzip" if docker else f"{OCI}layer.v1.tar+gzip"
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": self.media_type,
                "config": _descriptor(config_type, self.config),
                "layers": [_descriptor(layer_type, x) for x in packed],
            }
        ).encode()

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def blobs(self) -> list[bytes]:
        return [self.config, *self.layers]

    def write_layout(self, path: Path, name: str = "") -> Path:
        """As an OCI layout."""
        blobs = path / "blobs/sha256"
        blobs.mkdir(parents=True)
        for data in (*self.blobs, self.manifest):
            (blobs / digest_of(data)[7:]).write_bytes(data)
        notes = {"org.opencontainers.image.ref.name": name} if name else {}
        entry = {**_descriptor(self.media_type, self.manifest), "annotations": notes}
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
        return path

    def write_oci_archive(self, path: Path, name: str = "") -> Path:
        layout = self.write_layout(path.with_suffix(".layout"), name)
        with tarfile.open(path, "w") as archive:
            for item in sorted(layout.iterdir()):
                archive.add(item, item.name)
        return path

    def write_docker_archive(self, path: Path, name: str) -> Path:
        """As `docker save` does."""
        members = [member(f"{n}/layer.tar", x) for n, x in enumerate(self.plain)]
        listing = [{"Config": "config.json", "RepoTags": [name], "Layers": [m[0].name for m in members]}]
        members += [member("config.json", self.config), member("manifest.json", json.dumps(listing).encode())]
        path.write_bytes(layer(members))
        return path


def index(*images: Image) -> bytes:
    """An index of images, each for its architecture."""
    entries = [
        {
            **_descriptor(i.media_type, i.manifest),
            "platform": {"os": "linux", "architecture": json.loads(i.config)["architecture"]},
        }
        for i in images
    ]
    return json.dumps({"schemaVersion": 2, "mediaType": f"{OCI}index.v1+json", "manifests": entries}).encode()


def _descriptor(media_type: str, data: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "size": len(data), "digest": digest_of(data)}


class LocalRegistry:
    """Debian's docker-registry on a loopback port. Use `stop` in a finally."""

    def __init__(self, root: Path, *, login: bool = False) -> None:
        root.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.storage = root / "storage"
        self._login = login
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}},
            "http": {"addr": self.address},
        }
        if login:
            (root / "htpasswd").write_text(f"{USER}:{PASSWORD_BCRYPT}\n")
            config["auth"] = {"htpasswd": {"realm": "test", "path": str(root / "htpasswd")}}
        (root / "config.yml").write_text(json.dumps(config))
        self._process: subprocess.Popen[bytes] | None = None
        self._config = root / "config.yml"
        self.start()

    def start(self) -> None:
        """Returns when it listens."""
        self._process = subprocess.Popen(
            ["docker-registry", "serve", str(self._config)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        assert self._process.stderr is not None
        for line in self._process.stderr:
            if b"listening on" in line:
                break
        else:
            raise RuntimeError("docker-registry does not start")
        # Its access log must not fill the pipe.
        self._drain = subprocess.Popen(
            ["cat"], stdin=self._process.stderr, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._process.stderr.close()

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._drain.wait()
            self._process = None

    def push(self, name: str, image: Image, tag: str = "latest") -> str:
        """Its reference by tag."""
        for blob in image.blobs:
            self._push_blob(name, blob)
        self._send("PUT", f"/v2/{name}/manifests/{tag}", image.manifest, image.media_type)
        return f"{self.address}/{name}:{tag}"

    def push_index(self, name: str, *images: Image, tag: str = "latest") -> str:
        """An index, its images under their digests."""
        for image in images:
            self.push(name, image, tag=image.digest)
        data = index(*images)
        self._send("PUT", f"/v2/{name}/manifests/{tag}", data, f"{OCI}index.v1+json")
        return f"{self.address}/{name}:{tag}"

    def blob_path(self, data: bytes) -> Path:
        """Where the registry keeps a blob: tests damage it there."""
        name = digest_of(data)[7:]
        return self.storage / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"

    def _push_blob(self, name: str, data: bytes) -> None:
        location = self._send("POST", f"/v2/{name}/blobs/uploads/", b"", "")
        joint = "&" if "?" in location else "?"
        self._send("PUT", f"{location}{joint}digest={digest_of(data)}", data, "application/octet-stream")

    def _send(self, method: str, path: str, data: bytes, content_type: str) -> str:
        url = path if path.startswith("http") else f"http://{self.address}{path}"
        headers = {"Content-Type": content_type} if content_type else {}
        if self._login:
            headers["Authorization"] = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request = urllib.request.Request(url, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return str(answer.headers.get("Location", ""))
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {error.code} {error.read()[:500]!r}") from None
