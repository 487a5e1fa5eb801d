"""The image store of a host: content that was pulled or imported, and root file systems made from it.

<root>/blobs/, <root>/images/   content (see `content`): shared by all images
<root>/roots/<hex>/             root.erofs or tree/, image.json: ready for drivers, by the image's digest
<root>/names.json               names of local images
<root>/pulled.json              what tags stood for when they were last pulled
<root>/uses/<task id>           the digests that a task uses
<root>/tmp/                     work in progress; emptied at start
"""

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.base.log import get_logger
from hutch.base.units import GIB, format_bytes
from hutch.host.drivers.contract import RootImage
from hutch.host.images import archives
from hutch.host.images.collection import Collection
from hutch.host.images.content import ContentStore
from hutch.host.images.contract import ImageFault, ImageLook
from hutch.host.images.registry import Found, Registry, classify
from hutch.host.images.unpack import Space, discard_leftovers, make_root, too_large
from hutch.host.kernel.run import CommandFailed
from hutch.rules.image_reference import ImageReference, parse_reference
from hutch.wire.facts import ImageFact

log = get_logger(__name__)

_PREFIX = "CannotPullContainerError"
MAX_CONVERSIONS = 2
PROMISE_S = 3600.0
MAX_HOST_RESERVE_BYTES = GIB


class _Ready(msgspec.Struct, frozen=True, kw_only=True):
    """`image.json`: what is known of a prepared image."""

    digest: str
    config: dict[str, Any]
    architecture: str
    size_bytes: int
    unpacked_bytes: int
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
        for name in ("roots", "uses"):
            (root / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        self._content = ContentStore(root)
        self._registry = Registry(self._content.blobs, root / "tmp", insecure_registries, auth_file)
        self._work: dict[str, asyncio.Task[Any]] = {}
        self._conversions = asyncio.Semaphore(MAX_CONVERSIONS)
        self._spaces: list[int] = []
        """Bytes to which the images that are being unpacked may grow."""
        self._pulls = 0
        self._gate = asyncio.Lock()
        """Held while blobs are swept, and for a moment by each pull that begins."""
        self._started = False
        self._promised: dict[str, float] = {}
        """Digests that were prepared and are not acquired yet, and until when they are kept for that."""
        self._names: dict[str, ImageFact] = self._load_names()
        self._pulled: dict[str, str] = self._load_pulled()

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
        parsed = _parsed(reference)
        await self._start()
        digest = await self._resolve(parsed, architecture, credentials, max_bytes)
        ready = await self._share(
            f"root/{digest}/{root_format}/{max_bytes}",
            lambda: self._ensure_root(digest, root_format, max_bytes),
        )
        directory = self._directory(digest)
        os.utime(directory)
        if ready.architecture != architecture:
            raise _wrong_architecture(parsed, ready.architecture, architecture)
        if ready.unpacked_bytes > max_bytes:
            raise too_large(max_bytes)
        return RootImage(
            reference=reference,
            digest=digest,
            config=ready.config,
            erofs_path=str(directory / "root.erofs") if root_format == "erofs" else "",
            directory=str(directory / "tree") if root_format == "directory" else "",
            passwd=ready.passwd,
            group=ready.group,
        )

    async def look(
        self, reference: str, *, architecture: str, credentials: tuple[str, str] | None = None
    ) -> ImageLook:
        """See the contract."""
        parsed = _parsed(reference)
        await self._start()
        local = self._local(parsed, architecture)
        if local is not None:
            return self._looked(local.digest, local.size_bytes)
        try:
            found = await self._registry.resolve(parsed, architecture, credentials)
        except ImageFault as fault:
            known = self._pulled.get(_pull_key(parsed, architecture, credentials), "")
            content = self._content.get(known) if known and fault.retryable else None
            if content is None:
                raise
            return self._looked(known, self._content.size_of(content.blobs), is_stale=True)
        return self._looked(found.digest, found.size_bytes)

    def _looked(self, digest: str, size_bytes: int, *, is_stale: bool = False) -> ImageLook:
        described = self._directory(digest) / "image.json"
        unpacked = None
        with contextlib.suppress(FileNotFoundError, msgspec.DecodeError):
            unpacked = msgspec.json.decode(described.read_bytes(), type=_Ready).unpacked_bytes
        return ImageLook(
            digest=digest,
            size_bytes=size_bytes,
            unpacked_bytes=unpacked,
            is_here=self._content.get(digest) is not None,
            is_stale=is_stale,
        )

    async def _start(self) -> None:
        """Once, before anything else: remove what a process that was killed has left."""
        if not self._started:
            await self._share("start", lambda: discard_leftovers(self._root / "tmp"))
            self._started = True

    # -- from a reference to a digest whose content is here

    async def _resolve(
        self,
        reference: ImageReference,
        architecture: str,
        credentials: tuple[str, str] | None,
        max_bytes: int,
    ) -> str:
        """The digest of the image's manifest, its content being here: local names first, then the registry."""
        local = self._local(reference, architecture)
        if local is not None:
            self._promise(local.digest)
            return local.digest
        key = f"pull/{reference.pull_name}/{architecture}/{hash(credentials)}/{max_bytes}"
        digest: str = await self._share(
            key, lambda: self._pull(reference, architecture, credentials, max_bytes)
        )
        self._promise(digest)
        return digest

    def _local(self, reference: ImageReference, architecture: str) -> ImageFact | None:
        """The local image of a reference, if there is one. Raises `ImageFault` if it is for another machine."""
        local = self._names.get(reference.name)
        if local is None or reference.digest not in ("", local.digest):
            return None
        if local.architecture != architecture:
            raise _wrong_architecture(reference, local.architecture, architecture)
        return local

    async def _pull(
        self,
        reference: ImageReference,
        architecture: str,
        credentials: tuple[str, str] | None,
        max_bytes: int,
    ) -> str:
        key = _pull_key(reference, architecture, credentials)
        known = self._pulled.get(key, "")
        is_here = bool(known) and self._content.get(known) is not None
        if is_here and reference.digest and credentials is None:
            return known
        try:
            found = await self._registry.resolve(reference, architecture, credentials)
        except ImageFault as fault:
            if fault.retryable and is_here:
                log.warning("registry unreachable, using the cached image", image=reference.pull_name)
                return known
            raise
        if found.size_bytes > max_bytes:
            raise ImageFault(
                "ImageTooLarge",
                f'image "{reference.pull_name}" has {format_bytes(found.size_bytes)} compressed, and the task\'s disk '
                f"takes {format_bytes(max_bytes)}: no space left on device",
                fix="raise ephemeralStorage, or use a smaller image",
                aws_prefix=_PREFIX,
            )
        self._promise(found.digest)
        if self._content.get(found.digest) is None:
            await self._share(
                f"fetch/{found.digest}/{hash(credentials)}",
                lambda: self._fetch(reference, found, credentials),
            )
        if self._pulled.get(key) != found.digest:
            self._pulled[key] = found.digest
            self._save_pulled()
        return found.digest

    async def _fetch(
        self, reference: ImageReference, found: Found, credentials: tuple[str, str] | None
    ) -> None:
        await self._make_room(found.size_bytes)
        async with self._pulling() as layout:
            await self._registry.fetch(reference, found, credentials, layout)
            await asyncio.to_thread(self._content.take, layout, found.digest)

    @asynccontextmanager
    async def _pulling(self) -> AsyncIterator[Path]:
        """A layout to pull into; while it is in use no blob is swept, since it may be one that is built upon."""
        async with self._gate:
            self._pulls += 1
        work = Path(tempfile.mkdtemp(dir=self._root / "tmp", prefix="pull-"))
        try:
            yield work / "layout"
        finally:
            self._pulls -= 1
            shutil.rmtree(work, ignore_errors=True)

    async def _make_room(self, wanted_bytes: int) -> None:
        """Raise `HostDiskFull` if the host can't take so many more bytes, even without what nobody uses."""
        if self.free_bytes() >= wanted_bytes:
            return
        await self._collect(keep_bytes=0)
        free = self.free_bytes()
        if free < wanted_bytes:
            raise ImageFault(
                "HostDiskFull",
                f"the image has {format_bytes(wanted_bytes)} compressed, and the host's disk can take "
                f"{format_bytes(free)}: no space left on device",
                fix="free space in the data directory, or lower --image-cache-gib",
                aws_prefix=_PREFIX,
            )

    def free_bytes(self) -> int:
        """See the contract: a tenth, or a GiB, is left to others."""
        disk = shutil.disk_usage(self._root)
        return max(0, disk.free - min(MAX_HOST_RESERVE_BYTES, disk.total // 10))

    # -- from content to a root file system

    async def _ensure_root(self, digest: str, root_format: str, max_bytes: int) -> _Ready:
        directory = self._directory(digest)
        described = directory / "image.json"
        if (directory / ("root.erofs" if root_format == "erofs" else "tree")).exists() and described.exists():
            return msgspec.json.decode(described.read_bytes(), type=_Ready)
        image = self._content.get(digest)
        if image is None:
            raise ImageFault("ImageNotFound", f"the content of {digest} is gone", aws_prefix=_PREFIX)
        async with self._conversions:
            space = self._space_for(max_bytes)
            self._spaces.append(space.bytes)
            try:
                made = await make_root(
                    self._content, image, self._root / "tmp", directory, root_format, space
                )
            except ImageFault as fault:
                if fault.kind == "ImageInvalid" and digest not in {n.digest for n in self._names.values()}:
                    self._content.damaged(image)
                raise
            finally:
                self._spaces.remove(space.bytes)
        ready = _Ready(
            digest=digest,
            config=made.config,
            architecture=made.architecture,
            size_bytes=made.size_bytes,
            unpacked_bytes=made.unpacked_bytes,
            passwd=made.passwd,
            group=made.group,
        )
        await asyncio.to_thread(archives.write_atomically, described, msgspec.json.encode(ready))
        return ready

    def _space_for(self, max_bytes: int) -> Space:
        """What others may grow to is theirs; but few images ever come near it, so a share is left in any case."""
        free = self.free_bytes()
        allowed = max(free - sum(self._spaces), free // (MAX_CONVERSIONS + 1))
        return Space(bytes=min(max_bytes, allowed), limited_by_host=allowed < max_bytes)

    async def _share(self, key: str, work: Callable[[], Awaitable[Any]]) -> Any:
        """Run work once for all who ask for it at the same time; one who gives up does not end it for the others."""
        task = self._work.get(key)
        if task is None:
            task = self._work[key] = asyncio.ensure_future(work())
            task.add_done_callback(lambda t: (self._work.pop(key, None), t.cancelled() or t.exception()))
        return await asyncio.shield(task)

    # -- who uses what

    def acquire(self, digest: str, task_id: str) -> None:
        """See the contract."""
        path = self._root / "uses" / task_id
        used = path.read_text().split() if path.exists() else []
        if digest not in used:
            archives.write_atomically(path, "\n".join([*used, digest]).encode())
        self._promised.pop(digest, None)

    def release(self, task_id: str) -> None:
        """See the contract."""
        (self._root / "uses" / task_id).unlink(missing_ok=True)

    def _promise(self, digest: str) -> None:
        """Keep an image until its task had the time to acquire it."""
        self._promised[digest] = self._clock.monotonic() + PROMISE_S

    # -- local images

    async def import_archive(self, path: str, name: str | None) -> ImageFact:
        """See the contract."""
        await self._start()
        source, own_name = await asyncio.to_thread(archives.recognise, Path(path))
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
            await self._make_room(found.size_bytes)
            async with self._pulling() as layout:
                await self._registry.copy_source(source, layout, max(1, self.free_bytes()))
                content = await asyncio.to_thread(self._content.take, layout, "")
        except CommandFailed as failure:
            raise classify(failure, path, imported=True) from None
        fact = ImageFact(
            name=reference.name,
            digest=content.digest,
            size_bytes=self._content.size_of(content.blobs),
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

    # -- what nobody needs

    async def collect_garbage(self) -> int:
        """See the contract."""
        await self._start()
        return await self._collect(keep_bytes=self._cache_bytes)

    async def _collect(self, *, keep_bytes: int) -> int:
        now = self._clock.monotonic()
        self._promised = {d: until for d, until in self._promised.items() if until > now}
        collection = Collection(self._root / "roots", self._root / "tmp", self._content)
        await asyncio.to_thread(collection.measure)
        used = {d for p in (self._root / "uses").iterdir() for d in p.read_text().split()}
        used |= {f.digest for f in self._names.values()}
        freed = collection.take_out(lambda d: d in used or d in self._promised, keep_bytes=keep_bytes)
        await asyncio.to_thread(collection.remove)
        async with self._gate:
            if not self._pulls:
                # Else with the next collection: a pull may build upon any blob that is there.
                freed += await asyncio.to_thread(self._content.sweep)
        if any(self._content.get(d) is None for d in self._pulled.values()):
            self._pulled = {k: d for k, d in self._pulled.items() if self._content.get(d) is not None}
            self._save_pulled()
        if freed:
            log.info("image cache collected", freed_bytes=freed)
        return freed

    # -- files

    def _directory(self, digest: str) -> Path:
        return self._root / "roots" / digest.partition(":")[2]

    def _load_names(self) -> dict[str, ImageFact]:
        path = self._root / "names.json"
        if not path.exists():
            return {}
        facts = msgspec.json.decode(path.read_bytes(), type=list[ImageFact])
        return {f.name: f for f in facts if self._content.get(f.digest) is not None}

    def _save_names(self) -> None:
        archives.write_atomically(self._root / "names.json", msgspec.json.encode(list(self._names.values())))

    def _load_pulled(self) -> dict[str, str]:
        try:
            return msgspec.json.decode((self._root / "pulled.json").read_bytes(), type=dict[str, str])
        except (FileNotFoundError, msgspec.DecodeError):
            return {}

    def _save_pulled(self) -> None:
        archives.write_atomically(self._root / "pulled.json", msgspec.json.encode(self._pulled))


def _parsed(reference: str) -> ImageReference:
    try:
        return parse_reference(reference)
    except Invalid as error:
        raise ImageFault(
            "ImageInvalid", error.message, fix="correct the image's name", aws_prefix=_PREFIX
        ) from None


def _pull_key(reference: ImageReference, architecture: str, credentials: tuple[str, str] | None) -> str:
    """What came with credentials is only given to who has some: never from the cache to one who has none."""
    return f"{reference.pull_name} {architecture}{' with credentials' if credentials else ''}"


def _wrong_architecture(reference: ImageReference, has: str, wanted: str) -> ImageFault:
    return ImageFault(
        "ImageWrongArchitecture",
        f'image "{reference.pull_name}" is for {has}, and the task runs on {wanted}',
        fix="build the image for the task's architecture, or set runtimePlatform.cpuArchitecture",
        aws_prefix=_PREFIX,
    )
