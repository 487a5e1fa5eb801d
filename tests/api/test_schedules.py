"""EventBridge Scheduler over HTTP, by boto3; and rules that have a schedule."""

import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.api.support.aws import AwsServer
from tests.api.support.events import CLUSTER, NO_WINDOW, PREFIX, ROLE, Hook, native, refusal, until


def test_a_schedule_as_it_was_given(aws: AwsServer, name: str, definition: str) -> None:
    scheduler = aws.client("scheduler")
    given = {
        "ScheduleExpression": "cron(0 9 ? * MON-FRI *)",
        "ScheduleExpressionTimezone": "Europe/Berlin",
        "FlexibleTimeWindow": {"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 15},
        "Description": "d",
        "ActionAfterCompletion": "NONE",
        "State": "DISABLED",
        "EndDate": datetime(2090, 1, 1, tzinfo=UTC),
        "Target": {
            "Arn": CLUSTER,
            "RoleArn": ROLE,
            "Input": '{"cpu": "512"}',
            "EcsParameters": {"TaskDefinitionArn": definition, "LaunchType": "FARGATE"},
            "RetryPolicy": {"MaximumEventAgeInSeconds": 600, "MaximumRetryAttempts": 3},
        },
    }
    arn = scheduler.create_schedule(Name=name, ClientToken="t", **given)["ScheduleArn"]
    assert arn == PREFIX.format("scheduler", f"schedule/default/{name}")
    assert scheduler.create_schedule(Name=name, ClientToken="t", **given)["ScheduleArn"] == arn
    with refusal("ConflictException"):
        scheduler.create_schedule(Name=name, **given)
    found = scheduler.get_schedule(Name=name)
    assert {k: found[k] for k in given} == given
    found = scheduler.list_schedules(NamePrefix=name)["Schedules"]
    assert [(s["Arn"], s["State"], s["Target"]) for s in found] == [(arn, "DISABLED", {"Arn": CLUSTER})]
    scheduler.update_schedule(
        Name=name,
        ScheduleExpression="rate(1 hour)",
        FlexibleTimeWindow=NO_WINDOW,
        Target=given["Target"],
        State="DISABLED",
    )
    assert "Description" not in scheduler.get_schedule(Name=name)
    scheduler.delete_schedule(Name=name)
    with refusal("ResourceNotFoundException"):
        scheduler.get_schedule(Name=name)


def test_groups(aws: AwsServer, name: str, hook: Hook) -> None:
    scheduler = aws.client("scheduler")
    arn = scheduler.create_schedule_group(Name=name, Tags=[{"Key": "a", "Value": "b"}])["ScheduleGroupArn"]
    scheduler.tag_resource(ResourceArn=arn, Tags=[{"Key": "c", "Value": "d"}])
    scheduler.untag_resource(ResourceArn=arn, TagKeys=["a"])
    assert scheduler.list_tags_for_resource(ResourceArn=arn)["Tags"] == [{"Key": "c", "Value": "d"}]
    assert name in [g["Name"] for g in scheduler.list_schedule_groups(NamePrefix=name)["ScheduleGroups"]]
    target = {"Arn": hook.url, "RoleArn": ROLE}
    scheduler.create_schedule(
        Name="x",
        GroupName=name,
        ScheduleExpression="rate(1 day)",
        StartDate=datetime(2090, 1, 1, tzinfo=UTC),
        FlexibleTimeWindow=NO_WINDOW,
        Target=target,
    )
    assert len(scheduler.list_schedules(GroupName=name)["Schedules"]) == 1
    scheduler.delete_schedule_group(Name=name)
    with refusal("ResourceNotFoundException"):
        scheduler.get_schedule(Name="x", GroupName=name)
    with refusal("ValidationException"):
        scheduler.delete_schedule_group(Name="default")


def test_a_rate_runs_at_once_and_again_without_drift(aws: AwsServer, hook: Hook, name: str) -> None:
    scheduler = aws.client("scheduler")
    scheduler.create_schedule(
        Name=name,
        ScheduleExpression="rate(1 second)",
        FlexibleTimeWindow=NO_WINDOW,
        Target={"Arn": hook.url, "RoleArn": ROLE, "Input": '{"at": "<aws.scheduler.scheduled-time>"}'},
    )
    times = [datetime.fromisoformat(hook.next()[2]["at"]) for _ in range(3)]
    scheduler.delete_schedule(Name=name)
    assert [b - a for a, b in itertools.pairwise(times)] == [timedelta(seconds=1)] * 2


def test_a_schedule_that_runs_once_goes_when_it_is_done(aws: AwsServer, hook: Hook, name: str) -> None:
    scheduler = aws.client("scheduler")
    soon = datetime.now(UTC) + timedelta(seconds=1)
    scheduler.create_schedule(
        Name=name,
        ScheduleExpression=f"at({soon:%Y-%m-%dT%H:%M:%S})",
        FlexibleTimeWindow=NO_WINDOW,
        ActionAfterCompletion="DELETE",
        Target={"Arn": hook.url, "RoleArn": ROLE},
    )
    event = hook.next()[2]
    assert (event["source"], event["detail-type"]) == ("aws.scheduler", "Scheduled Event")
    assert event["resources"] == [PREFIX.format("scheduler", f"schedule/default/{name}")]
    with refusal("ResourceNotFoundException"):
        scheduler.get_schedule(Name=name)
    with native(aws) as client:
        runs = until(
            aws,
            lambda: (
                (r := client.native("GET", f"/runs/schedule/default/{name}")["runs"])[0]["outcome"]
                == "DELIVERED"
                and r
            ),
        )
    assert len(runs) == 1 and runs[0]["detail"] == "HTTP 200"


def test_a_rule_by_schedule_tells_what_aws_tells(aws: AwsServer, hook: Hook, name: str) -> None:
    events = aws.client("events")
    events.put_rule(Name=name, ScheduleExpression="rate(1 second)")
    events.put_targets(Rule=name, Targets=[{"Id": "1", "Arn": hook.url}])
    event = hook.next()[2]
    events.disable_rule(Name=name)
    assert (event["source"], event["detail-type"], event["detail"]) == ("aws.events", "Scheduled Event", {})
    assert event["resources"] == [PREFIX.format("events", f"rule/{name}")]


@pytest.mark.parametrize("policy", ["Allow", "Forbid", "Replace"])
def test_what_happens_while_the_run_before_still_runs(
    aws: AwsServer, name: str, definition: str, policy: str
) -> None:
    scheduler, ecs = aws.client("scheduler"), aws.client("ecs")
    scheduler.create_schedule(
        Name=name,
        ScheduleExpression="rate(1 second)",
        FlexibleTimeWindow=NO_WINDOW,
        Target={
            "Arn": CLUSTER,
            "RoleArn": ROLE,
            "EcsParameters": {
                "TaskDefinitionArn": definition,
                "LaunchType": "FARGATE",
                "Tags": [{"key": "hutch:concurrencyPolicy", "value": policy}],
            },
        },
    )
    by = f"chronos-schedule/{name}"
    wanted = {"Allow": (2, 0), "Forbid": (1, 0), "Replace": (1, 1)}[policy]

    def outcome() -> bool:
        with native(aws) as client:
            done = [
                r
                for r in client.native("GET", f"/runs/schedule/default/{name}")["runs"]
                if r["outcome"] != "QUEUED"
            ]
        return len(done) >= 2

    until(aws, outcome)
    scheduler.update_schedule(
        Name=name,
        State="DISABLED",
        ScheduleExpression="rate(1 day)",
        FlexibleTimeWindow=NO_WINDOW,
        Target=scheduler.get_schedule(Name=name)["Target"],
    )
    running = ecs.list_tasks(startedBy=by, desiredStatus="RUNNING")["taskArns"]
    stopped = ecs.list_tasks(startedBy=by, desiredStatus="STOPPED")["taskArns"]
    assert len(running) >= wanted[0] and len(stopped) >= wanted[1]
    if policy != "Allow":
        assert len(running) == 1
    for arn in running:
        ecs.stop_task(task=arn)


@pytest.mark.parametrize(
    "given",
    [
        {"ScheduleExpression": "rate(1 hours"},
        {"ScheduleExpressionTimezone": "Mars/Olympus"},
        {"FlexibleTimeWindow": {"Mode": "FLEXIBLE"}},
        {"FlexibleTimeWindow": {"Mode": "OFF", "MaximumWindowInMinutes": 5}},
        {"StartDate": datetime(2090, 1, 2, tzinfo=UTC), "EndDate": datetime(2090, 1, 1, tzinfo=UTC)},
        {"Target": {"Arn": "arn:aws:scheduler:::aws-sdk:ecs:runTask", "RoleArn": ROLE}},
        {"Target": {"Arn": PREFIX.format("events", "event-bus/default"), "RoleArn": ROLE}},
    ],
)
def test_schedules_that_can_not_be_are_refused(aws: AwsServer, name: str, given: dict[str, Any]) -> None:
    whole = {
        "ScheduleExpression": "rate(1 hour)",
        "FlexibleTimeWindow": NO_WINDOW,
        "Target": {"Arn": "http://example.com", "RoleArn": ROLE},
    }
    with refusal("ValidationException|UnsupportedFeature"):
        aws.client("scheduler").create_schedule(Name=name, **(whole | given))
