"""The image store of a host: a shared OCI layout of pulled and imported content, and root file systems made from it.

<root>/layout/            OCI image layout: blobs by digest; one tag for each manifest (its digest's hex)
<root>/roots/<hex>/       root.erofs or tree/, image.json: ready for drivers, by manifest digest
<root>/names.json         names of local images
<root>/uses/<task id>     the manifest digests that a task uses
<root>/tmp/               work in progress; emptied at start
"""

import asyncio
import json
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.base.log import get_logger
from hutch.host.drivers.contract import RootImage
from hutch.host.images import archives
from hutch.host.images.contract import ImageFault
from hutch.host.images.registry import Registry, classify
from hutch.host.images.unpack import make_root
from hutch.host.kernel.run import CommandFailed, run
from hutch.rules.image_reference import ImageReference, parse_reference
from hutch.wire.fleet import ImageFact

log = get_logger(__name__)

_PREFIX = "CannotPullContainerError"
MAX_CONVERSIONS = 2


class _Ready(msgspec.Struct, frozen=True, kw_only=True):
    """`image.json`: what is known of a prepared image."""

    digest: str
    config: dict[str, Any]
    architecture: str
    size_bytes: int
    passwd: str
    group: str


class DiskImageStore:
    """`hutch.host.images.contract.ImageStore` on a directory."""

    def __init__(
        self,
        root: Path,
        *,
        clock: Clock,
        cache_bytes: int,
        insecure_registries: tuple[str, ...] = (),
        auth_file: Path | None = None,
    ) -> None:
        self._root = root
        self._clock = clock
        self._cache_bytes = cache_bytes
        self._registry = Registry(root / "layout", root / "tmp", insecure_registries, auth_file)
        self._work: dict[str, asyncio.Task[Any]] = {}
        self._conversions = asyncio.Semaphore(MAX_CONVERSIONS)
        self._layout_lock = asyncio.Lock()
        for name in ("layout", "roots", "uses"):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        archives.clear_directory(root / "tmp")
        self._names: dict[str, ImageFact] = self._load_names()

    async def prepare(
        self,
        reference: str,
        *,
        architecture: str,
        root_format: str,
        credentials: tuple[str, str] | None = None,
        max_bytes: int,
    ) -> RootImage:
        """See the contract."""
        try:
            parsed = parse_reference(reference)
        except Invalid as error:
            raise ImageFault(
                "ImageInvalid", error.message, fix="correct the image's name", aws_prefix=_PREFIX
            ) from None
        digest = await self._resolve(parsed, architecture, credentials, max_bytes)
        ready = await self._share(
            f"root/{digest}/{root_format}", lambda: self._ensure_root(digest, root_format, max_bytes)
        )
        directory = self._root / "roots" / digest.partition(":")[2]
        os.utime(directory)
        if ready.architecture != architecture:
            raise _wrong_architecture(parsed, ready.architecture, architecture)
        return RootImage(
            reference=reference,
            digest=digest,
            config=ready.config,
            erofs_path=str(directory / "root.erofs") if root_format == "erofs" else "",
            directory=str(directory / "tree") if root_format == "directory" else "",
            passwd=ready.passwd,
            group=ready.group,
        )

    async def _resolve(
        self,
        reference: ImageReference,
        architecture: str,
        credentials: tuple[str, str] | None,
        max_bytes: int,
    ) -> str:
        """The digest of the image's manifest, its content being here: local names first, then the registry."""
        local = self._names.get(reference.name)
        if local is not None and reference.digest in ("", local.digest):
            return local.digest
        key = f"pull/{reference.pull_name}/{architecture}/{hash(credentials)}"
        digest: str = await self._share(
            key, lambda: self._pull(reference, architecture, credentials, max_bytes)
        )
        return digest

    async def _pull(
        self,
        reference: ImageReference,
        architecture: str,
        credentials: tuple[str, str] | None,
        max_bytes: int,
    ) -> str:
        seen = self._root / "pulled.json"
        known: dict[str, str] = json.loads(seen.read_bytes()) if seen.exists() else {}
        key = f"{reference.pull_name} {architecture}"
        try:
            found = await self._registry.resolve(reference, architecture, credentials)
        except ImageFault as fault:
            if fault.retryable and known.get(key) and self._has(known[key]):
                log.warning("registry unreachable, using the cached image", image=reference.pull_name)
                return known[key]
            raise
        if found.size_bytes > max_bytes:
            raise ImageFault(
                "ImageTooLarge",
                f'image "{reference.pull_name}" has {found.size_bytes} bytes compressed, and the task\'s disk takes '
                f"{max_bytes}",
                fix="raise ephemeralStorage, or use a smaller image",
                aws_prefix=_PREFIX,
            )
        if not self._has(found.digest):
            await self._registry.fetch(reference, found, credentials, self._layout_lock)
        if known.get(key) != found.digest:
            archives.write_atomically(seen, msgspec.json.encode({**known, key: found.digest}))
        return found.digest

    def _has(self, digest: str) -> bool:
        name = digest.partition(":")[2]
        return (self._root / "roots" / name / "image.json").exists() or (self._registry.tagged(name))

    async def _ensure_root(self, digest: str, root_format: str, max_bytes: int) -> _Ready:
        name = digest.partition(":")[2]
        directory = self._root / "roots" / name
        wanted = directory / ("root.erofs" if root_format == "erofs" else "tree")
        described = directory / "image.json"
        if wanted.exists() and described.exists():
            return msgspec.json.decode(described.read_bytes(), type=_Ready)
        async with self._conversions:
            made = await make_root(
                self._root / "layout", name, self._root / "tmp", directory, root_format, max_bytes
            )
        ready = _Ready(
            digest=digest,
            config=made.config,
            architecture=made.architecture,
            size_bytes=made.size_bytes,
            passwd=made.passwd,
            group=made.group,
        )
        archives.write_atomically(described, msgspec.json.encode(ready))
        return ready

    async def _share(self, key: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run work once for all who ask for it at the same time; one who gives up does not end it for the others."""
        task = self._work.get(key)
        if task is None:
            task = self._work[key] = asyncio.ensure_future(work())
            task.add_done_callback(lambda t: (self._work.pop(key, None), t.cancelled() or t.exception()))
        return await asyncio.shield(task)

    def acquire(self, digest: str, task_id: str) -> None:
        """See the contract."""
        path = self._root / "uses" / task_id
        used = path.read_text().split() if path.exists() else []
        if digest not in used:
            archives.write_atomically(path, "\n".join([*used, digest]).encode())

    def release(self, task_id: str) -> None:
        """See the contract."""
        (self._root / "uses" / task_id).unlink(missing_ok=True)

    async def import_archive(self, path: str, name: str | None) -> ImageFact:
        """See the contract."""
        source, own_name = await asyncio.to_thread(archives.recognise, Path(path), self._root / "tmp")
        wanted = name or own_name
        if not wanted:
            raise ImageFault(
                "ImageInvalid",
                "the archive does not say its name",
                fix="give one: hutch image import FILE NAME:TAG",
            )
        try:
            reference = parse_reference(wanted)
        except Invalid as error:
            raise ImageFault("ImageInvalid", error.message) from None
        try:
            found = await self._registry.inspect_source(source)
            await self._registry.copy_source(source, found, self._layout_lock)
        except CommandFailed as failure:
            raise classify(failure, path, imported=True) from None
        fact = ImageFact(
            name=reference.name,
            digest=found.digest,
            size_bytes=found.size_bytes,
            architecture=found.architecture,
            imported_at=self._clock.now(),
        )
        self._names[reference.name] = fact
        self._save_names()
        return fact

    def local_images(self) -> tuple[ImageFact, ...]:
        return tuple(self._names[n] for n in sorted(self._names))

    async def remove(self, name: str) -> bool:
        """See the contract."""
        if self._names.pop(name, None) is None:
            return False
        self._save_names()
        return True

    async def collect_garbage(self) -> int:
        """See the contract. The layout's blobs go with the roots that were made of them."""
        used = {d for p in (self._root / "uses").iterdir() for d in p.read_text().split()}
        used |= {f.digest for f in self._names.values()}
        kept = {d.partition(":")[2] for d in used}
        roots = sorted((self._root / "roots").iterdir(), key=lambda p: p.stat().st_mtime)
        sizes = {p: _size_of(p) for p in roots}
        total, freed = sum(sizes.values()), 0
        for path in roots:
            if total - freed <= self._cache_bytes:
                break
            if path.name in kept:
                continue
            await asyncio.to_thread(shutil.rmtree, path, ignore_errors=True)
            freed += sizes[path]
            async with self._layout_lock:
                await self._registry.drop(path.name)
        if freed:
            async with self._layout_lock:
                await run(["umoci", "gc", "--layout", str(self._root / "layout")], timeout_s=300)
            log.info("image cache collected", freed_bytes=freed)
        return freed

    def _load_names(self) -> dict[str, ImageFact]:
        path = self._root / "names.json"
        if not path.exists():
            return {}
        facts = msgspec.json.decode(path.read_bytes(), type=list[ImageFact])
        return {f.name: f for f in facts}

    def _save_names(self) -> None:
        archives.write_atomically(self._root / "names.json", msgspec.json.encode(list(self._names.values())))


def _size_of(path: Path) -> int:
    """Bytes on disk of a directory's files."""
    return sum((Path(base) / f).lstat().st_blocks * 512 for base, _, files in os.walk(path) for f in files)


def _wrong_architecture(reference: ImageReference, has: str, wanted: str) -> ImageFault:
    return ImageFault(
        "ImageWrongArchitecture",
        f'image "{reference.pull_name}" is for {has}, and the task runs on {wanted}',
        fix="build the image for the task's architecture, or set runtimePlatform.cpuArchitecture",
        aws_prefix=_PREFIX,
    )
