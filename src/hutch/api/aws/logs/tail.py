"""Live tail: new events of log groups, as they come."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hutch.api.aws.logs.shapes import LogShapes
from hutch.api.gateway.operation import EventStream, Operation, Request, operation
from hutch.base.clock import Clock
from hutch.base.errors import Invalid
from hutch.base.ids import IdSource
from hutch.control.ops.logs import LogOps
from hutch.rules.logfilter import parse_filter
from hutch.store.log_records import StoredEvent

LIVE_TAIL_LONGEST_S = 3 * 3600.0
LIVE_TAIL_PERIOD_S = 1.0
LIVE_TAIL_MOST_EVENTS = 500


class TailHandlers:
    """StartLiveTail."""

    def __init__(self, ops: LogOps, clock: Clock, ids: IdSource, shapes: LogShapes) -> None:
        self._ops = ops
        self._clock = clock
        self._ids = ids
        self._shapes = shapes

    def operations(self) -> tuple[Operation, ...]:
        return (
            operation(
                "StartLiveTail",
                self.live_tail,
                "logGroupIdentifiers",
                "logStreamNames",
                "logStreamNamePrefixes",
                "logEventFilterPattern",
            ),
        )

    async def live_tail(self, request: Request) -> EventStream:
        given = request.input
        groups = [self._shapes.group_of(i) for i in given["logGroupIdentifiers"]]
        names = frozenset(given.get("logStreamNames", ()))
        prefixes = tuple(given.get("logStreamNamePrefixes", ()))
        if (names or prefixes) and len(groups) > 1:
            raise Invalid("Streams can only be named together with a single log group.")
        matches = parse_filter(given.get("logEventFilterPattern", ""))

        def wanted(event: StoredEvent) -> bool:
            named = (
                not (names or prefixes)
                or event.stream in names
                or event.stream.startswith(prefixes or ("\0",))
            )
            return named and matches(event.message)

        subscription = self._ops.tail(groups)

        async def events() -> AsyncIterator[tuple[str, dict[str, Any]]]:
            try:
                yield (
                    "sessionStart",
                    {
                        "requestId": request.request_id,
                        "sessionId": self._ids.uuid(),
                        "logGroupIdentifiers": given["logGroupIdentifiers"],
                        "logStreamNames": sorted(names),
                        "logStreamNamePrefixes": list(prefixes),
                        "logEventFilterPattern": given.get("logEventFilterPattern", ""),
                    },
                )
                ends = self._clock.monotonic() + LIVE_TAIL_LONGEST_S
                while self._clock.monotonic() < ends:
                    # The protocol itself is a beat: an update each second, empty if nothing came.
                    await asyncio.sleep(LIVE_TAIL_PERIOD_S)
                    found = [e for e in subscription.take(LIVE_TAIL_MOST_EVENTS) if wanted(e)]
                    yield (
                        "sessionUpdate",
                        {
                            "sessionMetadata": {"sampled": False},
                            "sessionResults": [self._tail_event(e) for e in found],
                        },
                    )
                yield "SessionTimeoutException", {"message": "The session was open for three hours."}
            finally:
                subscription.close()

        return EventStream(events=events())

    def _tail_event(self, event: StoredEvent) -> dict[str, Any]:
        return {
            "logStreamName": event.stream,
            "logGroupIdentifier": self._shapes.group_arn(event.group),
            "message": event.message,
            "timestamp": event.timestamp_ms,
            "ingestionTime": event.ingested_ms,
        }
