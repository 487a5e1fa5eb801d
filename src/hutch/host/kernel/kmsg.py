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
    found: str | None = None
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
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
                if pattern.search(text):
                    found = text[:500]
    except OSError:
        return found
    finally:
        os.close(fd)
    return found
