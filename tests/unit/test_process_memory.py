"""Pages out of a process and into another: what the kernel says of our own memory, and the arithmetic of runs."""

import mmap
import os
import re
import zlib
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.host.kernel.process_memory import (
    CHUNK_BYTES,
    PAGE_BYTES,
    Mapping,
    MemoryMismatch,
    Run,
    all_pages,
    copy_in,
    copy_out,
    find_mapping,
    merged,
    own_pages,
    pages_in,
    place_pages,
)
from hutch.host.kernel.sealed import open_memory_file

RUNS = st.lists(st.tuples(st.integers(0, 600), st.integers(1, 300)), max_size=12)


@given(RUNS)
def test_merged_runs_are_the_same_pages_in_order_each_once(runs: list[Run]) -> None:
    pages = {p for first, count in runs for p in range(first, first + count)}
    result = merged(runs)
    listed = [p for first, count in result for p in range(first, first + count)]
    assert listed == sorted(pages) and pages_in(result) == len(pages)
    assert all(a + n < b for (a, n), (b, _) in pairwise(result))


@given(RUNS)
def test_placed_pages_are_where_they_were(tmp_path_factory: pytest.TempPathFactory, runs: list[Run]) -> None:
    runs = merged(runs)
    size = 1000 * PAGE_BYTES
    data = b"".join(
        p.to_bytes(4, "big") * (PAGE_BYTES // 4) for first, count in runs for p in range(first, first + count)
    )
    sums = [zlib.crc32(data[i : i + CHUNK_BYTES]) for i in range(0, len(data), CHUNK_BYTES)]
    memory = bytearray(size)

    def put(piece: memoryview, at: int) -> None:
        memory[at : at + len(piece)] = piece

    fd = open_memory_file("test", data)
    try:
        place_pages(runs, fd, sums, put, size)
        for first, count in runs:
            for page in range(first, first + count):
                assert memory[page * PAGE_BYTES : page * PAGE_BYTES + 4] == page.to_bytes(4, "big")
        if data:
            os.pwrite(fd, bytes([data[-1] ^ 1]), len(data) - 1)
            with pytest.raises(MemoryMismatch, match="damaged"):
                place_pages(runs, fd, sums, put, size)
            os.ftruncate(fd, len(data) - 1)
            with pytest.raises(MemoryMismatch, match="missing"):
                place_pages(runs, fd, sums, put, size)
            with pytest.raises(MemoryMismatch, match="outside"):
                place_pages(runs, fd, sums, put, runs[-1][0] * PAGE_BYTES)
            with pytest.raises(MemoryMismatch, match="belong together"):
                place_pages(runs, fd, sums[:-1], put, size)
    finally:
        os.close(fd)


PAGES = 700
NAME = "hutch-memory-test"


def mapped(content: bytes) -> tuple[mmap.mmap, Mapping]:
    """A private mapping of a file in memory by this very process."""
    fd = open_memory_file(NAME, content, size=PAGES * PAGE_BYTES)
    memory = mmap.mmap(fd, PAGES * PAGE_BYTES, flags=mmap.MAP_PRIVATE)
    os.close(fd)
    return memory, find_mapping(os.getpid(), PAGES * PAGE_BYTES, NAME)


@pytest.mark.needs("root")
def test_only_what_was_written_to_is_the_processs_own(tmp_path: Path) -> None:
    memory, mapping = mapped(b"below" * 1000)
    assert own_pages(mapping) == []
    assert memory[3] and memory[2 * PAGE_BYTES] == 0  # reading makes nothing one's own
    assert own_pages(mapping) == []
    for page in (1, 2, 5, PAGES - 1):
        memory[page * PAGE_BYTES + 9 : page * PAGE_BYTES + 12] = b"own"
    assert own_pages(mapping) == [(1, 2), (5, 1), (PAGES - 1, 1)]
    assert [p for a, n in all_pages(mapping) for p in range(a, a + n)][:4] == [0, 1, 2, 5]
    path = tmp_path / "pages"
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    runs = own_pages(mapping)
    sums = copy_out(mapping, runs, fd)
    before = memory[:]
    memory.close()
    # The same onto a fresh copy of the same file.
    memory, mapping = mapped(b"below" * 1000)
    copy_in(mapping, runs, fd, sums)
    assert memory[:] == before
    assert own_pages(mapping) == runs
    os.close(fd)
    memory.close()
    with pytest.raises(MemoryMismatch, match=re.escape("0 mappings")):
        find_mapping(os.getpid(), 12345 * PAGE_BYTES, NAME)
