"""A sandbox's log files, as its guest sees them: what is acknowledged is on the disk, or nobody's."""

from pathlib import Path

from tests.support.microvm_bench import joined_log

from hutch.host.guestlink.logs import SandboxLogs
from hutch.wire.guest import LogRecord


def lines(*numbers: int) -> list[tuple[int, LogRecord]]:
    return [(1, LogRecord(seq=n, time_ns=n, stream=1, data=b"%d\n" % n)) for n in numbers]


def written(directory: Path) -> list[int]:
    return [int(line) for line in joined_log(directory / "one.log").splitlines()]


async def test_what_came_before_its_start_was_known_is_not_jumped_over(tmp_path: Path) -> None:
    """After a restart of the agent the guest goes on sending while the agent learns what was started."""
    logs = SandboxLogs(tmp_path, knows_all=False)
    assert await logs.write(lines(3, 4)) == {}
    logs.register(1, "one", written=2)
    # On the way while the guest is greeted again: if it were acknowledged, the guest would forget 3 and 4.
    assert await logs.write(lines(5)) == {}
    logs.register_last()
    assert await logs.write(lines(6)) == {}
    assert await logs.write(lines(3, 4, 5, 6, 7)) == {1: 7}
    logs.greeted()
    assert await logs.write(lines(8)) == {1: 8}
    await logs.close()
    assert written(tmp_path) == [3, 4, 5, 6, 7, 8]


async def test_what_the_guest_has_no_more_is_not_waited_for(tmp_path: Path) -> None:
    logs = SandboxLogs(tmp_path, knows_all=False)
    assert await logs.write(lines(3)) == {}
    logs.register(1, "one", written=2)
    logs.register_last()
    assert await logs.write(lines(5)) == {}
    logs.greeted()
    assert await logs.write(lines(6)) == {1: 6}
    await logs.close()
    assert written(tmp_path) == [6]


async def test_what_is_nobodys_is_acknowledged_once_all_is_known(tmp_path: Path) -> None:
    logs = SandboxLogs(tmp_path)
    assert await logs.write(lines(1)) == {1: 1}
    assert logs.unknown_frames == 1
    await logs.close()
