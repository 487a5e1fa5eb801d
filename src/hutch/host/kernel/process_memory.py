"""Memory of another process: the pages of a private mapping that it has made its own, out of it and into another one.

A process that was given a file as private memory shares the file's pages with everybody until it writes to one. The kernel
knows which those are (`/proc/<pid>/pagemap`), so nothing has to be compared, and what was never touched costs nothing.
All functions block; they raise `OSError` if the process is gone.
"""

import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence

import msgspec

from hutch.base.errors import HutchError
from hutch.host.kernel.sealed import data_extents

PAGE_BYTES = 4096
CHUNK_BYTES = 1024 * 1024
_ENTRY_BYTES = 8
_PRESENT, _SWAPPED, _OF_A_FILE = 0x80, 0x40, 0x20
# The flags of a page are the highest byte of its entry: one byte for each page is left, and a regular expression finds
# the runs among them.
_IS_OWN = bytes(1 if (b & (_PRESENT | _SWAPPED)) and not b & _OF_A_FILE else 0 for b in range(256))
_OWN_RUN = re.compile(b"\x01+")

Run = tuple[int, int]
"""First page, and how many."""


class MemoryMismatch(HutchError):
    """The memory is not what it should be: a process has other mappings, or saved pages are damaged."""


class Mapping(msgspec.Struct, frozen=True, kw_only=True):
    """A private mapping that a process has."""

    pid: int
    address: int
    size_bytes: int
    of_file: bool


def find_mapping(pid: int, size_bytes: int, file_name: str) -> Mapping:
    """The writable private mapping of exactly that size: of a file in memory of that name, else of no file.

    Raises `MemoryMismatch` if there is none or more than one.
    """
    of_file: list[Mapping] = []
    of_none: list[Mapping] = []
    with open(f"/proc/{pid}/maps", encoding="ascii", errors="replace") as f:
        for line in f:
            words = line.split(None, 5)
            first, _, last = words[0].partition("-")
            address = int(first, 16)
            if words[1] != "rw-p" or int(last, 16) - address != size_bytes:
                continue
            path = words[5].strip() if len(words) > 5 else ""
            named = path.startswith(f"/memfd:{file_name}")
            mapping = Mapping(pid=pid, address=address, size_bytes=size_bytes, of_file=named)
            if named:
                of_file.append(mapping)
            elif not path:
                of_none.append(mapping)
    found = of_file or of_none
    if len(found) != 1:
        raise MemoryMismatch(f"process {pid} has {len(found)} mappings that may be the memory of its VM")
    return found[0]


def own_pages(mapping: Mapping) -> list[Run]:
    """The pages that the process has made its own by writing to them, in order."""
    count = mapping.size_bytes // PAGE_BYTES
    fd = os.open(f"/proc/{mapping.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        entries = _read_at(fd, count * _ENTRY_BYTES, mapping.address // PAGE_BYTES * _ENTRY_BYTES)
    finally:
        os.close(fd)
    flags = entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES].translate(_IS_OWN)
    return [(m.start(), m.end() - m.start()) for m in _OWN_RUN.finditer(flags)]


def all_pages(mapping: Mapping) -> list[Run]:
    """The pages that hold anything: its own, and those of the file below that are not holes. In order."""
    runs = own_pages(mapping)
    if not mapping.of_file:
        return runs
    end = mapping.address + mapping.size_bytes
    fd = os.open(f"/proc/{mapping.pid}/map_files/{mapping.address:x}-{end:x}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        below = [(start // PAGE_BYTES, -(-(stop - start) // PAGE_BYTES)) for start, stop in data_extents(fd)]
    finally:
        os.close(fd)
    return merged([*runs, *below])


def merged(runs: Iterable[Run]) -> list[Run]:
    """The same pages, in order, each once."""
    result: list[Run] = []
    for first, count in sorted(runs):
        if result and first <= result[-1][0] + result[-1][1]:
            begun = result[-1][0]
            result[-1] = (begun, max(result[-1][1], first + count - begun))
        else:
            result.append((first, count))
    return result


def pages_in(runs: Iterable[Run]) -> int:
    """How many pages that is."""
    return sum(count for _, count in runs)


def copy_out(mapping: Mapping, runs: Sequence[Run], target_fd: int) -> list[int]:
    """Write the pages, one after the other, to a file at its beginning. The result is the CRC-32 of each `CHUNK_BYTES` of
    it. About 0.1 s for 100 MiB."""
    sums: list[int] = []
    memory = os.open(f"/proc/{mapping.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    buffer, filled, at = bytearray(CHUNK_BYTES), 0, 0
    view = memoryview(buffer)
    try:
        for first, count in runs:
            address, left = mapping.address + first * PAGE_BYTES, count * PAGE_BYTES
            while left:
                got = os.preadv(memory, [view[filled : filled + left]], address)
                if not got:
                    raise MemoryMismatch("a page of the VM's memory can't be read")
                filled, address, left = filled + got, address + got, left - got
                if filled == CHUNK_BYTES:
                    sums.append(_put(target_fd, view, at))
                    filled, at = 0, at + CHUNK_BYTES
        if filled:
            sums.append(_put(target_fd, view[:filled], at))
        return sums
    finally:
        os.close(memory)


def copy_in(mapping: Mapping, runs: Sequence[Run], source_fd: int, sums: Sequence[int]) -> None:
    """Fill a mapping with pages that `copy_out` wrote. The process must stand still.

    Raises `MemoryMismatch` if the file is not what was written; the memory is then of no use.
    """
    memory = os.open(f"/proc/{mapping.pid}/mem", os.O_WRONLY | os.O_CLOEXEC)

    def put(data: memoryview, first_byte: int) -> None:
        _write_at(memory, data, mapping.address + first_byte)

    try:
        place_pages(runs, source_fd, sums, put, mapping.size_bytes)
    finally:
        os.close(memory)


def place_pages(
    runs: Sequence[Run],
    source_fd: int,
    sums: Sequence[int],
    put: Callable[[memoryview, int], None],
    size_bytes: int,
) -> None:
    """Read pages that `copy_out` wrote, and give each piece to `put` with the byte of the memory where it belongs.

    Raises `MemoryMismatch` if the file is not what was written, or does not fit into memory of that size.
    """
    for first, count in runs:
        if first < 0 or count <= 0 or (first + count) * PAGE_BYTES > size_bytes:
            raise MemoryMismatch("saved pages lie outside of the VM's memory")
    pieces = iter(runs)
    first, left = next(pieces, (0, 0))
    to, left = first * PAGE_BYTES, left * PAGE_BYTES
    total = pages_in(runs) * PAGE_BYTES
    if len(sums) != -(-total // CHUNK_BYTES):
        raise MemoryMismatch("saved pages and their sums do not belong together")
    for index, wanted in enumerate(sums):
        at = index * CHUNK_BYTES
        chunk = memoryview(_read_at(source_fd, min(CHUNK_BYTES, total - at), at))
        if zlib.crc32(chunk) != wanted:
            raise MemoryMismatch("the saved memory is damaged")
        while chunk:
            if not left:
                first, left = next(pieces)
                to, left = first * PAGE_BYTES, left * PAGE_BYTES
            count = min(left, len(chunk))
            put(chunk[:count], to)
            chunk, to, left = chunk[count:], to + count, left - count


def _put(fd: int, data: memoryview, at: int) -> int:
    _write_at(fd, data, at)
    return zlib.crc32(data)


def _write_at(fd: int, data: memoryview, at: int) -> None:
    while data:
        written = os.pwrite(fd, data, at)
        data, at = data[written:], at + written


def _read_at(fd: int, count: int, at: int) -> bytes:
    data = b""
    while len(data) < count:
        more = os.pread(fd, count - len(data), at + len(data))
        if not more:
            raise MemoryMismatch("saved pages are missing")
        data += more
    return data
