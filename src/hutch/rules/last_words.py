"""What a program's last output says about why it ended, where that is plain enough to name a fix. No I/O."""

import re
from collections.abc import Sequence

MAX_LINES = 5
MAX_LINE_CHARACTERS = 300
_SAID = (
    (r"no space left on device", "a disk is full: raise ephemeralStorage (or the tmpfs's size), or write less"),
    (r"exec format error", "the program is no program for this machine: build the image for the task's architecture"),
    (
        r"error while loading shared libraries|exec container process \(missing dynamic library\?\)",
        "a library that the program needs is not in the image: build the image with it",
    ),
    (r"read-only file system", "it writes where it may not: mount a volume there, or unset readonlyRootFilesystem"),
    (r"address already in use", "two programs of the task listen on one port: give them different ones"),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern, re.IGNORECASE), fix) for pattern, fix in _SAID)


def last_lines(texts: Sequence[str]) -> tuple[str, ...]:
    """The lines to keep as evidence: few, and none too long."""
    return tuple(t[:MAX_LINE_CHARACTERS] for t in texts[-MAX_LINES:])


def fix_from(lines: Sequence[str]) -> str:
    """What to do, by the newest line that says something plain; "" if none does."""
    for line in reversed(lines):
        for pattern, fix in _COMPILED:
            if pattern.search(line):
                return fix
    return ""
