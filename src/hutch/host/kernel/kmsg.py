"""The kernel's log: whether its OOM killer ended a process."""

import contextlib
import os
import re

_RECORD_BYTES = 8192
_MAX_RECORDS = 100_000


def oom_kill_record(pid: int) -> str | None:
    """The kernel's own words on having killed `pid` for want of memory; None if it did not, or its log can't
    be read.

    Does not block: reads what the ring buffer holds now.
    """
    pattern = re.compile(rf"Killed process {pid} \(")
    return next((text for text in reversed(_records()) if pattern.search(text)), None)


def oom_kill_record_of_group(path: str) -> str | None:
    """The kernel's words on the process that it killed last, for want of memory, in a control group (its path, not
    those below it); None as in `oom_kill_record`."""
    of_group = re.compile(rf"oom-kill:.*,task_memcg={re.escape(path)},task=.*,pid=(\d+),uid=")
    for text in reversed(_records()):
        if found := of_group.search(text):
            return oom_kill_record(int(found[1]))
    return None


def _records() -> list[str]:
    """The texts that are in the kernel's ring buffer now, the oldest first; none if it can't be read."""
    found: list[str] = []
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return found
    try:
        with contextlib.suppress(BlockingIOError):
            for _ in range(_MAX_RECORDS):
                try:
                    record = os.read(fd, _RECORD_BYTES)
                except BrokenPipeError:  # overwritten while we read: the next read goes on behind it
                    continue
                if not record:
                    break
                text = record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0]
                found.append(text[:500])
    except OSError:
        return found
    finally:
        os.close(fd)
    return found
