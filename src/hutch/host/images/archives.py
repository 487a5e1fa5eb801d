"""Archives and files of the image store: what kind an archive is, digests, atomic writes."""

import contextlib
import hashlib
import json
import os
import tarfile
import tempfile
from pathlib import Path

from hutch.host.images.contract import ImageFault

MAX_INDEX_BYTES = 4 * 1024 * 1024
MAX_MEMBERS = 100_000
_COMPRESSED = (b"\x1f\x8b", b"\xfd7zXZ", b"BZh", b"\x28\xb5\x2f\xfd")


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file; after a crash it is the old one or the new one, whole."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def recognise(path: Path) -> tuple[str, str]:
    """(skopeo's name of an archive or layout, the image name that it says). Raises `ImageFault`.

    Nothing is extracted: only the index inside is read, bounded. A compressed archive is refused: to look into one is
    to unpack it, whatever it unpacks to.
    """
    if path.is_dir():
        index = path / "index.json"
        if not index.exists():
            raise _not_an_image(path, "a directory without index.json")
        with index.open("rb") as f:
            return f"oci:{path}", _name_in_index(f.read(MAX_INDEX_BYTES))
    try:
        with tarfile.open(path, "r:") as archive:
            members = {}
            for number, member in enumerate(archive):
                if number > MAX_MEMBERS:
                    raise _not_an_image(path, "too many members")
                name = member.name.removeprefix("./")
                if name in ("index.json", "manifest.json") and member.isreg():
                    members[name] = member
                if len(members) == 2:
                    break
            read = {n: (archive.extractfile(m), m.size) for n, m in members.items()}
            texts = {n: f.read(min(size, MAX_INDEX_BYTES)) for n, (f, size) in read.items() if f is not None}
    except FileNotFoundError:
        raise ImageFault("ImageNotFound", f"there is no file {path}") from None
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        with contextlib.suppress(OSError), path.open("rb") as f:
            if f.read(6).startswith(_COMPRESSED):
                raise _not_an_image(path, "it is compressed; decompress it first (gunzip)") from None
        raise _not_an_image(path, str(error)) from None
    if "index.json" in texts:
        name = _name_in_index(texts["index.json"])
        return f"oci-archive:{path}", name or _name_in_docker(texts.get("manifest.json", b"[]"))
    if "manifest.json" in texts:
        return f"docker-archive:{path}", _name_in_docker(texts["manifest.json"])
    raise _not_an_image(path, "neither index.json (OCI) nor manifest.json (docker) is in it")


def _not_an_image(path: Path, why: str) -> ImageFault:
    return ImageFault(
        "ImageInvalid",
        f"this is not an image archive: {why}",
        fix="use an OCI archive or layout, or what `docker save` wrote",
    )


def _name_in_index(data: bytes) -> str:
    try:
        manifests = json.loads(data).get("manifests", [])
        notes = manifests[0].get("annotations", {}) if len(manifests) == 1 else {}
        name = str(
            notes.get("io.containerd.image.name") or notes.get("org.opencontainers.image.ref.name") or ""
        )
        # A bare tag ("latest") is no name.
        return name if "/" in name or ":" in name else ""
    except (ValueError, AttributeError, IndexError, KeyError, TypeError, RecursionError):
        return ""


def _name_in_docker(data: bytes) -> str:
    try:
        tags = json.loads(data)[0].get("RepoTags") or [""]
        return str(tags[0])
    except (ValueError, AttributeError, IndexError, KeyError, TypeError, RecursionError):
        return ""
