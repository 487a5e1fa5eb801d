"""Log streams and their events."""

from typing import Any

from hutch.api.aws.logs.shapes import LogShapes
from hutch.api.gateway.operation import Operation, Request, operation
from hutch.api.gateway.paging import Paging
from hutch.base.errors import Invalid
from hutch.base.ids import IdSource
from hutch.control.ops.logs import LogOps

MAX_EVENTS = 10_000


class StreamHandlers:
    """The operations on log streams and events, but live tail."""

    def __init__(self, ops: LogOps, paging: Paging, ids: IdSource, shapes: LogShapes) -> None:
        self._ops = ops
        self._paging = paging
        self._ids = ids
        self._shapes = shapes

    def operations(self) -> tuple[Operation, ...]:
        by_group = ("logGroupName", "logGroupIdentifier")
        return (
            operation("CreateLogStream", self.create_stream, "logGroupName", "logStreamName"),
            operation(
                "DescribeLogStreams",
                self.describe_streams,
                *by_group,
                "logStreamNamePrefix",
                "orderBy",
                "descending",
                "nextToken",
                "limit",
            ),
            operation("DeleteLogStream", self.delete_stream, "logGroupName", "logStreamName"),
            operation(
                "PutLogEvents",
                self.put_events,
                "logGroupName",
                "logStreamName",
                "logEvents",
                inert={"sequenceToken": "AWS ignores it too", "entity": "no entity store"},
            ),
            operation(
                "GetLogEvents",
                self.get_events,
                *by_group,
                "logStreamName",
                "startTime",
                "endTime",
                "nextToken",
                "limit",
                "startFromHead",
                refused={"unmask": "hutch masks nothing"},
            ),
            operation(
                "FilterLogEvents",
                self.filter_events,
                *by_group,
                "logStreamNames",
                "logStreamNamePrefix",
                "startTime",
                "endTime",
                "filterPattern",
                "nextToken",
                "limit",
                "interleaved",
                refused={"unmask": "hutch masks nothing"},
            ),
        )

    async def create_stream(self, request: Request) -> dict[str, Any]:
        await self._ops.create_stream(request.input["logGroupName"], request.input["logStreamName"])
        return {}

    async def describe_streams(self, request: Request) -> dict[str, Any]:
        given = request.input
        group = self._shapes.group_named(given)
        by_time = given.get("orderBy") == "LastEventTime"
        prefix = given.get("logStreamNamePrefix", "")
        if by_time and prefix:
            raise Invalid("Cannot order by LastEventTime with a logStreamNamePrefix.")
        scope = f"DescribeLogStreams/{group}"
        token = given.get("nextToken")
        position = self._paging.decode_token(scope, token) if token else None
        streams, following = self._ops.streams(
            group,
            prefix,
            by_last_event=by_time,
            descending=given.get("descending", False),
            after=(int(position[0]), position[1]) if position else None,
            limit=given.get("limit", 50),
        )
        answer: dict[str, Any] = {"logStreams": [self._shapes.stream(s) for s in streams]}
        if following is not None:
            answer["nextToken"] = self._paging.encode_token(scope, (str(following[0]), following[1]))
        return answer

    async def delete_stream(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_stream(request.input["logGroupName"], request.input["logStreamName"])
        return {}

    async def put_events(self, request: Request) -> dict[str, Any]:
        given = request.input
        events = [(e["timestamp"], e["message"]) for e in given["logEvents"]]
        rejected = await self._ops.put(given["logGroupName"], given["logStreamName"], events)
        shape = {
            "tooNewLogEventStartIndex": rejected.too_new_start,
            "tooOldLogEventEndIndex": rejected.too_old_end,
            "expiredLogEventEndIndex": rejected.expired_end,
        }
        shape = {k: v for k, v in shape.items() if v is not None}
        answer: dict[str, Any] = {"nextSequenceToken": self._ids.digits(56)}
        return {**answer, "rejectedLogEventsInfo": shape} if shape else answer

    async def get_events(self, request: Request) -> dict[str, Any]:
        given = request.input
        group, stream = self._shapes.group_named(given), given["logStreamName"]
        token = given.get("nextToken", "")
        after = _position(token)
        backward = token.startswith("b/") if token else not given.get("startFromHead", False)
        events = self._ops.get(
            group,
            stream,
            start_ms=given.get("startTime"),
            end_ms=given.get("endTime"),
            after=after,
            backward=backward,
            limit=min(given.get("limit", MAX_EVENTS), MAX_EVENTS),
        )
        if events:
            first, last = events[0], events[-1]
            ends = ((first.timestamp_ms, first.seq), (last.timestamp_ms, last.seq))
        else:
            # At the end the token that was sent comes back: so clients know that there is no more.
            ends = (after or (0, 0), after or (0, 0))
        return {
            "events": [
                {"timestamp": e.timestamp_ms, "message": e.message, "ingestionTime": e.ingested_ms}
                for e in events
            ],
            "nextBackwardToken": _token("b", ends[0]),
            "nextForwardToken": _token("f", ends[1]),
        }

    async def filter_events(self, request: Request) -> dict[str, Any]:
        given = request.input
        group = self._shapes.group_named(given)
        names, prefix = given.get("logStreamNames", ()), given.get("logStreamNamePrefix", "")
        if names and prefix:
            raise Invalid("Cannot filter by both logStreamNames and logStreamNamePrefix.")
        scope = f"FilterLogEvents/{group}"
        token = given.get("nextToken")
        after = None
        if token:
            position = self._paging.decode_token(scope, token)
            after = (int(position[0]), int(position[1]))
        events, more = self._ops.filter(
            group,
            names=names,
            prefix=prefix,
            start_ms=given.get("startTime"),
            end_ms=given.get("endTime"),
            pattern=given.get("filterPattern", ""),
            after=after,
            limit=min(given.get("limit", MAX_EVENTS), MAX_EVENTS),
        )
        answer: dict[str, Any] = {
            "events": [
                {
                    "logStreamName": e.stream,
                    "timestamp": e.timestamp_ms,
                    "message": e.message,
                    "ingestionTime": e.ingested_ms,
                    "eventId": f"{e.timestamp_ms:020d}{e.seq:036d}",
                }
                for e in events
            ],
            "searchedLogStreams": [],
        }
        if more:
            answer["nextToken"] = self._paging.encode_token(scope, (str(more[0]), str(more[1])))
        return answer


def _token(direction: str, position: tuple[int, int]) -> str:
    """AWS's form: a direction and 56 digits."""
    return f"{direction}/{position[0]:020d}{position[1]:036d}"


def _position(token: str) -> tuple[int, int] | None:
    if not token:
        return None
    digits = token[2:]
    if token[:2] not in ("f/", "b/") or len(digits) != 56 or not (digits.isascii() and digits.isdecimal()):
        raise Invalid("The specified nextToken is invalid.")
    return min(int(digits[:20]), 2**62), min(int(digits[20:]), 2**62)
