"""Events of a platform as they come, by `hutch events --follow`."""

import json
import subprocess
import threading
from collections.abc import Callable
from typing import Any

from tests.support.platform import BIN, Platform

LIMIT_S = 60


class EventStream:
    """Use as a context manager. What is not asked for is kept: events may be awaited in any order."""

    def __init__(self, platform: Platform) -> None:
        command = [str(BIN / "hutch"), "events", "--follow", "--json"]
        self._process = subprocess.Popen(
            command, env=platform.environment, stdout=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
        )
        self._limit = threading.Timer(LIMIT_S, self._process.kill)
        self._kept: list[dict[str, Any]] = []

    def __enter__(self) -> "EventStream":
        self._limit.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._limit.cancel()
        self._process.kill()
        self._process.communicate()

    def next(self, detail_type: str, fits: Callable[[dict[str, Any]], bool] = lambda _: True) -> Any:
        """The detail of the oldest event of that type that fits and was not given yet."""

        def wanted(event: dict[str, Any]) -> bool:
            return event["detail-type"] == detail_type and fits(event["detail"])

        for event in self._kept:
            if wanted(event):
                self._kept.remove(event)
                return event["detail"]
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            if wanted(event):
                return event["detail"]
            self._kept.append(event)
        raise AssertionError(f"no {detail_type!r} came within {LIMIT_S} s, but {len(self._kept)} others")
