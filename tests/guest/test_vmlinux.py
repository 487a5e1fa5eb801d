"""The kernel that the guest image's recipe takes out of Debian's bzImage."""

import importlib.util
import struct
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from tests.conftest import REPO

KERNEL = b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 64


def _recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("vmlinux", REPO / "guest" / "image" / "vmlinux.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


vmlinux = _recipe()


def bzimage(payload: bytes, *, version: int = 0x20F, magic: bytes = b"HdrS") -> bytes:
    """A boot sector, three set-up sectors, some code, the payload, and what follows it."""
    offset = 0x2CC
    head = bytearray(4 * 512)
    head[0x1F1] = 3
    head[0x202:0x206] = magic
    struct.pack_into("<H", head, 0x206, version)
    struct.pack_into("<II", head, 0x248, offset, len(payload))
    return bytes(head) + b"\x90" * offset + payload + b"more code"


@pytest.mark.parametrize(
    ("argv", "appended"),
    [
        (("gzip", "-c"), b""),
        (("xz", "-c"), struct.pack("<I", len(KERNEL))),
        (("zstd", "-c"), struct.pack("<I", len(KERNEL))),
        (("lz4", "-lc"), struct.pack("<I", len(KERNEL))),
    ],
)
def test_takes_the_kernel_out(argv: tuple[str, ...], appended: bytes) -> None:
    packed = subprocess.run(argv, input=KERNEL, capture_output=True, check=True).stdout
    assert vmlinux.extract_vmlinux(bzimage(packed + appended)) == KERNEL


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (b"", "not a bzImage"),
        (bzimage(b"", magic=b"none"), "not a bzImage"),
        (bzimage(b"", version=0x207), "boot protocol"),
        (bzimage(b"BZh9" + b"x" * 100), "no known compression"),
        (bzimage(b"\x1f\x8b" + b"x" * 100), "gzip"),
        (bzimage(subprocess.run(("gzip",), input=b"MZ", capture_output=True, check=True).stdout), "no ELF"),
    ],
)
def test_says_why_there_is_none(image: bytes, reason: str) -> None:
    with pytest.raises(vmlinux.NoKernel, match=reason):
        vmlinux.extract_vmlinux(image)


@pytest.mark.needs("guest_image")
def test_of_the_image_that_was_built() -> None:
    built: Path = REPO / "build" / "guest"
    assert vmlinux.extract_vmlinux((built / "vmlinuz").read_bytes()) == (built / "vmlinux").read_bytes()
