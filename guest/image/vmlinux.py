"""Takes the kernel proper (an ELF file) out of a bzImage: Firecracker boots nothing else on x86_64.

The boot header says where the compressed payload is, and the payload's first bytes say how it was compressed.
"""

import struct
import subprocess
from pathlib import Path

_HEADER_MAGIC = 0x202
_SETUP_SECTORS = 0x1F1
_PAYLOAD = 0x248
_FIRST_VERSION_WITH_PAYLOAD = 0x208
# All but gzip's are followed by four bytes of size that the kernel's build adds.
_DECOMPRESSORS = (
    (b"\x1f\x8b", ("gzip", "-dcq"), 0),
    (b"\xfd7zXZ\0", ("xz", "-dcq"), 4),
    (b"\x28\xb5\x2f\xfd", ("zstd", "-dcq"), 4),
    (b"\x02\x21\x4c\x18", ("lz4", "-dcq"), 4),
)
_ELF64 = b"\x7fELF\x02"


class NoKernel(Exception):
    """There is no kernel in that file, or it can't be taken out; says why."""


def extract_vmlinux(bzimage: bytes) -> bytes:
    """The ELF kernel in a bzImage. Raises `NoKernel`."""
    if len(bzimage) < _PAYLOAD + 8 or bzimage[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise NoKernel("not a bzImage")
    (version,) = struct.unpack_from("<H", bzimage, _HEADER_MAGIC + 4)
    if version < _FIRST_VERSION_WITH_PAYLOAD:
        raise NoKernel(f"boot protocol {version:#x} does not say where the payload is")
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    start = ((bzimage[_SETUP_SECTORS] or 4) + 1) * 512 + offset
    payload = bzimage[start : start + length]
    for magic, argv, appended in _DECOMPRESSORS:
        if payload.startswith(magic):
            kernel = _decompress(argv, payload[: len(payload) - appended])
            if not kernel.startswith(_ELF64):
                raise NoKernel("the payload is no ELF kernel")
            return kernel
    raise NoKernel(f"the payload begins with {payload[:6].hex()}: no known compression")


def _decompress(argv: tuple[str, ...], data: bytes) -> bytes:
    try:
        done = subprocess.run(argv, input=data, capture_output=True)
    except FileNotFoundError:
        raise NoKernel(f"{argv[0]} is not installed") from None
    if done.returncode != 0:
        raise NoKernel(f"{argv[0]}: {done.stderr.decode('utf-8', 'replace')[-500:]}")
    return done.stdout


def write_vmlinux(bzimage: Path, target: Path) -> None:
    """Write the kernel of a bzImage to a file. Raises `NoKernel`, `OSError`."""
    target.write_bytes(extract_vmlinux(bzimage.read_bytes()))
