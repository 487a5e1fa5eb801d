"""Container images that hosts hold."""

from hutch.model.record import Record


class LocalImage(Record, frozen=True, kw_only=True, omit_defaults=True):
    """An image imported with `hutch image import`, addressed by its name as any other reference."""

    name: str
    """`repository:tag`, normalised as Docker does (`nginx` is `docker.io/library/nginx:latest`)."""
    digest: str
    """Digest of the manifest, `sha256:<hex>`."""
    size_bytes: int
    architecture: str
    imported_at: float
    host_id: str
