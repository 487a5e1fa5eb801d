"""What a host is asked about images, and what it answers: the typed arguments and results of two verbs of
`hutch.wire.fleet.Request`, `image.prefetch` and `task.preflight`."""

import msgspec


class ImageWanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image to be made ready. `credentials`: user name and password for its registry, never logged or written down."""

    reference: str
    credentials: tuple[str, str] | None = None


class PrefetchWanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Arguments of `image.prefetch`. `max_bytes`: of the disk that tasks with these images would have."""

    images: tuple[ImageWanted, ...]
    launch_types: tuple[str, ...]
    architecture: str
    max_bytes: int


class PrefetchedImage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came of one. Without an `error` it is ready."""

    reference: str
    digest: str = ""
    took_s: float = 0.0
    error_kind: str = ""
    error: str = ""
    fix: str = ""


class PreflightWanted(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Arguments of `task.preflight`: what a task would need of this host. Nothing is pulled, nothing is bound."""

    images: tuple[ImageWanted, ...]
    architecture: str
    host_ports: tuple[int, ...] = ()


class SeenImage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a host found of an image: with an `error_kind` (those of image faults) only the error is said."""

    reference: str
    digest: str = ""
    size_bytes: int = 0
    """Compressed."""
    unpacked_bytes: int | None = None
    """None if it was not unpacked on this host yet."""
    is_here: bool = False
    """Its content is on the host: nothing would be pulled."""
    is_stale: bool = False
    """Its registry can't be reached; this is what was pulled before."""
    error_kind: str = ""
    error: str = ""
    fix: str = ""


class PreflightSeen(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Answer to `task.preflight`; images in the order asked for."""

    images: tuple[SeenImage, ...]
    free_bytes: int
    """What the host's disk can still take of images."""
    busy_ports: dict[str, str] = {}
    """Host ports (decimal) on which a program other than hutch's ingress listens, and which."""
