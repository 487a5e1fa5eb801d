"""How long a task may run: the tag `hutch:maxRuntime`, in seconds or with units (`90`, `15m`, `1h30m`, `2d`)."""

import re
from collections.abc import Mapping

from hutch.base.errors import Invalid

MAX_RUNTIME_TAG = "hutch:maxRuntime"
LONGEST_S = 366 * 86400
_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


def max_runtime_s(tags: Mapping[str, str]) -> int:
    """Seconds from RUNNING on; 0 without the tag. Raises `Invalid`."""
    text = tags.get(MAX_RUNTIME_TAG)
    if text is None:
        return 0
    match = re.fullmatch(r"(?:(\d{1,4})d)?(?:(\d{1,6})h)?(?:(\d{1,8})m)?(?:(\d{1,9})s?)?", text)
    seconds = sum(int(v) * u for v, u in zip(match.groups("0"), _UNITS.values(), strict=True)) if match else 0
    if not 1 <= seconds <= LONGEST_S:
        raise Invalid(
            f"tag {MAX_RUNTIME_TAG}: {text[:40]!r} is not a time from 1 second to 366 days such as 90, 15m or 1h30m."
        )
    return seconds
