"""Templates: VMs that have booted, as files that new VMs are restored from. See docs/design/microvm.md.

Below the store's directory: `<digest>/memory` (sparse), `<digest>/state`, `<digest>/manifest.json`, complete by virtue of
the directory's name, since it is made elsewhere and renamed when all of it is on the disk.

VMs get the memory as a sealed file in memory: with QEMU before 8.2 the file that backs a VM's memory is open for writing in
each of them, and what one VM may write to, all others start with.
"""

import asyncio
import contextlib
import hashlib
import os
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from hutch.base.clock import Clock
from hutch.base.errors import HutchError
from hutch.base.log import get_logger
from hutch.host.drivers.microvm.restore import STATE_FORMAT
from hutch.host.kernel.sealed import copy_sparse, open_memory_file, seal

log = get_logger(__name__)
KEEP_UNUSED_S = 14 * 86_400.0
RETRY_AFTER_S = 600.0
MAX_LOADED = 4
_MARK_USED_EVERY_S = 3600.0
_DRAFT = ".draft-"
MEMORY_NAME = "hutch-template"
"""Of the file in memory, as it is seen in a process's mappings."""


class TemplateKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a template depends on. One that differs in any member is of no use."""

    origin: str
    """Kernel, agent, QEMU and CPU; a template of another origin is never used again."""
    machine: str
    """`machine_traits` of its VM."""
    accelerator: str
    vcpus: int
    memory_mib: int
    disk_slots: int
    writable_disks: int = 1

    @property
    def digest(self) -> str:
        """Its name on the disk."""
        return hashlib.sha256(msgspec.json.encode((STATE_FORMAT, self))).hexdigest()[:32]


class TemplateRef(msgspec.Struct, frozen=True, kw_only=True):
    """One template, by its key's digest; another one that is made of the same key has another id."""

    digest: str
    id: str


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    key: TemplateKey
    id: str
    made_at: float


class Template:
    """A template that is open: its descriptors live as long as this does. VMs made from it do not need it."""

    def __init__(self, key: TemplateKey, template_id: str, memory_fd: int, state: bytes) -> None:
        self.key = key
        self.id = template_id
        self.memory_fd = memory_fd
        """A sealed file in memory, of the VM's size."""
        self._state = state

    @property
    def ref(self) -> TemplateRef:
        """What names it, for as long as it or an image made from it is on the disk."""
        return TemplateRef(digest=self.key.digest, id=self.id)

    def open_state(self) -> int:
        """The state as a new descriptor, which the caller closes."""
        return open_memory_file("hutch-state", self._state)

    def close(self) -> None:
        """Let go of the memory; VMs that were made from it keep theirs."""
        os.close(self.memory_fd)


class TemplateUnavailable(HutchError):
    """There is no template, and none can be made now."""


Make = Callable[[TemplateKey, int], Awaitable[bytes]]
"""Boots a VM of a key with a file (the descriptor) as its shared memory, ends it, gives its state."""


class TemplateStore:
    """The templates of one driver. `get` makes what is missing; callers that want the same wait for one making."""

    def __init__(self, directory: Path, make: Make, clock: Clock) -> None:
        self._directory = directory
        self._make = make
        self._clock = clock
        self._loaded: dict[str, Template] = {}
        self._under_way: dict[str, asyncio.Task[Template]] = {}
        self._failed: dict[str, tuple[float, str]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._writing: set[asyncio.Task[None]] = set()

    def loaded(self, key: TemplateKey) -> Template | None:
        """The template of a key if it can be had without waiting."""
        digest = key.digest
        if template := self._loaded.pop(digest, None):
            self._loaded[digest] = template  # the last one is the one used last
        return template

    def refusal(self, key: TemplateKey) -> str:
        """Why there is no template of a key for now: making it, or a VM from it, failed a short while ago. Else ""."""
        until, reason = self._failed.get(key.digest, (0.0, ""))
        return reason if self._clock.monotonic() < until else ""

    async def get(self, key: TemplateKey) -> Template:
        """The template of a key: loaded, from the disk, or made now (which takes a boot). Raises
        `TemplateUnavailable`, at once if there is a `refusal`."""
        if (template := self.loaded(key)) is not None:
            return template
        if refusal := self.refusal(key):
            raise TemplateUnavailable(refusal)
        digest = key.digest
        task = self._under_way.get(digest)
        if task is None:
            task = self._under_way[digest] = asyncio.create_task(self._provide(key))
            task.add_done_callback(lambda _: self._under_way.pop(digest, None))
        return await asyncio.shield(task)

    async def _provide(self, key: TemplateKey) -> Template:
        async with self._one_at_a_time:
            template = await asyncio.to_thread(_load, self._directory / key.digest, key)
            if template is None:
                template = await self._make_new(key)
            else:
                self._in_background(asyncio.to_thread(self._mark_used, key.digest))
        self._failed.pop(key.digest, None)
        self._loaded[key.digest] = template
        while len(self._loaded) > MAX_LOADED:
            self._loaded.pop(next(iter(self._loaded))).close()
        return template

    async def _make_new(self, key: TemplateKey) -> Template:
        begun = self._clock.monotonic()
        memory_fd = open_memory_file(MEMORY_NAME, size=key.memory_mib << 20)
        try:
            state = await self._make(key, memory_fd)
            seal(memory_fd)
        except (HutchError, OSError) as error:
            os.close(memory_fd)
            reason = f"no template could be made: {error}"[:500]
            self._failed[key.digest] = (self._clock.monotonic() + RETRY_AFTER_S, reason)
            log.warning("no template made", reason=str(error)[:500])
            raise TemplateUnavailable(reason) from None
        except BaseException:
            os.close(memory_fd)
            raise
        took_ms = round((self._clock.monotonic() - begun) * 1000)
        log.info("template made", memory_mib=key.memory_mib, took_ms=took_ms)
        copy_fd = os.dup(memory_fd)
        template_id = os.urandom(16).hex()
        manifest = _Manifest(format=STATE_FORMAT, key=key, id=template_id, made_at=self._clock.now())
        self._in_background(asyncio.to_thread(self._keep, manifest, copy_fd, state))
        return Template(key, template_id, memory_fd, state)

    def pin(self, ref: TemplateRef, target: Path) -> bool:
        """Give a template's memory another name, so that it stays when the template goes. False if it is not on the disk
        (yet), or on another one. Blocks."""
        if self._manifest_of(ref) is None:
            return False
        try:
            os.link(self._directory / ref.digest / "memory", target)
        except OSError:
            return False
        return True

    async def find(self, ref: TemplateRef) -> Template | None:
        """The template with this very memory, if it is loaded or on the disk; never a new one."""
        template = self._loaded.get(ref.digest)
        if template is None and (manifest := await asyncio.to_thread(self._manifest_of, ref)) is not None:
            template = await self.get(manifest.key)
        return template if template is not None and template.id == ref.id else None

    def _manifest_of(self, ref: TemplateRef) -> _Manifest | None:
        manifest = _read_manifest(self._directory / ref.digest / "manifest.json")
        return manifest if manifest is not None and manifest.id == ref.id else None

    def reject(self, template: Template, reason: str) -> None:
        """A VM could not be restored from it: forget it, here and on the disk, and make it anew some time later."""
        digest = template.key.digest
        if self._loaded.get(digest) is template:
            del self._loaded[digest]
            template.close()
        self._failed[digest] = (self._clock.monotonic() + RETRY_AFTER_S, reason)
        self._in_background(asyncio.to_thread(shutil.rmtree, self._directory / digest, True))

    def _keep(self, manifest: _Manifest, memory_fd: int, state: bytes) -> None:
        """Write a template to the disk: whole, or not at all. Closes the descriptor."""
        digest = manifest.key.digest
        draft = self._directory / f"{_DRAFT}{digest}"
        shutil.rmtree(draft, ignore_errors=True)
        try:
            draft.mkdir(mode=0o700, parents=True)
            copy_sparse(memory_fd, draft / "memory")
            _write(draft / "state", state)
            _write(draft / "manifest.json", msgspec.json.encode(manifest))
            _sync(draft)
            os.rename(draft, self._directory / digest)
            _sync(self._directory)
        except OSError as error:
            # It serves until this agent ends, and is then made again.
            log.warning("template not kept", directory=str(self._directory), reason=str(error))
            shutil.rmtree(draft, ignore_errors=True)
        finally:
            os.close(memory_fd)

    def _mark_used(self, digest: str) -> None:
        path = self._directory / digest / "manifest.json"
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < self._clock.now() - _MARK_USED_EVERY_S:
                os.utime(path)

    def clean(self, origin: str) -> None:
        """Remove drafts that a crash left, templates of another origin, and what nobody used for long. Blocks."""
        with contextlib.suppress(FileNotFoundError):
            for entry in list(self._directory.iterdir()):
                if entry.name in self._loaded or entry.name in self._under_way:
                    continue
                if not self._is_worth_keeping(entry, origin):
                    shutil.rmtree(entry, ignore_errors=True)

    def _is_worth_keeping(self, directory: Path, origin: str) -> bool:
        path = directory / "manifest.json"
        try:
            used_at = path.stat().st_mtime
        except OSError:
            return False
        manifest = _read_manifest(path)
        return (
            manifest is not None
            and not directory.name.startswith(_DRAFT)
            and manifest.key.origin == origin
            and used_at > self._clock.now() - KEEP_UNUSED_S
        )

    def _in_background(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def close(self) -> None:
        """End what is being made (its VM too), finish what is being written, let go of all templates."""
        making = list(self._under_way.values())
        for task in making:
            task.cancel()
        await asyncio.gather(*making, *self._writing, return_exceptions=True)
        for template in self._loaded.values():
            template.close()
        self._loaded.clear()


def _load(directory: Path, key: TemplateKey) -> Template | None:
    manifest = _read_manifest(directory / "manifest.json")
    if manifest is None or manifest.key != key:
        return None
    try:
        state = (directory / "state").read_bytes()
        source = os.open(directory / "memory", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        memory_fd = load_memory(source, key.memory_mib)
    except OSError as error:
        log.warning("template can't be read", directory=str(directory), reason=str(error))
        return None
    finally:
        os.close(source)
    return Template(key, manifest.id, memory_fd, state)


def load_memory(source_fd: int, memory_mib: int, *, sealed: bool = True) -> int:
    """A template's memory as a file in memory, which the caller closes. Blocks. Raises `OSError`."""
    memory_fd = open_memory_file(MEMORY_NAME, size=memory_mib << 20)
    try:
        copy_sparse(source_fd, memory_fd)
        if sealed:
            seal(memory_fd)
    except OSError:
        os.close(memory_fd)
        raise
    return memory_fd


def _read_manifest(path: Path) -> _Manifest | None:
    try:
        manifest = msgspec.json.decode(path.read_bytes(), type=_Manifest)
    except (OSError, msgspec.MsgspecError):
        return None
    return manifest if manifest.format == STATE_FORMAT else None


def _write(path: Path, data: bytes) -> None:
    with path.open("xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
