"""The image store against a real registry, archives, and images that mean harm."""

import asyncio
import gzip
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.claims import free_port
from tests.support.looking import look_until_async
from tests.support.registry import (
    HELLO,
    PASSWORD,
    USER,
    Image,
    LocalRegistry,
    digest_of,
    directory,
    layer,
    member,
    symlink,
)

from hutch.base.clock import SystemClock
from hutch.base.units import MIB
from hutch.host.drivers.contract import RootImage
from hutch.host.images.contract import ImageFault, ImageLook
from hutch.host.images.store import DiskImageStore

pytestmark = pytest.mark.needs("root", "skopeo", "registry")
ROOM = 64 * MIB


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    running = LocalRegistry(tmp_path_factory.mktemp("registry"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRegistry]:
    running = LocalRegistry(tmp_path_factory.mktemp("private"), login=True)
    yield running
    running.stop()


def make_store(root: Path, cache_bytes: int = 1 << 30) -> DiskImageStore:
    return DiskImageStore(root, clock=SystemClock(), cache_bytes=cache_bytes)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[DiskImageStore]:
    yield make_store(tmp_path / "images")
    assert mounts_below(tmp_path) == []
    assert list((tmp_path / "images/tmp").iterdir()) == []


def mounts_below(path: Path) -> list[str]:
    return [line for line in Path("/proc/mounts").read_text().splitlines() if str(path) in line]


async def prepare(store: DiskImageStore, reference: str, **more: Any) -> RootImage:
    given = {"architecture": "x86_64", "root_format": "directory", "max_bytes": ROOM, **more}
    return await store.prepare(reference, **given)


async def fault_of(store: DiskImageStore, reference: str, **more: Any) -> ImageFault:
    """The final fault, within seconds, as AWS words it and with something to do about it."""
    begun = time.monotonic()
    with pytest.raises(ImageFault) as caught:
        await prepare(store, reference, **more)
    assert time.monotonic() - begun < 30
    fault = caught.value
    assert fault.aws_prefix == "CannotPullContainerError" and fault.fix and fault.message
    return fault


def image_of(text: str, **more: Any) -> Image:
    """An image unlike others."""
    return Image(layer([member("hello", text.encode())]), **more)


# -- what can be had


@pytest.mark.parametrize("docker", [False, True])
async def test_by_tag_and_by_digest(registry: LocalRegistry, store: DiskImageStore, docker: bool) -> None:
    config = {"Entrypoint": ["/hello"], "Env": ["A=b"], "User": "app"}
    image = Image(docker=docker, config=config)
    reference = registry.push("some/app", image, tag=f"t{docker}")
    made = await prepare(store, reference)
    assert made.digest == image.digest and made.config == {**config, "Cmd": ["/hello"]}
    assert (Path(made.directory) / "hello").read_text() == "hello\n"
    assert made.passwd.startswith("root:x:0:0")
    pinned = await prepare(store, f"{registry.address}/some/app@{image.digest}", root_format="erofs")
    assert pinned.digest == made.digest and Path(pinned.erofs_path).stat().st_size > 0
    both = await prepare(store, f"{registry.address}/some/app:whatever@{image.digest}")
    assert both.directory == made.directory


async def test_a_tag_that_moves_is_followed_and_a_digest_is_never_asked_for_again(
    tmp_path: Path, store: DiskImageStore
) -> None:
    registry = LocalRegistry(tmp_path / "registry")
    try:
        first, second = image_of("one"), image_of("two")
        reference = registry.push("moves", first)
        pinned = f"{registry.address}/moves@{first.digest}"
        assert (await prepare(store, reference)).digest == first.digest
        assert (await prepare(store, pinned)).digest == first.digest
        registry.push("moves", second)
        assert (await prepare(store, reference)).digest == second.digest
    finally:
        registry.stop()
    assert (await prepare(store, pinned)).digest == first.digest
    assert (await prepare(store, reference)).digest == second.digest, "unreachable: what is here is used"
    anew = make_store(tmp_path / "images")
    assert (await prepare(anew, reference)).digest == second.digest


async def test_the_platform_is_chosen(registry: LocalRegistry, store: DiskImageStore) -> None:
    amd, arm = image_of("amd"), image_of("arm", architecture="arm64")
    reference = registry.push_index("multi", arm, amd)
    assert (await prepare(store, reference)).digest == amd.digest
    assert (await prepare(store, reference, architecture="aarch64")).digest == arm.digest
    only = registry.push_index("only-arm", arm)
    fault = await fault_of(store, only)
    assert fault.kind == "ImageWrongArchitecture" and "offered for arm64" in fault.message
    fault = await fault_of(store, registry.push("arm", arm))
    assert fault.kind == "ImageWrongArchitecture" and "is for aarch64" in fault.message


async def test_two_pulls_of_one_image_share_the_work(
    registry: LocalRegistry, store: DiskImageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hutch.host.images.registry as module

    commands: list[str] = []
    run = module.run

    async def counting(argv: Any, **more: Any) -> bytes:
        commands.append(argv[1])
        return await run(argv, **more)

    monkeypatch.setattr(module, "run", counting)
    reference = registry.push("shared", image_of("shared"))
    made = await asyncio.gather(*(prepare(store, reference) for _ in range(5)))
    assert len({m.directory for m in made}) == 1 and commands.count("copy") == 1


async def test_looking_pulls_nothing(
    registry: LocalRegistry, private: LocalRegistry, store: DiskImageStore, tmp_path: Path
) -> None:
    async def look(reference: str, **more: Any) -> ImageLook:
        return await store.look(reference, **{"architecture": "x86_64", **more})

    def content() -> list[Path]:
        return [
            p
            for d in ("blobs", "images", "roots")
            for p in (tmp_path / "images" / d).rglob("*")
            if p.is_file()
        ]

    reference = registry.push("looked-at", image_of("look"))
    before = await look(reference)
    assert not before.is_here and before.unpacked_bytes is None and before.size_bytes > 0
    assert content() == [] and store.free_bytes() > 0
    made = await prepare(store, reference)
    after = await look(reference)
    assert (after.digest, after.size_bytes) == (made.digest, before.size_bytes)
    assert after.is_here and after.unpacked_bytes is not None and not after.is_stale
    for wrong, kind in (
        ({"architecture": "aarch64"}, "ImageWrongArchitecture"),
        ({"reference": f"{registry.address}/nowhere:1"}, "ImageNotFound"),
        ({"reference": "No Name"}, "ImageInvalid"),
    ):
        with pytest.raises(ImageFault) as caught:
            await look(**{"reference": reference, **wrong})
        assert caught.value.kind == kind and caught.value.fix
    secret = private.push("looked-at", image_of("secret"))
    with pytest.raises(ImageFault, match="access"):
        await look(secret)
    assert (await look(secret, credentials=(USER, PASSWORD))).size_bytes > 0


async def test_looking_while_the_registry_is_away(store: DiskImageStore, tmp_path: Path) -> None:
    registry = LocalRegistry(tmp_path / "registry")
    try:
        reference = registry.push("gone", image_of("gone"))
        made = await prepare(store, reference)
    finally:
        registry.stop()
    found = await store.look(reference, architecture="x86_64")
    assert found.is_stale and found.is_here and found.digest == made.digest
    with pytest.raises(ImageFault) as caught:
        await store.look(reference.replace("gone", "never"), architecture="x86_64")
    assert caught.value.kind == "RegistryUnreachable"


# -- what can't be had


async def test_not_found(registry: LocalRegistry, store: DiskImageStore) -> None:
    registry.push("here", image_of("here"))
    for reference in ("nowhere:1", "here:nothing", f"here@sha256:{'0' * 64}"):
        fault = await fault_of(store, f"{registry.address}/{reference}")
        assert fault.kind == "ImageNotFound" and "not found" in fault.message and not fault.retryable


async def test_access(private: LocalRegistry, store: DiskImageStore, tmp_path: Path) -> None:
    reference = private.push("secret", image_of("secret"))
    assert (await fault_of(store, reference)).kind == "ImageAccessDenied"
    wrong = await fault_of(store, reference, credentials=(USER, "wrong"))
    assert wrong.kind == "ImageAccessDenied" and "wrong" not in str(wrong.evidence)
    made = await prepare(store, reference, credentials=(USER, PASSWORD))
    assert (Path(made.directory) / "hello").read_text() == "secret"
    pinned = f"{private.address}/secret@{made.digest}"
    await prepare(store, pinned, credentials=(USER, PASSWORD))
    assert (await fault_of(store, pinned)).kind == "ImageAccessDenied", "the cache is no way around"
    files = [p for p in (tmp_path / "images").rglob("*") if p.is_file() and p.stat().st_size < MIB]
    assert files and [p for p in files if PASSWORD.encode() in p.read_bytes()] == []


async def test_unreachable(store: DiskImageStore) -> None:
    fault = await fault_of(store, f"127.0.0.1:{free_port()}/denied-404-not-found/x:1")
    assert fault.kind == "RegistryUnreachable" and fault.retryable
    fault = await fault_of(store, "registry.invalid/x:1")
    assert fault.kind == "RegistryUnreachable" and fault.retryable
    assert (await fault_of(store, "Not A Name")).kind == "ImageInvalid"


async def test_what_is_no_image(registry: LocalRegistry, store: DiskImageStore) -> None:
    image = image_of("odd")
    manifest = json.loads(image.manifest)
    for number, change in enumerate(
        (
            {"layers": [{**manifest["layers"][0], "size": -5}]},
            {
                "layers": [
                    {**manifest["layers"][0], "mediaType": "application/vnd.oci.image.layer.v1.tar+zstd"}
                ]
            },
        )
    ):
        image.manifest = json.dumps({**manifest, **change}).encode()
        try:
            reference = registry.push("odd", image, tag=f"t{number}")
        except RuntimeError:
            continue  # the registry itself refuses it
        assert (await fault_of(store, reference)).kind == "ImageInvalid"


async def test_damaged_content(registry: LocalRegistry, store: DiskImageStore) -> None:
    """A registry whose disk lost or changed bytes: nothing of it is ever run, and it mends itself."""
    image = image_of("x" * 5000, compressed=None)
    reference = registry.push("damaged", image)
    path = registry.blob_path(image.layers[0])
    whole = path.read_bytes()
    for bad in (whole[:-20], whole[:-1] + bytes([whole[-1] ^ 1]), whole + b"\0" * 20_000_000):
        path.write_bytes(bad)
        fault = await fault_of(store, reference)
        assert fault.kind == "ImageInvalid", (fault.kind, fault.message, fault.evidence)
    path.write_bytes(whole)
    assert (await prepare(store, reference)).digest == image.digest


async def test_a_layer_that_is_not_what_the_configuration_says(
    registry: LocalRegistry, store: DiskImageStore
) -> None:
    """Its digest is right, its unpacked digest is not; or it is no archive at all."""
    for number, data in enumerate(
        (gzip.compress(layer([member("evil", b"evil")])), gzip.compress(b"\x13" * 4000))
    ):
        image = Image(layer(HELLO), compressed=[data])
        assert (await fault_of(store, registry.push("liar", image, tag=f"t{number}"))).kind == "ImageInvalid"


# -- too big


async def test_bigger_than_the_tasks_disk(registry: LocalRegistry, store: DiskImageStore) -> None:
    image = Image(layer([member("data", os.urandom(3 * MIB))]))
    reference = registry.push("big", image)
    fault = await fault_of(store, reference, max_bytes=2 * MIB)
    assert fault.kind == "ImageTooLarge" and "no space left on device" in fault.message
    made = await prepare(store, reference)
    assert (await fault_of(store, reference, max_bytes=2 * MIB)).kind == "ImageTooLarge"
    assert (await prepare(store, reference)).directory == made.directory


async def test_a_bomb_of_zeros_and_one_of_inodes(registry: LocalRegistry, store: DiskImageStore) -> None:
    zeros = Image(layer([member("zeros", bytes(200 * MIB))]))
    assert sum(map(len, zeros.layers)) < 2 * MIB
    assert (await fault_of(store, registry.push("zeros", zeros))).kind == "ImageTooLarge"
    many = Image(layer([directory("d"), *(member(f"d/{n}") for n in range(12_000))]))
    assert (await fault_of(store, registry.push("inodes", many))).kind == "ImageTooLarge"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


async def test_a_full_host(registry: LocalRegistry, small_disk: Path) -> None:
    store = make_store(small_disk / "images")
    big = Image(layer([member("data", os.urandom(70 * MIB))]))
    fault = await fault_of(store, registry.push("host/big", big), max_bytes=1 << 30)
    assert fault.kind == "HostDiskFull" and "no space left on device" in fault.message
    bomb = Image(layer([member("zeros", bytes(150 * MIB))]))
    fault = await fault_of(store, registry.push("host/bomb", bomb), max_bytes=1 << 30)
    assert fault.kind == "HostDiskFull"
    assert os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize > 4 * MIB, (
        "others still can write"
    )
    made = await prepare(store, registry.push("host/small", image_of("small")), max_bytes=1 << 30)
    assert (Path(made.directory) / "hello").exists()
    assert mounts_below(small_disk / "images") == []


# -- hostile layers


async def test_nothing_is_written_outside_of_the_root(
    registry: LocalRegistry, store: DiskImageStore, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "victim").write_text("untouched")
    target = str(outside)
    attacks = {
        "dots": [member("../../../../../../../../../.." + target + "/a", b"x")],
        "absolute": [member(target + "/b", b"x")],
        "link": [symlink("out", target), member("out/c", b"x")],
        "links": [symlink("a", "/"), symlink("b", "a" + target), member("b/d", b"x")],
        "relative": [symlink("up", "../" * 12 + target.lstrip("/")), member("up/e", b"x")],
        "hard": [member("got", type=tarfile.LNKTYPE, linkname=f"{target}/victim"), member("got", b"x")],
        "hard-dots": [
            member("got", type=tarfile.LNKTYPE, linkname="../" * 12 + f"{target}/victim".lstrip("/"))
        ],
        "whiteout": [symlink("w", target), member("w/.wh.victim")],
        "opaque": [symlink("o", target), member("o/.wh..wh..opq")],
    }
    for name, members in attacks.items():
        reference = registry.push(f"attack/{name}", Image(layer(members)))
        try:
            made = await prepare(store, reference)
        except ImageFault as fault:
            assert fault.kind == "ImageInvalid", name
        else:
            for path in Path(made.directory).rglob("*"):
                assert not path.is_file() or path.is_symlink() or path.stat().st_nlink == 1, name
        assert [p.name for p in outside.iterdir()] == ["victim"], name
        assert (outside / "victim").read_text() == "untouched" and (outside / "victim").stat().st_nlink == 1


async def test_a_password_file_that_points_out_of_the_root_is_not_read(
    registry: LocalRegistry, store: DiskImageStore
) -> None:
    members = [
        directory("etc"),
        symlink("etc/passwd", "/etc/shadow"),
        member("etc/group", type=tarfile.FIFOTYPE),
    ]
    made = await prepare(store, registry.push("reads", Image(layer(members))))
    assert (made.passwd, made.group) == ("", "")
    made = await prepare(store, registry.push("etc-link", Image(layer([symlink("etc", "/etc")]))))
    assert made.passwd == ""


async def test_device_nodes_are_never_usable_where_they_are_unpacked(
    registry: LocalRegistry, store: DiskImageStore
) -> None:
    node = member("disk", type=tarfile.BLKTYPE, devmajor=7, devminor=0, mode=0o666)
    made = await prepare(store, registry.push("device", Image(layer([node, *HELLO]))), root_format="erofs")
    assert made.erofs_path and made.directory == ""


# -- archives


async def test_archives_are_imported(store: DiskImageStore, tmp_path: Path) -> None:
    image = image_of("imported")
    for number, path in enumerate(
        (
            image.write_layout(tmp_path / "layout", "localhost/a:1"),
            image.write_oci_archive(tmp_path / "oci.tar", "localhost/b:1"),
            image.write_docker_archive(tmp_path / "docker.tar", "localhost/c:1"),
        )
    ):
        fact = await store.import_archive(str(path), None)
        assert fact.name == f"localhost/{'abc'[number]}:1" and fact.architecture == "x86_64"
        made = await prepare(store, fact.name)
        assert (Path(made.directory) / "hello").read_text() == "imported" and made.digest == fact.digest
    assert [f.name for f in store.local_images()] == ["localhost/a:1", "localhost/b:1", "localhost/c:1"]
    anew = make_store(tmp_path / "images")
    assert (await prepare(anew, "localhost/b:1")).digest == image.digest
    fault = await fault_of(anew, "localhost/b:1", architecture="aarch64")
    assert fault.kind == "ImageWrongArchitecture"


async def test_what_can_not_be_imported(store: DiskImageStore, tmp_path: Path) -> None:
    image = image_of("bad")

    def damaged(path: Path) -> Path:
        data = bytearray(path.read_bytes())
        at = data.index(image.layers[0])
        data[at + len(image.layers[0]) // 2] ^= 1
        path.write_bytes(data)
        return path

    def text(name: str, data: bytes) -> Path:
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    good = image.write_oci_archive(tmp_path / "good.tar", "localhost/x:1")
    for path, words in (
        (tmp_path / "none.tar", "there is no file"),
        (text("text.tar", b"hello" * 300), "is not an image archive"),
        (text("empty.tar", layer([])), "neither index.json"),
        (text("null.tar", layer([member("manifest.json", b"null")])), ""),
        (text("deep.tar", layer([member("index.json", b"[" * 100_000)])), ""),
        (text("zip.tar", gzip.compress(good.read_bytes())), "compressed"),
        (text("cut.tar", good.read_bytes()[:2000]), ""),
        (damaged(image.write_oci_archive(tmp_path / "flip.tar", "localhost/x:1")), ""),
    ):
        with pytest.raises(ImageFault) as caught:
            await store.import_archive(str(path), "localhost/x:1")
        assert caught.value.kind in ("ImageInvalid", "ImageNotFound") and words in caught.value.message, path
    assert store.local_images() == ()


async def test_a_name_goes_and_its_content_with_the_next_collection(
    tmp_path: Path, registry: LocalRegistry
) -> None:
    store = make_store(tmp_path / "images", cache_bytes=0)
    fact = await store.import_archive(
        str(image_of("named").write_layout(tmp_path / "l", "localhost/n:1")), None
    )
    assert await store.collect_garbage() == 0
    assert await store.remove(fact.name) and not await store.remove(fact.name)
    assert await store.collect_garbage() > 0
    assert list((tmp_path / "images/blobs/sha256").iterdir()) == []


# -- garbage


async def test_the_least_recently_used_goes_first(registry: LocalRegistry, tmp_path: Path) -> None:
    store = make_store(tmp_path / "images", cache_bytes=4 * MIB)
    base = layer([member("base", os.urandom(MIB))])
    made = {}
    for name in ("old", "used", "newer", "newest"):
        image = Image(base, layer([member(name, os.urandom(MIB))]))
        made[name] = await prepare(store, registry.push(f"gc/{name}", image))
        store.acquire(made[name].digest, f"task-{name}")
    for name in ("old", "newer", "newest"):
        store.release(f"task-{name}")
    for age, name in enumerate(("newest", "newer", "used", "old")):
        at = time.time() - 1000 * age
        os.utime(Path(made[name].directory).parent, (at, at))
    assert await store.collect_garbage() > 2 * MIB
    assert not Path(made["old"].directory).exists() and Path(made["used"].directory).exists()
    blobs = {p.name for p in (tmp_path / "images/blobs/sha256").iterdir()}
    assert digest_of(gzip.compress(base, 1, mtime=0))[7:] in blobs, "a layer that others have is kept"
    again = await prepare(store, f"{registry.address}/gc/old:latest")
    assert again.digest == made["old"].digest and Path(again.directory).exists()


async def test_what_was_prepared_is_kept_for_its_task(registry: LocalRegistry, tmp_path: Path) -> None:
    store = make_store(tmp_path / "images", cache_bytes=0)
    made = await prepare(store, registry.push("promise", image_of("promise")))
    await store.collect_garbage()
    assert Path(made.directory).exists()
    store.acquire(made.digest, "task")
    await store.collect_garbage()
    assert Path(made.directory).exists()
    store.release("task")
    await store.collect_garbage()
    assert not Path(made.directory).exists()


# -- killed at any moment

_CHILD = """
import asyncio, sys
from pathlib import Path
from hutch.base.clock import SystemClock
from hutch.host.images.store import DiskImageStore
store = DiskImageStore(Path(sys.argv[1]), clock=SystemClock(), cache_bytes=1 << 30)
print("begun", flush=True)
asyncio.run(store.prepare(sys.argv[2], architecture="x86_64", root_format=sys.argv[3], max_bytes=1 << 30))
print("done", flush=True)
"""


@pytest.mark.parametrize("root_format", ["directory", "erofs"])
async def test_killed_in_the_middle(registry: LocalRegistry, tmp_path: Path, root_format: str) -> None:
    """Wherever it is killed, nothing of it goes on, and the next one pulls as if nothing had been."""
    root = tmp_path / "images"
    members = [member(f"f{n}", os.urandom(MIB)) for n in range(24)]
    reference = registry.push(f"killed/{root_format}", Image(layer(members)))
    source = str(Path(__file__).resolve().parents[2] / "src")
    for moment in (0.05, 0.12, 0.2, 0.3, 0.4, 0.55):
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(root), reference, root_format],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": source},
        )
        assert child.stdout is not None and child.stdout.readline() == b"begun\n"
        await asyncio.sleep(moment)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        await _no_process_names(str(root))
    store = make_store(root)
    made = await prepare(store, reference, root_format=root_format, max_bytes=1 << 30)
    if root_format == "directory":
        names = {p.name for p in Path(made.directory).iterdir()}
        assert names == {m[0].name for m in members}
    assert mounts_below(tmp_path) == [] and list((root / "tmp").iterdir()) == []
    loops = subprocess.run(["losetup", "-l", "-O", "BACK-FILE"], capture_output=True, text=True).stdout
    assert str(tmp_path) not in loops


async def _no_process_names(text: str) -> None:
    """Programs of a process that was killed end with it: the kernel sees to that, within moments."""
    named = re.compile(rf"{re.escape(text)}[/\0]")
    await look_until_async(lambda: not any(named.search(c) for c in _command_lines()))


def _command_lines() -> Iterator[str]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                yield (entry / "cmdline").read_text()
            except OSError:
                continue
