"""The content of an image store: blobs shared by all images, and a record for each image that is here as a whole.

<root>/blobs/sha256/<hex>   manifests, configurations and layers, each under its digest
<root>/images/<hex>.json    `Content`: written when all blobs of an image are there, so a pull that was cut off left nothing
"""

import contextlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.log import get_logger
from hutch.host.images import archives
from hutch.host.images.contract import ImageFault
from hutch.host.images.manifest import parse_manifest

log = get_logger(__name__)

LAYOUT_TAG = "image"
_REF_NAME = "org.opencontainers.image.ref.name"
MAX_DOCUMENT_BYTES = 16 * 1024 * 1024


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """An image that is here. `digest` names it: its registry's, or if it was imported its own."""

    digest: str
    manifest: str
    """Digest of the OCI manifest: another one where the registry's is of Docker's kind."""
    blobs: tuple[str, ...]
    """All digests it is made of, the manifest's too."""


class ContentStore:
    """Blobs and records. What changes them is called by the image store, which sees to it that no pull is under way
    when blobs are swept."""

    def __init__(self, root: Path) -> None:
        self.blobs = root / "blobs"
        self._records = root / "images"
        for path in (self.blobs / "sha256", self._records):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._known = {c.digest: c for c in self._load()}

    def _load(self) -> Iterator[Content]:
        for path in self._records.glob("*.json"):
            try:
                yield msgspec.json.decode(path.read_bytes(), type=Content)
            except (OSError, msgspec.DecodeError) as error:
                log.warning(
                    "image record unreadable, the image is pulled anew", file=str(path), reason=str(error)
                )
                path.unlink(missing_ok=True)

    def get(self, digest: str) -> Content | None:
        """The image of this digest, if it is here as a whole."""
        return self._known.get(digest)

    def all(self) -> tuple[Content, ...]:
        return tuple(self._known.values())

    def read_json(self, digest: str) -> dict[str, Any]:
        """A manifest or configuration. Raises `ImageFault` if it is none."""
        path = self.path(digest)
        try:
            if path.stat().st_size > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{digest} is longer than {MAX_DOCUMENT_BYTES} bytes")
            document = json.loads(path.read_bytes())
            if not isinstance(document, dict):
                raise ValueError(f"{digest} is not a JSON object")
        except (OSError, ValueError, RecursionError) as error:
            raise ImageFault("ImageInvalid", f"the image's {digest} can't be read: {error}") from None
        return document

    def path(self, digest: str) -> Path:
        """Where a blob is. Raises `ImageFault` for what is no digest."""
        algorithm, _, name = digest.partition(":")
        if algorithm != "sha256" or len(name) != 64 or not name.isalnum():
            raise ImageFault("ImageInvalid", f"{digest[:100]!r} is not a SHA-256 digest")
        return self.blobs / algorithm / name

    def take(self, layout: Path, digest: str) -> Content:
        """Record the one image of a layout whose blobs were put here. `digest` "": it is named by its own manifest."""
        index = json.loads((layout / "index.json").read_bytes())
        manifest_digest = str(index["manifests"][0]["digest"])
        manifest = parse_manifest(self.path(manifest_digest).read_bytes())
        content = Content(
            digest=digest or manifest_digest,
            manifest=manifest_digest,
            blobs=tuple(
                {manifest_digest: 0, manifest.config.digest: 0} | {x.digest: 0 for x in manifest.layers}
            ),
        )
        for blob in content.blobs:
            if not self.path(blob).exists():
                raise ImageFault("ImageInvalid", f"the image lacks its blob {blob}")
        archives.write_atomically(self._record(content.digest), msgspec.json.encode(content))
        self._known[content.digest] = content
        return content

    def drop(self, digest: str) -> None:
        """Forget an image; its blobs go with the next sweep."""
        self._record(digest).unlink(missing_ok=True)
        self._known.pop(digest, None)

    def damaged(self, content: Content) -> None:
        """An image did not unpack: its blobs may be damaged on the disk. It is pulled anew the next time."""
        shared = {b for c in self._known.values() if c.digest != content.digest for b in c.blobs}
        self.drop(content.digest)
        for blob in set(content.blobs) - shared:
            with contextlib.suppress(ImageFault):
                self.path(blob).unlink(missing_ok=True)

    def size_of(self, digests: Iterable[str]) -> int:
        """Bytes of blobs, each counted once."""
        total = 0
        for digest in set(digests):
            with contextlib.suppress(OSError, ImageFault):
                total += self.path(digest).stat().st_size
        return total

    def sweep(self) -> int:
        """Remove the blobs that no record needs; bytes freed. Only while no pull is under way."""
        needed = {b for c in self._known.values() for b in c.blobs}
        freed = 0
        for path in (self.blobs / "sha256").iterdir():
            if f"sha256:{path.name}" not in needed:
                freed += path.lstat().st_size
                path.unlink()
        return freed

    def write_layout(self, content: Content, path: Path) -> None:
        """An OCI layout with this image only, tagged `LAYOUT_TAG`, on the shared blobs."""
        path.mkdir(mode=0o700)
        os.symlink(self.blobs, path / "blobs")
        (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        entry = {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": content.manifest,
            "size": self.path(content.manifest).stat().st_size,
            "annotations": {_REF_NAME: LAYOUT_TAG},
        }
        (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))

    def _record(self, digest: str) -> Path:
        return self._records / f"{digest.partition(':')[2]}.json"
