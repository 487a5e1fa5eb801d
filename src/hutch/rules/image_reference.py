"""Image references, read and normalised as Docker does."""

import re

import msgspec

from hutch.base.errors import Invalid

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_DOMAIN = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_DOMAIN_RE = re.compile(_DOMAIN)
_PATH_RE = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG_RE = re.compile(r"[\w][\w.-]{0,127}", re.ASCII)
_DIGEST_RE = re.compile(r"sha256:[a-f0-9]{64}")
MAX_LENGTH = 512


class ImageReference(msgspec.Struct, frozen=True, kw_only=True):
    """A reference in full. `tag` is "" if only a digest was given; `digest` "" if none was."""

    registry: str
    repository: str
    tag: str
    digest: str

    @property
    def name(self) -> str:
        """`registry/repository:tag`, or with `@digest` if there is no tag: the key of local images."""
        base = f"{self.registry}/{self.repository}"
        return f"{base}:{self.tag}" if self.tag else f"{base}@{self.digest}"

    @property
    def pull_name(self) -> str:
        """What a registry is asked for: the digest if there is one (it wins over the tag)."""
        base = f"{self.registry}/{self.repository}"
        return f"{base}@{self.digest}" if self.digest else f"{base}:{self.tag}"


def parse_reference(text: str) -> ImageReference:
    """`nginx` is docker.io/library/nginx:latest. Raises `Invalid` naming what is wrong."""
    if not text or len(text) > MAX_LENGTH:
        raise Invalid(f"an image reference has 1 to {MAX_LENGTH} characters")
    rest, _, digest = text.partition("@")
    if "@" in text and not _DIGEST_RE.fullmatch(digest):
        raise Invalid(f"{text!r}: the digest must be sha256: and 64 hexadecimal digits")
    head, slash, tail = rest.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        registry, rest = head, tail
    else:
        registry = "docker.io"
    path, _, tag = rest.partition(":")
    if registry == "docker.io" and "/" not in path:
        path = f"library/{path}"
    if not _DOMAIN_RE.fullmatch(registry):
        raise Invalid(f"{text!r}: {registry!r} is not a registry's host name")
    if not _PATH_RE.fullmatch(path):
        raise Invalid(f"{text!r}: repository names are lower case letters, digits and . _ - between slashes")
    if ":" in rest and not _TAG_RE.fullmatch(tag):
        raise Invalid(f"{text!r}: {tag!r} is not a tag")
    if not tag and not digest:
        tag = "latest"
    return ImageReference(registry=registry, repository=path, tag=tag, digest=digest)


def normalise_name(text: str) -> str:
    """The name under which a local image is kept."""
    return parse_reference(text).name
