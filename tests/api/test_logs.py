"""CloudWatch Logs over HTTP, by boto3: groups, streams, events, pages, filters, tags, live tail, limits, errors."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.api.support.aws import AwsServer

_NUMBERS = itertools.count()
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def logs(aws: AwsServer) -> Any:
    return aws.client("logs")


@pytest.fixture
def group(logs: Any) -> Iterator[str]:
    name = f"/test/{next(_NUMBERS)}"
    logs.create_log_group(logGroupName=name)
    yield name
    logs.delete_log_group(logGroupName=name)


def now_ms() -> int:
    return int(time.time() * 1000)


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        call()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


def write(logs: Any, group: str, stream: str, messages: list[str], start_ms: int = 0) -> int:
    """Events a millisecond apart; the first one's time."""
    start_ms = start_ms or now_ms() - 60_000
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    logs.put_log_events(
        logGroupName=group,
        logStreamName=stream,
        logEvents=[{"timestamp": start_ms + i, "message": m} for i, m in enumerate(messages)],
    )
    return start_ms


def messages(answer: dict[str, Any]) -> list[str]:
    return [e["message"] for e in answer["events"]]


def test_groups_are_made_listed_and_deleted(logs: Any) -> None:
    logs.create_log_group(logGroupName="/g/one", tags={"a": "b"}, logGroupClass="INFREQUENT_ACCESS")
    logs.create_log_group(logGroupName="/g/Two")
    found = logs.describe_log_groups(logGroupNamePrefix="/g/")["logGroups"]
    assert [g["logGroupName"] for g in found] == ["/g/Two", "/g/one"]
    assert found[1]["arn"] == "arn:aws:logs:us-east-1:000000000000:log-group:/g/one:*"
    assert found[1]["logGroupClass"] == "INFREQUENT_ACCESS" and "retentionInDays" not in found[1]
    pages = logs.get_paginator("describe_log_groups").paginate(
        logGroupNamePrefix="/g/", PaginationConfig={"PageSize": 1}
    )
    assert [len(p["logGroups"]) for p in pages] == [1, 1]
    assert len(logs.describe_log_groups(logGroupNamePattern="Two")["logGroups"]) == 1
    assert logs.describe_log_groups(logGroupNamePattern="two")["logGroups"] == []
    code, _ = refusal(lambda: logs.describe_log_groups(logGroupNamePattern="o", logGroupNamePrefix="/g"))
    assert code == "InvalidParameterException"
    listed = logs.list_log_groups(logGroupNamePattern="^/g/o|Two")["logGroups"]
    assert [g["logGroupName"] for g in listed] == ["/g/Two", "/g/one"]
    assert logs.list_log_groups(logGroupNamePattern="^g/one")["logGroups"] == []
    assert len(logs.list_log_groups(logGroupClass="INFREQUENT_ACCESS")["logGroups"]) == 1
    page = logs.list_log_groups(limit=1)
    assert page["nextToken"] and logs.list_log_groups(limit=1, nextToken=page["nextToken"])["logGroups"]
    assert refusal(lambda: logs.create_log_group(logGroupName="/g/one")) == (
        "ResourceAlreadyExistsException",
        "The specified log group already exists",
    )
    for name in ("/g/one", "/g/Two"):
        logs.delete_log_group(logGroupName=name)
    assert refusal(lambda: logs.delete_log_group(logGroupName="/g/one")) == (
        "ResourceNotFoundException",
        "The specified log group does not exist.",
    )


def test_streams_are_ordered_by_name_or_by_their_last_event(logs: Any, group: str) -> None:
    start = now_ms() - 60_000
    for index, name in enumerate(("c", "a", "b")):
        write(logs, group, name, ["x"], start + index)

    def names(**how: Any) -> list[str]:
        return [
            s["logStreamName"] for s in logs.describe_log_streams(logGroupName=group, **how)["logStreams"]
        ]

    assert names() == ["a", "b", "c"]
    assert names(orderBy="LastEventTime", descending=True) == ["b", "a", "c"]
    assert names(logStreamNamePrefix="b") == ["b"]
    pages = logs.get_paginator("describe_log_streams").paginate(
        logGroupName=group, PaginationConfig={"PageSize": 2}
    )
    assert [len(p["logStreams"]) for p in pages] == [2, 1]
    stream = logs.describe_log_streams(logGroupName=group)["logStreams"][0]
    assert stream["firstEventTimestamp"] == stream["lastEventTimestamp"] == start + 1
    code, _ = refusal(lambda: names(orderBy="LastEventTime", logStreamNamePrefix="b"))
    assert code == "InvalidParameterException"
    logs.delete_log_stream(logGroupName=group, logStreamName="a")
    assert names() == ["b", "c"]
    assert refusal(lambda: logs.create_log_stream(logGroupName=group, logStreamName="b"))[0] == (
        "ResourceAlreadyExistsException"
    )
    assert refusal(lambda: logs.delete_log_stream(logGroupName=group, logStreamName="a")) == (
        "ResourceNotFoundException",
        "The specified log stream does not exist.",
    )


def test_get_log_events_goes_both_ways_and_says_where_the_end_is(logs: Any, group: str) -> None:
    start = write(logs, group, "s", [f"m{i}" for i in range(5)])

    def get(**how: Any) -> dict[str, Any]:
        answer: dict[str, Any] = logs.get_log_events(logGroupName=group, logStreamName="s", **how)
        return answer

    assert messages(get(limit=2)) == ["m3", "m4"]
    first = get(limit=2, startFromHead=True)
    assert messages(first) == ["m0", "m1"]
    second = get(limit=2, nextToken=first["nextForwardToken"])
    assert messages(second) == ["m2", "m3"]
    last = get(limit=2, nextToken=second["nextForwardToken"])
    assert messages(last) == ["m4"]
    end = get(limit=2, nextToken=last["nextForwardToken"])
    assert end["events"] == [] and end["nextForwardToken"] == last["nextForwardToken"]
    assert messages(get(limit=2, nextToken=last["nextBackwardToken"])) == ["m2", "m3"]
    # What comes later is found by the token of the end: so `--follow` of every tool works.
    logs.put_log_events(
        logGroupName=group, logStreamName="s", logEvents=[{"timestamp": start + 9, "message": "new"}]
    )
    assert messages(get(nextToken=end["nextForwardToken"])) == ["new"]
    assert messages(get(startFromHead=True, startTime=start + 1, endTime=start + 3)) == ["m1", "m2"]
    assert refusal(lambda: get(nextToken="f/1"))[0] == "InvalidParameterException"
    assert refusal(lambda: logs.get_log_events(logGroupName=group, logStreamName="t")) == (
        "ResourceNotFoundException",
        "The specified log stream does not exist.",
    )


def test_a_page_has_at_most_a_megabyte(logs: Any, group: str) -> None:
    big = "x" * 400_000
    logs.create_log_stream(logGroupName=group, logStreamName="s")
    for index in range(3):
        logs.put_log_events(
            logGroupName=group,
            logStreamName="s",
            logEvents=[{"timestamp": now_ms() - 10 + index, "message": big}],
        )
    page = logs.get_log_events(logGroupName=group, logStreamName="s", startFromHead=True)
    assert len(page["events"]) == 2
    pages = list(logs.get_paginator("filter_log_events").paginate(logGroupName=group))
    assert sum(len(p["events"]) for p in pages) == 3 and len(pages) > 1


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["GET /a 200", "POST /b 500", '{"level": "error", "took": 12}']),
        ("GET", ["GET /a 200"]),
        ("?GET ?POST", ["GET /a 200", "POST /b 500"]),
        ('"POST /b" -200', ["POST /b 500"]),
        ('{ $.level = "error" }', ['{"level": "error", "took": 12}']),
        ("{ $.took > 20 }", []),
    ],
)
def test_filter_patterns(logs: Any, group: str, pattern: str, found: list[str]) -> None:
    start = now_ms() - 60_000
    write(logs, group, "one", ["GET /a 200"], start)
    write(logs, group, "two", ["POST /b 500", '{"level": "error", "took": 12}'], start + 1)
    answer = logs.filter_log_events(logGroupName=group, filterPattern=pattern)
    assert messages(answer) == found
    assert len({e["eventId"] for e in answer["events"]}) == len(found)


def test_filter_log_events_pages_ranges_and_streams(logs: Any, group: str) -> None:
    start = write(logs, group, "a", [f"a{i}" for i in range(4)])
    write(logs, group, "b", ["b0"], start + 1)

    def events(**how: Any) -> list[str]:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group, **how)
        return [m for p in pages for m in messages(p)]

    everything = ["a0", "a1", "b0", "a2", "a3"]
    assert events() == events(limit=1) == events(limit=2, filterPattern="?a ?b") == everything
    # The end of the range is in it, unlike with GetLogEvents.
    assert events(startTime=start + 1, endTime=start + 2) == ["a1", "b0", "a2"]
    assert events(endTime=2**63 - 1) == everything and events(startTime=2**63 - 1) == []
    assert events(logStreamNames=["b"]) == events(logStreamNamePrefix="b") == ["b0"]
    assert refusal(lambda: events(logStreamNames=["nope"]))[0] == "ResourceNotFoundException"
    assert refusal(lambda: events(logStreamNames=["b"], logStreamNamePrefix="b"))[0] == (
        "InvalidParameterException"
    )
    assert refusal(lambda: events(nextToken="made-up"))[0] == "InvalidParameterException"
    arn = f"arn:aws:logs:us-east-1:000000000000:log-group:{group}"
    assert messages(logs.filter_log_events(logGroupIdentifier=arn, limit=1)) == ["a0"]


def test_events_outside_the_accepted_time_are_rejected_and_the_rest_kept(logs: Any, group: str) -> None:
    logs.create_log_stream(logGroupName=group, logStreamName="s")

    def put(*times: int) -> dict[str, Any]:
        answer: dict[str, Any] = logs.put_log_events(
            logGroupName=group, logStreamName="s", logEvents=[{"timestamp": t, "message": "m"} for t in times]
        )
        return answer

    now = now_ms()
    assert "rejectedLogEventsInfo" not in put(now - 1000, now)
    assert put(now - 15 * DAY_MS)["rejectedLogEventsInfo"] == {"tooOldLogEventEndIndex": 1}
    assert put(now, now + 3 * 3_600_000)["rejectedLogEventsInfo"] == {"tooNewLogEventStartIndex": 1}
    logs.put_retention_policy(logGroupName=group, retentionInDays=1)
    assert put(now - 2 * DAY_MS)["rejectedLogEventsInfo"] == {"expiredLogEventEndIndex": 1}
    assert len(logs.get_log_events(logGroupName=group, logStreamName="s")["events"]) == 3
    assert refusal(lambda: put(now, now - 1)) == (
        "InvalidParameterException",
        "Log events in a single PutLogEvents request must be in chronological order.",
    )
    assert "24 hours" in refusal(lambda: put(now - DAY_MS - 1, now))[1]


def test_limits_of_a_batch(logs: Any, group: str) -> None:
    logs.create_log_stream(logGroupName=group, logStreamName="s")

    def put(events: list[dict[str, Any]]) -> None:
        logs.put_log_events(logGroupName=group, logStreamName="s", logEvents=events)

    now = now_ms()
    put([{"timestamp": now, "message": "x" * (1_048_576 - 26)}])
    code, words = refusal(lambda: put([{"timestamp": now, "message": "x" * (1_048_576 - 25)}]))
    assert code == "InvalidParameterException" and "1048576 bytes" in words
    assert refusal(lambda: put([{"timestamp": now, "message": "x"}] * 10_001))[0] == (
        "InvalidParameterException"
    )
    missing = refusal(
        lambda: logs.put_log_events(
            logGroupName=group, logStreamName="no", logEvents=[{"timestamp": now, "message": "x"}]
        )
    )
    assert missing == ("ResourceNotFoundException", "The specified log stream does not exist.")


def test_retention(logs: Any, group: str) -> None:
    def shown() -> int | None:
        found = logs.describe_log_groups(logGroupNamePrefix=group)["logGroups"]
        return next((g.get("retentionInDays") for g in found if g["logGroupName"] == group), None)

    logs.put_retention_policy(logGroupName=group, retentionInDays=7)
    assert shown() == 7
    logs.delete_retention_policy(logGroupName=group)
    assert shown() is None
    code, words = refusal(lambda: logs.put_retention_policy(logGroupName=group, retentionInDays=2))
    assert code == "InvalidParameterException" and "3653" in words
    assert refusal(lambda: logs.put_retention_policy(logGroupName="/no", retentionInDays=7))[0] == (
        "ResourceNotFoundException"
    )


def test_tags_by_arn_and_by_name_are_the_same_tags(logs: Any, group: str) -> None:
    arn = f"arn:aws:logs:us-east-1:000000000000:log-group:{group}"
    logs.tag_resource(resourceArn=arn, tags={"a": "1", "b": "2"})
    logs.tag_log_group(logGroupName=group, tags={"b": "3", "c": ""})
    expected = {"a": "1", "b": "3", "c": ""}
    assert logs.list_tags_for_resource(resourceArn=arn)["tags"] == expected
    assert logs.list_tags_log_group(logGroupName=group)["tags"] == expected
    logs.untag_resource(resourceArn=arn, tagKeys=["a", "unknown"])
    logs.untag_log_group(logGroupName=group, tags=["b"])
    assert logs.list_tags_log_group(logGroupName=group)["tags"] == {"c": ""}
    many = {f"k{i}": "v" for i in range(50)}
    assert refusal(lambda: logs.tag_resource(resourceArn=arn, tags=many))[0] == "TooManyTagsException"
    assert refusal(lambda: logs.tag_resource(resourceArn=group, tags={"a": "b"}))[0] == (
        "InvalidParameterException"
    )
    assert refusal(lambda: logs.tag_log_group(logGroupName=group, tags={"aws:x": "b"}))[0] == (
        "InvalidParameterException"
    )
    other = arn.replace("us-east-1", "eu-west-1")
    assert refusal(lambda: logs.list_tags_for_resource(resourceArn=other))[0] == "InvalidParameterException"


@pytest.mark.parametrize("name", ["a b", "a:b", "a*", "é", "x" * 513, ""])
def test_names_that_no_group_can_have(aws: AwsServer, name: str) -> None:
    unchecked = aws.client("logs", checks=False)
    code, _ = refusal(lambda: unchecked.create_log_group(logGroupName=name))
    assert code == "InvalidParameterException"


def test_what_is_not_served_is_refused(logs: Any, group: str) -> None:
    for extra in (
        {"kmsKeyId": "arn:aws:kms:us-east-1:000000000000:key/x"},
        {"deletionProtectionEnabled": True},
    ):
        code, words = refusal(lambda e=extra: logs.create_log_group(logGroupName="/kms", **e))
        assert code == "InvalidParameterException" and next(iter(extra)) in words
    code, words = refusal(lambda: logs.filter_log_events(logGroupName=group, unmask=True))
    assert code == "InvalidParameterException" and "unmask" in words


def test_live_tail_shows_what_is_written_after_it_began(logs: Any, group: str) -> None:
    arn = f"arn:aws:logs:us-east-1:000000000000:log-group:{group}"
    logs.create_log_stream(logGroupName=group, logStreamName="s")
    stream = logs.start_live_tail(logGroupIdentifiers=[arn], logEventFilterPattern="-noise")["responseStream"]
    events = iter(stream)
    start = next(events)["sessionStart"]
    assert start["logGroupIdentifiers"] == [arn] and start["logEventFilterPattern"] == "-noise"
    logs.put_log_events(
        logGroupName=group,
        logStreamName="s",
        logEvents=[{"timestamp": now_ms(), "message": m} for m in ("hello", "noise", "grüße")],
    )
    results = next(r for e in events if (r := e["sessionUpdate"]["sessionResults"]))
    assert [r["message"] for r in results] == ["hello", "grüße"]
    assert results[0]["logStreamName"] == "s"
    stream.close()


def test_live_tail_of_nothing_is_refused(logs: Any) -> None:
    arn = "arn:aws:logs:us-east-1:000000000000:log-group:/nothing"
    assert refusal(lambda: logs.start_live_tail(logGroupIdentifiers=[arn]))[0] == "ResourceNotFoundException"
