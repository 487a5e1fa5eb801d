"""A container's log file: every record once, whatever is killed when; bounded; a full disk hangs nobody."""

import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hutch.host.agent.tasklogs import read_tail
from hutch.host.criformat import MAX_LINE_BYTES, encode_lines, parse_line
from hutch.host.guestlink.logfile import LogFile
from hutch.rules.logdrivers.files import FileBounds
from hutch.wire.guest import LogRecord


def record(seq: int, data: bytes, stream: int = 1) -> LogRecord:
    return LogRecord(seq=seq, time_ns=1_700_000_000_000_000_000 + seq, stream=stream, data=data)


def text_of(path: Path) -> str:
    lines = [parse_line(raw) for raw in path.read_bytes().split(b"\n")[:-1]]
    assert all(lines)
    return "".join(x.text.decode("latin-1") + ("" if x.partial else "\n") for x in lines if x)


@given(st.binary(max_size=3 * MAX_LINE_BYTES))
def test_what_was_written_can_be_read_back(data: bytes) -> None:
    encoded = encode_lines(1, 1, data)
    joined = b""
    for raw in encoded.split(b"\n")[:-1]:
        line = parse_line(raw)
        assert line is not None and len(line.text) <= MAX_LINE_BYTES
        joined += line.text + (b"" if line.partial else b"\n")
    assert joined == data


def test_records_that_are_sent_again_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(path)
    log.append(1, [record(1, b"one\n"), record(2, b"two\n")])
    log.append(1, [record(2, b"two\n"), record(3, b"three\n")])
    log.close()
    again = LogFile(path)
    again.append(1, [record(s, b"%d\n" % s) for s in range(1, 5)])
    again.close()
    assert text_of(path) == "one\ntwo\nthree\n4\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_a_killed_writer_left_is_cut_off_and_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(path)
    log.append(1, [record(1, b"one\n")])
    log.close()
    with path.open("ab") as f:
        f.write(b"2023-11-14T22:13:20.000000002+00:00 stdout F tw")
    again = LogFile(path)
    again.append(1, [record(2, b"two\n")])
    again.close()
    assert text_of(path) == "one\ntwo\n"


def test_a_new_start_does_not_go_on_with_the_last_ones_line(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(path)
    log.append(1, [record(1, b"no end"), record(2, b"err", stream=2)])
    log.close()
    again = LogFile(path)
    again.append(2, [record(1, b"next\n")])
    again.close()
    assert text_of(path) == "no enderr\n\nnext\n"


def test_the_file_is_rotated_at_its_bound_and_resumes_after_it(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(path, bounds=FileBounds(max_bytes=1000))
    for seq in range(1, 101):
        log.append(1, [record(seq, b"%03d\n" % seq)])
        assert path.stat().st_size <= 1000
    log.close()
    again = LogFile(path, bounds=FileBounds(max_bytes=1000))
    again.append(1, [record(100, b"100\n"), record(101, b"101\n")])
    again.close()
    kept = text_of(Path(f"{path}.1")) + text_of(path)
    assert kept.endswith("099\n100\n101\n")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.log", "a.log.1", "a.log.at"]


def test_a_full_disk_loses_output_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = LogFile(path)
    log.append(1, [record(1, b"before\n")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (os.stat(path).st_size + 10, hard))
    try:
        log.append(1, [record(2, b"lost\n")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert log.lost_bytes > 0
    log.append(1, [record(3, b"after\n")])
    log.close()
    lines = text_of(path).splitlines()
    assert lines[0] == "before" and lines[2] == "after"
    assert "output are lost" in lines[1]


@pytest.mark.parametrize("files", [1, 2, 4])
def test_so_many_files_are_kept_and_no_more(tmp_path: Path, files: int) -> None:
    log = LogFile(tmp_path / "a.log", bounds=FileBounds(max_bytes=1000, files=files))
    for seq in range(1, 1001):
        log.append(1, [record(seq, b"%04d\n" % seq)])
    log.close()
    names = {"a.log", *(f"a.log.{n}" for n in range(1, files))}
    assert {p.name for p in tmp_path.iterdir()} - {"a.log.at"} == names
    lines = [line["text"] for line in read_tail(tmp_path / "a.log", 10_000)]
    assert lines == [f"{n:04d}" for n in range(1001 - len(lines), 1001)]
    assert 10 * (files - 1) < len(lines) < 25 * files
