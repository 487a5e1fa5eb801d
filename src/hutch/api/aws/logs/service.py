"""CloudWatch Logs: shape in, one use case, shape out."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from hutch.api.aws.logs.access import LogsAccess
from hutch.api.gateway.operation import EventStream, Operation, Request, Service, operation
from hutch.api.gateway.paging import Paging
from hutch.base.clock import Clock
from hutch.base.errors import AlreadyExists, HutchError, Invalid, LimitExceeded, NotFound, Unavailable
from hutch.base.ids import IdSource
from hutch.control.ops.logs import LogOps
from hutch.rules.logfilter import parse_filter
from hutch.rules.tags import tags_from_list
from hutch.store.log_records import LogGroup, LogStream, StoredEvent

LIVE_TAIL_LONGEST_S = 3 * 3600.0
LIVE_TAIL_PERIOD_S = 1.0
LIVE_TAIL_MOST_EVENTS = 500
MAX_EVENTS = 10_000


_ONE_ACCOUNT = {
    "includeLinkedAccounts": "hutch has one account",
    "accountIdentifiers": "hutch has one account",
    "dataSources": "hutch has no data sources",
    "fieldIndexNames": "hutch has no field indexes",
    "logGroupTags": "list groups by name",
}


FaultTable = tuple[tuple[type[HutchError], str], ...]
_TOO_MANY_TAGS: FaultTable = ((LimitExceeded, "TooManyTagsException"),)


class LogHandlers:
    """The log operations that hutch serves."""

    def __init__(
        self, ops: LogOps, paging: Paging, clock: Clock, ids: IdSource, region: str, account_id: str
    ) -> None:
        self._ops = ops
        self._paging = paging
        self._clock = clock
        self._ids = ids
        self._prefix = f"arn:aws:logs:{region}:{account_id}:log-group:"

    def operations(self) -> tuple[Operation, ...]:
        return (*self._of_groups(), *self._of_tags(), *self._of_streams())

    def _of_groups(self) -> tuple[Operation, ...]:
        return (
            operation(
                "CreateLogGroup",
                self.create_group,
                "logGroupName",
                "tags",
                "logGroupClass",
                "deletionProtectionEnabled",
                refused={"kmsKeyId": "hutch has no KMS"},
            ),
            operation(
                "DescribeLogGroups",
                self.describe_groups,
                "logGroupNamePrefix",
                "logGroupNamePattern",
                "nextToken",
                "limit",
                "logGroupClass",
            ),
            operation(
                "ListLogGroups",
                self.list_groups,
                "logGroupNamePattern",
                "logGroupClass",
                "nextToken",
                "limit",
                refused=_ONE_ACCOUNT,
            ),
            operation("DeleteLogGroup", self.delete_group, "logGroupName"),
            operation("PutRetentionPolicy", self.put_retention, "logGroupName", "retentionInDays"),
            operation("DeleteRetentionPolicy", self.delete_retention, "logGroupName"),
        )

    def _of_tags(self) -> tuple[Operation, ...]:
        return (
            operation("TagResource", self.tag, "resourceArn", "tags", faults=_TOO_MANY_TAGS),
            operation("UntagResource", self.untag, "resourceArn", "tagKeys"),
            operation("ListTagsForResource", self.list_tags, "resourceArn"),
            operation("TagLogGroup", self.tag_group, "logGroupName", "tags"),
            operation("UntagLogGroup", self.untag_group, "logGroupName", "tags"),
            operation("ListTagsLogGroup", self.list_tags_of_group, "logGroupName"),
        )

    def _of_streams(self) -> tuple[Operation, ...]:
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
            operation(
                "StartLiveTail",
                self.live_tail,
                "logGroupIdentifiers",
                "logStreamNames",
                "logStreamNamePrefixes",
                "logEventFilterPattern",
            ),
        )

    async def create_group(self, request: Request) -> dict[str, Any]:
        given = request.input
        if given.get("deletionProtectionEnabled"):
            raise Invalid("hutch does not support deletionProtectionEnabled.")
        tags = _checked(given.get("tags", {}))
        await self._ops.create_group(given["logGroupName"], given.get("logGroupClass", "STANDARD"), tags)
        return {}

    async def describe_groups(self, request: Request) -> dict[str, Any]:
        given = request.input
        if given.get("logGroupNamePrefix") and given.get("logGroupNamePattern"):
            raise Invalid("logGroupNamePattern and logGroupNamePrefix can't be given together.")
        limit = given.get("limit", 50)
        token = given.get("nextToken")
        after = self._paging.decode_token("DescribeLogGroups", token)[0] if token else ""
        page, more = self._ops.groups(
            given.get("logGroupNamePrefix", ""), given.get("logGroupNamePattern", ""), after, limit
        )
        wanted = given.get("logGroupClass")
        answer: dict[str, Any] = {
            "logGroups": [self._group(g) for g in page if wanted in (None, g.log_class)]
        }
        if more:
            answer["nextToken"] = self._paging.encode_token("DescribeLogGroups", (page[-1].name,))
        return answer

    async def list_groups(self, request: Request) -> dict[str, Any]:
        given = request.input
        token = given.get("nextToken")
        page, more = self._ops.groups_like(
            given.get("logGroupNamePattern", ""),
            given.get("logGroupClass", ""),
            self._paging.decode_token("ListLogGroups", token)[0] if token else "",
            given.get("limit", 50),
        )
        answer: dict[str, Any] = {
            "logGroups": [
                {
                    "logGroupName": g.name,
                    "logGroupArn": self._prefix + g.name,
                    "logGroupClass": g.log_class,
                }
                for g in page
            ]
        }
        if more:
            answer["nextToken"] = self._paging.encode_token("ListLogGroups", (page[-1].name,))
        return answer

    async def delete_group(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_group(request.input["logGroupName"])
        return {}

    async def create_stream(self, request: Request) -> dict[str, Any]:
        await self._ops.create_stream(request.input["logGroupName"], request.input["logStreamName"])
        return {}

    async def delete_stream(self, request: Request) -> dict[str, Any]:
        await self._ops.delete_stream(request.input["logGroupName"], request.input["logStreamName"])
        return {}

    async def describe_streams(self, request: Request) -> dict[str, Any]:
        given = request.input
        group = self._group_name(given)
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
        answer: dict[str, Any] = {"logStreams": [self._stream(s) for s in streams]}
        if following is not None:
            answer["nextToken"] = self._paging.encode_token(scope, (str(following[0]), following[1]))
        return answer

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
        group, stream = self._group_name(given), given["logStreamName"]
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
        group = self._group_name(given)
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

    async def put_retention(self, request: Request) -> dict[str, Any]:
        await self._ops.set_retention(request.input["logGroupName"], request.input["retentionInDays"])
        return {}

    async def delete_retention(self, request: Request) -> dict[str, Any]:
        await self._ops.set_retention(request.input["logGroupName"], None)
        return {}

    async def tag(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(self._tagged(given["resourceArn"]), _checked(given["tags"]))
        return {}

    async def untag(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(self._tagged(given["resourceArn"]), {}, given["tagKeys"])
        return {}

    async def list_tags(self, request: Request) -> dict[str, Any]:
        return {"tags": self._ops.tags(self._tagged(request.input["resourceArn"]))}

    async def tag_group(self, request: Request) -> dict[str, Any]:
        given = request.input
        await self._ops.change_tags(given["logGroupName"], _checked(given["tags"]))
        return {}

    async def untag_group(self, request: Request) -> dict[str, Any]:
        await self._ops.change_tags(request.input["logGroupName"], {}, request.input["tags"])
        return {}

    async def list_tags_of_group(self, request: Request) -> dict[str, Any]:
        return {"tags": self._ops.tags(request.input["logGroupName"])}

    def _tagged(self, arn: str) -> str:
        """The group that a tag operation names, which takes ARNs only."""
        if not arn.startswith("arn:"):
            raise Invalid("The specified resourceArn is not an ARN.")
        return self._from_arn(arn)

    async def live_tail(self, request: Request) -> EventStream:
        given = request.input
        groups = [self._from_arn(i) for i in given["logGroupIdentifiers"]]
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
            "logGroupIdentifier": self._prefix + event.group,
            "message": event.message,
            "timestamp": event.timestamp_ms,
            "ingestionTime": event.ingested_ms,
        }

    def _group_name(self, given: dict[str, Any]) -> str:
        if ("logGroupName" in given) == ("logGroupIdentifier" in given):
            raise Invalid("Give either logGroupName or logGroupIdentifier.")
        return self._from_arn(given.get("logGroupIdentifier") or given["logGroupName"])

    def _from_arn(self, identifier: str) -> str:
        if not identifier.startswith("arn:"):
            return identifier
        if not identifier.startswith(self._prefix):
            raise Invalid("The ARN is not one of a log group of this account and region.")
        return identifier[len(self._prefix) :].removesuffix(":*")

    def _group(self, group: LogGroup) -> dict[str, Any]:
        shape: dict[str, Any] = {
            "logGroupName": group.name,
            "creationTime": group.created_ms,
            "metricFilterCount": 0,
            "arn": f"{self._prefix}{group.name}:*",
            "logGroupArn": self._prefix + group.name,
            "storedBytes": group.stored_bytes,
            "logGroupClass": group.log_class,
        }
        return shape if group.retention_days is None else {**shape, "retentionInDays": group.retention_days}

    def _stream(self, stream: LogStream) -> dict[str, Any]:
        shape = {
            "logStreamName": stream.name,
            "creationTime": stream.created_ms,
            "firstEventTimestamp": stream.first_ms,
            "lastEventTimestamp": stream.last_ms,
            "lastIngestionTime": stream.ingested_ms,
            "uploadSequenceToken": "0" * 56,
            "arn": f"{self._prefix}{stream.group}:log-stream:{stream.name}",
            "storedBytes": 0,
        }
        return {k: v for k, v in shape.items() if v is not None}


def _checked(tags: dict[str, str]) -> dict[str, str]:
    return tags_from_list({"key": k, "value": v} for k, v in tags.items())


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


def service(
    ops: LogOps, paging: Paging, clock: Clock, ids: IdSource, *, region: str, account_id: str
) -> Service:
    """CloudWatch Logs on these use cases."""
    return Service(
        name="logs",
        operations=LogHandlers(ops, paging, clock, ids, region, account_id).operations(),
        faults=(
            (NotFound, "ResourceNotFoundException"),
            (AlreadyExists, "ResourceAlreadyExistsException"),
            (Unavailable, "ServiceUnavailableException"),
            (HutchError, "InvalidParameterException"),
        ),
        access=LogsAccess(region, account_id).rules(),
    )
