"""Manifests and indexes as registries send them: hostile until they are parsed."""

from typing import Any

import msgspec

from hutch.host.images.contract import ImageFault

MAX_LAYERS = 500
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"


class Descriptor(msgspec.Struct, frozen=True, kw_only=True):
    """A blob: its digest and how many bytes it has, as somebody says."""

    digest: str
    size: int
    media_type: str = msgspec.field(default="", name="mediaType")
    platform: dict[str, Any] = {}


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """An image manifest, of OCI or of Docker's version 2 schema 2."""

    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def size_bytes(self) -> int:
        """Compressed bytes of all layers."""
        return sum(layer.size for layer in self.layers)


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """An index, or Docker's manifest list."""

    manifests: tuple[Descriptor, ...]


class _Kind(msgspec.Struct, frozen=True, kw_only=True):
    media_type: str = msgspec.field(default="", name="mediaType")
    schema: int = msgspec.field(default=2, name="schemaVersion")
    manifests: Any = None


def parse(raw: bytes) -> Manifest | Index:
    """Whichever it is. Raises `ImageFault`."""
    try:
        kind = msgspec.json.decode(raw, type=_Kind)
        if kind.schema == 1 or kind.media_type.startswith(_SCHEMA_1):
            raise _invalid("it is of Docker's old schema 1; push it again with a current tool")
        if kind.manifests is not None:
            return msgspec.json.decode(raw, type=Index)
        manifest = msgspec.json.decode(raw, type=Manifest)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _invalid(f"it is not a container image: {error}") from None
    if len(manifest.layers) > MAX_LAYERS:
        raise _invalid(f"it has {len(manifest.layers)} layers, and {MAX_LAYERS} are accepted")
    for item in (manifest.config, *manifest.layers):
        if item.size < 0:
            raise _invalid("a blob has a negative size")
        if item.media_type.endswith("zstd"):
            raise _invalid("a layer is compressed with zstd, which is not served yet; push it with gzip")
        if "foreign" in item.media_type or "nondistributable" in item.media_type:
            raise _invalid("it has foreign layers, as Windows images do; hutch runs Linux")
    return manifest


def parse_manifest(raw: bytes) -> Manifest:
    """A manifest, and not an index. Raises `ImageFault`."""
    found = parse(raw)
    if isinstance(found, Index):
        raise _invalid("it is an index where an image is expected")
    return found


def _invalid(why: str) -> ImageFault:
    return ImageFault(
        "ImageInvalid",
        f"the image can't be used: {why}",
        fix="push an image of OCI or Docker's schema 2",
        aws_prefix="CannotPullContainerError",
    )
