"""Registries, by skopeo: what a reference stands for, and its content. All failures become `ImageFault`s."""

import base64
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hutch.base.units import KIB, MIB
from hutch.host.images import archives
from hutch.host.images.contract import ImageFault
from hutch.host.images.manifest import Index, Manifest, parse, parse_manifest
from hutch.host.kernel.run import CommandFailed, run
from hutch.rules.image_reference import ImageReference

INSPECT_TIMEOUT_S = 30
COPY_TIMEOUT_S = 900
MAX_DOCUMENT_BYTES = 16 * MIB
_PREFIX = "CannotPullContainerError"
_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_LOOPBACK = ("127.", "localhost", "[::1]")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest: its digest, the compressed sizes of its layers as it says, and what it is for ("x86_64")."""

    digest: str
    size_bytes: int
    architecture: str
    largest_bytes: int = 0


class _Config(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str = ""


class Registry:
    """Copies images from registries (and archives) into the shared blobs, by way of a layout that is thrown away."""

    def __init__(
        self, blobs: Path, temporary: Path, insecure: tuple[str, ...], auth_file: Path | None
    ) -> None:
        self._blobs = blobs
        self._temporary = temporary
        self._insecure = insecure
        self._auth_file = auth_file

    async def resolve(
        self, reference: ImageReference, architecture: str, credentials: tuple[str, str] | None
    ) -> Found:
        """What the registry has under a reference for an architecture. Raises `ImageFault`."""
        with self._access(reference, credentials) as access:
            source = f"docker://{reference.pull_name}"
            raw = await self._inspect(source, access, reference, "--raw")
            digest = archives.sha256(raw)
            if reference.digest not in ("", digest):
                raise _damaged(reference)
            found = _parsed(raw, reference)
            if isinstance(found, Index):
                digest = _choose(found, reference, architecture)
                source = f"docker://{reference.registry}/{reference.repository}@{digest}"
                raw = await self._inspect(source, access, reference, "--raw")
                if archives.sha256(raw) != digest:
                    raise _damaged(reference)
                found = _parsed(raw, reference)
            if isinstance(found, Index):
                raise ImageFault(
                    "ImageInvalid",
                    f'image "{reference.pull_name}": an index within an index',
                    aws_prefix=_PREFIX,
                )
            config = await self._inspect(source, access, reference, "--config", "--raw")
        has = _architecture_in(config)
        if has != architecture:
            raise ImageFault(
                "ImageWrongArchitecture",
                f'image "{reference.pull_name}" is for {has or "an unknown architecture"}, and the task runs on '
                f"{architecture}",
                fix="build the image for the task's architecture, or set runtimePlatform.cpuArchitecture",
                aws_prefix=_PREFIX,
            )
        return _found(found, digest, has)

    async def fetch(
        self,
        reference: ImageReference,
        found: Found,
        credentials: tuple[str, str] | None,
        layout: Path,
    ) -> None:
        """Copy a manifest and its content. Raises `ImageFault`."""
        source = f"docker://{reference.registry}/{reference.repository}@{found.digest}"
        with self._access(reference, credentials) as access:
            try:
                # A registry that sends more than its manifest says fills no disk.
                await self._copy(
                    source, layout, access, max(found.largest_bytes, MAX_DOCUMENT_BYTES) + 64 * KIB
                )
            except CommandFailed as failure:
                raise classify(failure, reference.pull_name) from None

    async def inspect_source(self, source: str) -> Found:
        """The manifest of an archive or layout. Raises `CommandFailed` or `ImageFault`."""
        raw = await run(
            ["skopeo", "inspect", "--raw", source], timeout_s=INSPECT_TIMEOUT_S, dies_with_us=True
        )
        config = await run(
            ["skopeo", "inspect", "--config", "--raw", source], timeout_s=INSPECT_TIMEOUT_S, dies_with_us=True
        )
        return _found(parse_manifest(raw), archives.sha256(raw), _architecture_in(config))

    async def copy_source(self, source: str, layout: Path, max_file_bytes: int) -> None:
        """Copy an archive or layout in. Raises `CommandFailed`."""
        await self._copy(source, layout, [], max_file_bytes)

    async def _copy(self, source: str, layout: Path, access: list[str], max_file_bytes: int) -> None:
        await run(
            [
                "skopeo",
                "copy",
                "--quiet",
                "--insecure-policy",
                # Manifests of Docker's kind are rewritten, since nothing that unpacks knows them; blobs stay.
                "--format=oci",
                f"--dest-shared-blob-dir={self._blobs}",
                *(a.replace("--tls-verify", "--src-tls-verify") for a in access),
                source,
                f"oci:{layout}:image",
            ],
            timeout_s=COPY_TIMEOUT_S,
            environment={"TMPDIR": str(self._temporary)},
            dies_with_us=True,
            max_file_bytes=max_file_bytes,
        )

    async def _inspect(self, source: str, access: list[str], reference: ImageReference, *flags: str) -> bytes:
        try:
            return await run(
                ["skopeo", "inspect", *access, *flags, source], timeout_s=INSPECT_TIMEOUT_S, dies_with_us=True
            )
        except CommandFailed as failure:
            raise classify(failure, reference.pull_name) from None

    @contextmanager
    def _access(self, reference: ImageReference, credentials: tuple[str, str] | None) -> Iterator[list[str]]:
        """skopeo's flags for a registry. Credentials go in a file (mode 0600) that is gone afterwards. Without any, an
        empty one keeps it from those of the user that hutch runs as."""
        flags = []
        if reference.registry.startswith(_LOOPBACK) or reference.registry in self._insecure:
            flags.append("--tls-verify=false")
        if credentials is None and self._auth_file is not None:
            yield [*flags, "--authfile", str(self._auth_file)]
            return
        document: dict[str, object] = {"auths": {}}
        if credentials is not None:
            token = base64.b64encode(":".join(credentials).encode()).decode()
            document = {"auths": {reference.registry: {"auth": token}}}
        fd, path = tempfile.mkstemp(dir=self._temporary, prefix="auth-")
        try:
            with os.fdopen(fd, "w") as f:
                json.dump(document, f)
            yield [*flags, "--authfile", path]
        finally:
            os.unlink(path)


def _parsed(raw: bytes, reference: ImageReference) -> Manifest | Index:
    try:
        return parse(raw)
    except ImageFault as fault:
        fault.message = f'image "{reference.pull_name}": {fault.message}'
        fault.args = (fault.message,)
        raise


def _found(manifest: Manifest, digest: str, architecture: str) -> Found:
    return Found(
        digest=digest,
        size_bytes=manifest.size_bytes,
        architecture=architecture,
        largest_bytes=max((x.size for x in manifest.layers), default=0),
    )


def _damaged(reference: ImageReference) -> ImageFault:
    return ImageFault(
        "ImageInvalid",
        f'image "{reference.pull_name}": the registry answered with content of another digest',
        fix="check the registry; nothing was run",
        aws_prefix=_PREFIX,
    )


def _choose(index: Index, reference: ImageReference, architecture: str) -> str:
    """The manifest of an index that is for this architecture."""
    wanted = _GO_ARCHITECTURES.get(architecture, architecture)
    offered = set()
    for item in index.manifests:
        if item.platform.get("os", "linux") != "linux":
            continue
        if item.platform.get("architecture") == wanted:
            return item.digest
        offered.add(str(item.platform.get("architecture", "?"))[:40])
    raise ImageFault(
        "ImageWrongArchitecture",
        f'image "{reference.pull_name}" is offered for {", ".join(sorted(offered)) or "nothing"}, and the task runs on '
        f"{wanted}",
        fix="build the image for the task's architecture, or set runtimePlatform.cpuArchitecture",
        aws_prefix=_PREFIX,
    )


def _architecture_in(config: bytes) -> str:
    """The architecture of an image configuration, in the kernel's word. Raises `ImageFault`."""
    try:
        go_name = msgspec.json.decode(config, type=_Config).architecture
    except (msgspec.DecodeError, RecursionError):
        raise ImageFault(
            "ImageInvalid", "the image's configuration is not what OCI says", aws_prefix=_PREFIX
        ) from None
    return {v: k for k, v in _GO_ARCHITECTURES.items()}.get(go_name, go_name)


# What skopeo says, in the order in which it is looked for: (pattern, kind, retryable, what we say, what to do).
_CAUSES = tuple(
    (re.compile(words, re.IGNORECASE), kind, retryable, what, fix)
    for words, kind, retryable, what, fix in (
        (
            r"file too large|signal: file size limit|SIGXFSZ",
            "ImageInvalid",
            False,
            "the registry sends more than the manifest says",
            "push the image again; nothing was run",
        ),
        (
            r"no space left",
            "HostDiskFull",
            False,
            "the host's disk is full",
            "free space in the data directory",
        ),
        (
            r"unauthorized|authentication required|denied|\b40[13]\b|no basic auth credentials|invalid username/password",
            "ImageAccessDenied",
            False,
            "the registry refuses access (pull access denied)",
            "check the credentials (repositoryCredentials, --registry-auth-file), and that the repository exists",
        ),
        (
            r"digest did not match|does not match|digest mismatch|unexpected EOF|invalid (checksum|digest)|different size"
            r"|digest .* verification failed|gzip: invalid|corrupt",
            "ImageInvalid",
            False,
            "its content is damaged: it does not have the digest or the length that the manifest says",
            "push the image again; nothing was run",
        ),
        (
            r"manifest unknown|name unknown|blob unknown|not found|\b404\b",
            "ImageNotFound",
            False,
            "the registry does not have it (not found)",
            "check the image's name and tag",
        ),
        (
            r"certificate|server gave HTTP response to HTTPS client|tls:|x509",
            "RegistryUnreachable",
            False,
            "the registry's TLS can't be trusted",
            "use a registry with a trusted certificate, or name it in --insecure-registries",
        ),
        (
            r"toomanyrequests|\b429\b|rate limit",
            "RegistryUnreachable",
            True,
            "the registry limits the rate of pulls (toomanyrequests)",
            "log in with repositoryCredentials, or use a mirror",
        ),
        (
            r"connection refused|no such host|i/o timeout|unreachable|connection reset|\bEOF\b|\b50[0234]\b"
            r"|server misbehaving|deadline exceeded|Temporary failure|no route to host|broken pipe|dial tcp",
            "RegistryUnreachable",
            True,
            "the registry can't be reached",
            "check the registry's address and the host's network",
        ),
    )
)


def classify(failure: CommandFailed, image: str, *, imported: bool = False) -> ImageFault:
    """skopeo's failure as one of our kinds."""
    if failure.timed_out:
        return ImageFault(
            "RegistryUnreachable",
            f'image "{image}": the registry did not answer in time',
            fix="check the registry's address and the host's network",
            aws_prefix=_PREFIX,
            retryable=True,
        )
    said = failure.message
    # An image may be called what a cause is: its name says nothing about what went wrong.
    text = said
    for name in {
        image,
        *re.split(r"[@]", image),
        image.partition("/")[0],
        image.partition("/")[2].split(":")[0],
    }:
        text = text.replace(name, " ") if len(name) > 2 else text
    for pattern, kind, retryable, what, fix in _CAUSES:
        if imported and kind not in ("HostDiskFull", "ImageInvalid"):
            continue
        if pattern.search(text) or (kind == "ImageInvalid" and failure.returncode == -25):
            return ImageFault(
                kind,
                f'image "{image}": {what}',
                fix=fix,
                aws_prefix=_PREFIX,
                retryable=retryable,
                evidence={"registry_said": said[-400:]},
            )
    return ImageFault(
        "ImageInvalid",
        f'image "{image}" can\'t be used: {said[-300:]}',
        fix="push an image of OCI or Docker's schema 2",
        aws_prefix=_PREFIX,
        evidence={"tool": failure.argv[0]},
    )
