"""Registries, by skopeo: what a reference stands for, and its content. All failures become `ImageFault`s."""

import asyncio
import base64
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from hutch.host.images import archives
from hutch.host.images.contract import ImageFault
from hutch.host.kernel.run import CommandFailed, run
from hutch.rules.image_reference import ImageReference

INSPECT_TIMEOUT_S = 30
COPY_TIMEOUT_S = 900
_PREFIX = "CannotPullContainerError"
_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_LOOPBACK = ("127.", "localhost", "[::1]")


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """A manifest: its digest, the compressed size of its layers, and what it is for ("x86_64")."""

    digest: str
    size_bytes: int
    architecture: str


class Registry:
    """Copies images from registries (and archives) into an OCI layout."""

    def __init__(
        self, layout: Path, temporary: Path, insecure: tuple[str, ...], auth_file: Path | None
    ) -> None:
        self._layout = layout
        self._temporary = temporary
        self._insecure = insecure
        self._auth_file = auth_file

    async def resolve(
        self, reference: ImageReference, architecture: str, credentials: tuple[str, str] | None
    ) -> Found:
        """What the registry has under a reference for an architecture. Raises `ImageFault`."""
        source = f"docker://{reference.pull_name}"
        with self._access(reference, credentials) as access:
            raw = await self._inspect(source, access, reference, "--raw")
            manifest = _json(raw, reference)
            digest = archives.sha256(raw)
            if "manifests" in manifest:
                digest = _choose(manifest, reference, architecture)
                if reference.digest and reference.digest != archives.sha256(raw):
                    raise _damaged(reference)
                source = f"docker://{reference.registry}/{reference.repository}@{digest}"
                raw = await self._inspect(source, access, reference, "--raw")
                manifest = _json(raw, reference)
            if archives.sha256(raw) != digest or (
                reference.digest
                and "manifests" not in manifest
                and source.endswith(reference.digest)
                and digest != reference.digest
            ):
                raise _damaged(reference)
            config = _json(await self._inspect(source, access, reference, "--config", "--raw"), reference)
        has = _host_architecture(str(config.get("architecture", "")))
        if has != architecture:
            raise ImageFault(
                "ImageWrongArchitecture",
                f'image "{reference.pull_name}" is for {has or "an unknown architecture"}, and the task runs on '
                f"{architecture}",
                fix="build the image for the task's architecture, or set runtimePlatform.cpuArchitecture",
                aws_prefix=_PREFIX,
            )
        size = sum(int(layer.get("size", 0)) for layer in manifest.get("layers", []))
        return Found(digest=digest, size_bytes=size, architecture=has)

    async def fetch(
        self,
        reference: ImageReference,
        found: Found,
        credentials: tuple[str, str] | None,
        lock: asyncio.Lock,
    ) -> None:
        """Copy a manifest and its content into the layout, tagged with its digest. Raises `ImageFault`."""
        source = f"docker://{reference.registry}/{reference.repository}@{found.digest}"
        with self._access(reference, credentials) as access:
            try:
                async with lock:
                    await self._copy(source, found, access)
            except CommandFailed as failure:
                raise classify(failure, reference.pull_name) from None

    async def inspect_source(self, source: str) -> Found:
        """The manifest of an archive or layout. Raises `CommandFailed`."""
        raw = await run(["skopeo", "inspect", "--raw", source], timeout_s=INSPECT_TIMEOUT_S)
        config = json.loads(
            await run(["skopeo", "inspect", "--config", "--raw", source], timeout_s=INSPECT_TIMEOUT_S)
        )
        manifest = json.loads(raw)
        return Found(
            digest=archives.sha256(raw),
            size_bytes=sum(int(layer.get("size", 0)) for layer in manifest.get("layers", [])),
            architecture=_host_architecture(str(config.get("architecture", ""))),
        )

    async def copy_source(self, source: str, found: Found, lock: asyncio.Lock) -> None:
        """Copy an archive or layout in. Raises `CommandFailed`."""
        async with lock:
            await self._copy(source, found, [])

    async def _copy(self, source: str, found: Found, access: list[str]) -> None:
        tag = found.digest.partition(":")[2]
        await run(
            [
                "skopeo",
                "copy",
                "--quiet",
                "--preserve-digests" if source.startswith(("docker://", "oci")) else "--insecure-policy",
                *(["--insecure-policy"] if source.startswith(("docker://", "oci")) else []),
                *(a.replace("--tls-verify", "--src-tls-verify") for a in access),
                source,
                f"oci:{self._layout}:{tag}",
            ],
            timeout_s=COPY_TIMEOUT_S,
            environment={"TMPDIR": str(self._temporary)},
        )

    async def _inspect(self, source: str, access: list[str], reference: ImageReference, *flags: str) -> bytes:
        try:
            return await run(["skopeo", "inspect", *access, *flags, source], timeout_s=INSPECT_TIMEOUT_S)
        except CommandFailed as failure:
            raise classify(failure, reference.pull_name) from None

    def tagged(self, name: str) -> bool:
        """Whether the layout has a manifest under this tag."""
        try:
            index = json.loads((self._layout / "index.json").read_bytes())
        except (OSError, ValueError):
            return False
        tags = {m.get("annotations", {}).get("org.opencontainers.image.ref.name") for m in index["manifests"]}
        return name in tags

    async def drop(self, name: str) -> None:
        """Forget a tag of the layout."""
        if self.tagged(name):
            await run(["umoci", "rm", "--image", f"{self._layout}:{name}"], timeout_s=60)

    @contextmanager
    def _access(self, reference: ImageReference, credentials: tuple[str, str] | None) -> Iterator[list[str]]:
        """skopeo's flags for a registry. Credentials go in a file (mode 0600) that is gone afterwards."""
        flags = []
        if reference.registry.startswith(_LOOPBACK) or reference.registry in self._insecure:
            flags.append("--tls-verify=false")
        if credentials is None:
            if self._auth_file is not None:
                flags += ["--authfile", str(self._auth_file)]
            yield flags
            return
        token = base64.b64encode(":".join(credentials).encode()).decode()
        document = {"auths": {reference.registry: {"auth": token}}}
        fd, path = tempfile.mkstemp(dir=self._temporary, prefix="auth-")
        try:
            with os.fdopen(fd, "w") as f:
                json.dump(document, f)
            yield [*flags, "--authfile", path]
        finally:
            os.unlink(path)


def _json(raw: bytes, reference: ImageReference) -> dict[str, Any]:
    try:
        value = json.loads(raw)
        if isinstance(value, dict):
            return value
    except (ValueError, RecursionError):
        pass
    raise ImageFault("ImageInvalid", f'"{reference.pull_name}" is not a container image', aws_prefix=_PREFIX)


def _damaged(reference: ImageReference) -> ImageFault:
    return ImageFault(
        "ImageInvalid",
        f'the registry answered "{reference.pull_name}" with content of another digest',
        fix="check the registry; nothing was run",
        aws_prefix=_PREFIX,
    )


def _choose(index: dict[str, Any], reference: ImageReference, architecture: str) -> str:
    """The manifest of an index that is for this architecture."""
    wanted = _GO_ARCHITECTURES.get(architecture, architecture)
    offered = []
    for item in index["manifests"]:
        platform = item.get("platform", {})
        offered.append(str(platform.get("architecture", "?")))
        if platform.get("architecture") == wanted and platform.get("os", "linux") == "linux":
            return str(item["digest"])
    raise ImageFault(
        "ImageWrongArchitecture",
        f'image "{reference.pull_name}" is offered for {", ".join(sorted(set(offered)))}, and the task runs on '
        f"{wanted}",
        fix="build the image for the task's architecture, or set runtimePlatform.cpuArchitecture",
        aws_prefix=_PREFIX,
    )


def _host_architecture(go_name: str) -> str:
    return {v: k for k, v in _GO_ARCHITECTURES.items()}.get(go_name, go_name)


# What skopeo says, in the order in which it is looked for: (words, kind, retryable, what we say, what to do).
_CAUSES: tuple[tuple[tuple[str, ...], str, bool, str, str], ...] = (
    (("no space left",), "HostDiskFull", False, "the host's disk is full", "free space in the data directory"),
    (
        ("unauthorized", "authentication required", "denied", "403 (Forbidden)", "401 (Unauthorized)"),
        "ImageAccessDenied",
        False,
        "the registry refuses access",
        "check the credentials (repositoryCredentials, --registry-auth-file)",
    ),
    (
        ("manifest unknown", "name unknown", "not found", "404"),
        "ImageNotFound",
        False,
        "the registry does not have it",
        "check the image's name and tag",
    ),
    (
        ("connection refused", "no such host", "i/o timeout", "network is unreachable", "connection reset", "EOF",
         "500", "502", "503", "server misbehaving", "deadline exceeded", "Temporary failure"),
        "RegistryUnreachable",
        True,
        "the registry can't be reached",
        "check the registry's address and the host's network",
    ),
    (
        ("certificate", "server gave HTTP response to HTTPS client", "tls:"),
        "RegistryUnreachable",
        False,
        "the registry's TLS can't be trusted",
        "use a registry with a trusted certificate, or name it in --insecure-registries",
    ),
)  # fmt: skip


def classify(failure: CommandFailed, image: str, *, imported: bool = False) -> ImageFault:
    """skopeo's failure as one of our kinds."""
    text = failure.message
    if failure.timed_out:
        return ImageFault(
            "RegistryUnreachable",
            f'image "{image}": the registry did not answer in time',
            fix="check the registry's address and the host's network",
            aws_prefix=_PREFIX,
            retryable=True,
        )
    for words, kind, retryable, what, fix in _CAUSES:
        if (not imported and any(w in text for w in words)) or (
            imported and kind == "HostDiskFull" and words[0] in text
        ):
            return ImageFault(
                kind,
                f'image "{image}": {what}',
                fix=fix,
                aws_prefix=_PREFIX,
                retryable=retryable,
                evidence={"registry_said": text[-400:]},
            )
    return ImageFault(
        "ImageInvalid",
        f'image "{image}" can\'t be used: {text[-300:]}',
        aws_prefix=_PREFIX,
        evidence={"tool": failure.argv[0]},
    )
