"""EventBridge and Scheduler over HTTP, by boto3: rules, targets, deliveries, schedules, and the event log."""

import itertools
import json
import queue
import threading
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from botocore.exceptions import ClientError
from tests.api.support.aws import AwsServer, until_changed

from hutch.client.client import HutchClient

PREFIX = "arn:aws:{}:us-east-1:000000000000:{}"
CLUSTER = PREFIX.format("ecs", "cluster/default")
ROLE = "arn:aws:iam::000000000000:role/events"
NO_WINDOW = {"Mode": "OFF"}


class Hook:
    """A web server that keeps what it is sent, and answers with the statuses it is given, then with 200."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[str, dict[str, str], str]] = queue.Queue()
        self.answers: list[int] = []
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"])).decode()
                hook.calls.put((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                self.send_response(hook.answers.pop(0) if hook.answers else 200)
                self.send_header("location", "http://169.254.169.254/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def next(self) -> tuple[str, dict[str, str], Any]:
        path, headers, body = self.calls.get(timeout=30)
        return path, headers, json.loads(body)


@pytest.fixture
def hook() -> Iterator[Hook]:
    made = Hook()
    yield made
    made.server.shutdown()


@pytest.fixture
def name() -> str:
    return f"r-{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def definition(aws: AwsServer) -> str:
    ecs = aws.client("ecs")
    ecs.create_cluster(clusterName="default")
    registered = ecs.register_task_definition(
        family="job",
        requiresCompatibilities=["FARGATE"],
        networkMode="awsvpc",
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "main", "image": "x"}],
    )
    return str(registered["taskDefinition"]["taskDefinitionArn"])


def native(aws: AwsServer) -> HutchClient:
    key = aws.http.key
    return HutchClient(aws.http.url, key.access_key_id, key.secret_key, "us-east-1")


def refusal(code: str) -> Any:
    return pytest.raises(ClientError, match=code)


def until(aws: AwsServer, what: Any) -> Any:
    """Ask, and again after each change in the store, until there is an answer."""
    while True:
        seq = aws.store.last_seq()
        if found := what():
            return found
        until_changed(aws, seq)


def put_rule(aws: AwsServer, name: str, pattern: dict[str, Any], *targets: dict[str, Any]) -> Any:
    events = aws.client("events")
    events.put_rule(Name=name, EventPattern=json.dumps(pattern))
    answer = events.put_targets(Rule=name, Targets=[{"Id": str(n), **t} for n, t in enumerate(targets)])
    assert answer["FailedEntryCount"] == 0
    return events


def test_a_rule_and_its_targets(aws: AwsServer, name: str) -> None:
    events = aws.client("events")
    arn = events.put_rule(
        Name=name, EventPattern='{"source": ["x"]}', Description="d", Tags=[{"Key": "a", "Value": "b"}]
    )["RuleArn"]
    assert arn == PREFIX.format("events", f"rule/{name}")
    found = events.describe_rule(Name=name)
    assert (found["State"], found["EventBusName"], found["EventPattern"]) == (
        "ENABLED",
        "default",
        '{"source": ["x"]}',
    )
    assert events.list_tags_for_resource(ResourceARN=arn)["Tags"] == [{"Key": "a", "Value": "b"}]
    events.untag_resource(ResourceARN=arn, TagKeys=["a"])
    assert events.list_tags_for_resource(ResourceARN=arn)["Tags"] == []
    url = f"https://example.com/{name}"
    events.put_targets(Rule=name, Targets=[{"Id": "1", "Arn": url, "InputPath": "$.detail"}])
    assert events.list_targets_by_rule(Rule=name)["Targets"] == [
        {"Id": "1", "Arn": url, "InputPath": "$.detail"}
    ]
    assert events.list_rule_names_by_target(TargetArn=url)["RuleNames"] == [name]
    assert [r["Name"] for r in events.list_rules(NamePrefix=name)["Rules"]] == [name]
    events.disable_rule(Name=name)
    assert events.describe_rule(Name=name)["State"] == "DISABLED"
    with refusal("ValidationException.*has targets"):
        events.delete_rule(Name=name)
    assert events.remove_targets(Rule=name, Ids=["1", "2"])["FailedEntries"][0]["TargetId"] == "2"
    events.delete_rule(Name=name)
    events.delete_rule(Name=name)
    with refusal("ResourceNotFoundException"):
        events.describe_rule(Name=name)


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, "ValidationException"),
        ({"EventPattern": "{"}, "InvalidEventPatternException"),
        ({"EventPattern": '{"a": "b"}'}, "InvalidEventPatternException"),
        ({"ScheduleExpression": "rate(5 minute)"}, "ValidationException"),
        ({"ScheduleExpression": "at(2030-01-01T00:00:00)"}, "ValidationException"),
        ({"ScheduleExpression": "cron(* * * * * *)"}, "ValidationException"),
        ({"EventPattern": '{"a": ["b"]}', "EventBusName": "nowhere"}, "ResourceNotFoundException"),
    ],
)
def test_rules_that_can_not_be_are_refused(
    aws: AwsServer, name: str, given: dict[str, str], code: str
) -> None:
    with refusal(code):
        aws.client("events").put_rule(Name=name, **given)


@pytest.mark.parametrize(
    "target",
    [
        {"Arn": "arn:aws:lambda:us-east-1:000000000000:function:f"},
        {"Arn": "ftp://example.com/"},
        {"Arn": "http://user:password@example.com/"},
        {"Arn": "http://"},
        {"Arn": "http://example.com/a b"},
        {"Arn": CLUSTER},
        {"Arn": PREFIX.format("ecs", "cluster/x").replace("us-east-1", "eu-west-1")},
        {"Arn": CLUSTER, "EcsParameters": {"TaskDefinitionArn": "job", "TaskCount": 11}},
        {"Arn": CLUSTER, "EcsParameters": {"TaskDefinitionArn": "job"}, "Input": "[]"},
        {
            "Arn": CLUSTER,
            "EcsParameters": {
                "TaskDefinitionArn": "job",
                "Tags": [{"Key": "hutch:concurrencyPolicy", "Value": "Never"}],
            },
        },
        {"Arn": "http://example.com/", "Input": "1", "InputPath": "$"},
        {"Arn": "http://example.com/", "InputPath": "detail"},
        {"Arn": "http://example.com/", "InputTransformer": {"InputTemplate": "<gone>"}},
        {"Arn": "http://example.com/", "HttpParameters": {"HeaderParameters": {"a": "b\r\nc: d"}}},
        {"Arn": "http://example.com/", "HttpParameters": {"HeaderParameters": {"Host": "x"}}},
        {"Arn": "http://example.com/", "DeadLetterConfig": {"Arn": "arn:aws:sqs:us-east-1:000000000000:q"}},
    ],
)
def test_targets_that_can_not_be_served_are_refused(
    aws: AwsServer, name: str, target: dict[str, Any]
) -> None:
    events = aws.client("events")
    events.put_rule(Name=name, EventPattern='{"source": ["x"]}')
    with refusal("Exception"):
        events.put_targets(Rule=name, Targets=[{"Id": "1", **target}])
    assert events.list_targets_by_rule(Rule=name)["Targets"] == []


def test_an_event_reaches_a_url_as_the_target_wants_it(aws: AwsServer, hook: Hook, name: str) -> None:
    events = put_rule(
        aws,
        name,
        {"source": [name], "detail": {"n": [{"numeric": [">", 1]}]}},
        {
            "Arn": hook.url,
            "HttpParameters": {"HeaderParameters": {"X-Who": "me"}, "QueryStringParameters": {"q": "a b"}},
        },
        {"Arn": hook.url + "/part", "InputPath": "$.detail"},
        {
            "Arn": hook.url + "/text",
            "InputTransformer": {
                "InputPathsMap": {"n": "$.detail.n"},
                "InputTemplate": '{"is": "<n>!", "by": <aws.events.rule-name>}',
            },
        },
        {"Arn": hook.url + "/constant", "Input": '{"always": "this"}'},
    )
    entry = {"Source": name, "DetailType": "t", "Resources": ["r"]}
    answer = events.put_events(
        Entries=[
            {**entry, "Detail": '{"n": 1}'},
            {**entry, "Detail": '{"n": 2}'},
            {**entry, "Detail": "["},
            {"Source": "aws.x", "DetailType": "t", "Detail": "{}"},
        ]
    )
    assert answer["FailedEntryCount"] == 2
    assert [e.get("ErrorCode") for e in answer["Entries"]] == [
        None,
        None,
        "MalformedDetail",
        "NotAuthorizedForSource",
    ]
    calls = {path: (headers, body) for path, headers, body in (hook.next() for _ in range(4))}
    headers, event = calls["/hook?q=a%20b"]
    assert headers["x-who"] == "me" and headers["content-type"].startswith("application/json")
    assert event["id"] == answer["Entries"][1]["EventId"]
    assert (event["source"], event["detail-type"], event["detail"], event["resources"]) == (
        name,
        "t",
        {"n": 2},
        ["r"],
    )
    assert (event["account"], event["region"], event["version"]) == ("000000000000", "us-east-1", "0")
    assert calls["/hook/part"][1] == {"n": 2}
    assert calls["/hook/text"][1] == {"is": "2!", "by": name}
    assert calls["/hook/constant"][1] == {"always": "this"}


def test_a_target_that_fails_is_tried_again_and_one_that_refuses_is_given_up(
    aws: AwsServer, hook: Hook, name: str
) -> None:
    events = put_rule(aws, name, {"source": [name]}, {"Arn": hook.url})
    hook.answers = [503]
    events.put_events(Entries=[{"Source": name, "DetailType": "t", "Detail": "{}"}])
    first, second = hook.next(), hook.next()
    assert first[1]["x-hutch-delivery"] == second[1]["x-hutch-delivery"], (
        "the same delivery, told apart by its id"
    )
    hook.answers = [302]
    events.put_events(Entries=[{"Source": name, "DetailType": "t", "Detail": "{}"}])
    hook.next()
    with native(aws) as client:
        runs = until(aws, lambda: (r := client.native("GET", f"/runs/rule/default/{name}"))["failed"] and r)
    assert runs["failed"] == 1 and "redirects are not followed" in runs["last_error"]
    assert hook.calls.empty()


def test_addresses_of_the_machine_itself_are_not_called(aws: AwsServer, name: str) -> None:
    events = put_rule(aws, name, {"source": [name]}, {"Arn": "http://169.254.169.254/latest/meta-data"})
    events.put_events(Entries=[{"Source": name, "DetailType": "t", "Detail": "{}"}])
    with native(aws) as client:
        runs = until(aws, lambda: (r := client.native("GET", f"/runs/rule/default/{name}"))["failed"] and r)
    assert "calls for nobody" in runs["last_error"]


def test_a_log_group_gets_events(aws: AwsServer, name: str) -> None:
    group = PREFIX.format("logs", f"log-group:/{name}")
    aws.client("logs").create_log_group(logGroupName=f"/{name}")
    events = put_rule(aws, name, {"source": [name]}, {"Arn": group, "InputPath": "$.detail"})
    events.put_events(Entries=[{"Source": name, "DetailType": "t", "Detail": '{"a": 1}'}])
    logs = aws.client("logs")
    found = until(aws, lambda: logs.filter_log_events(logGroupName=f"/{name}")["events"])
    assert [json.loads(e["message"]) for e in found] == [{"a": 1}]


def test_another_bus_gets_events_of_its_own_only(aws: AwsServer, hook: Hook, name: str) -> None:
    events = aws.client("events")
    arn = events.create_event_bus(Name=name)["EventBusArn"]
    with refusal("ResourceAlreadyExistsException"):
        events.create_event_bus(Name=name)
    assert name in [b["Name"] for b in events.list_event_buses(NamePrefix=name)["EventBuses"]]
    events.put_rule(Name=name, EventBusName=name, EventPattern='{"detail": {"a": [1]}}')
    events.put_targets(Rule=name, EventBusName=name, Targets=[{"Id": "1", "Arn": hook.url}])
    put_rule(aws, name, {"source": [name + "-forwarded"]}, {"Arn": arn})
    events.put_events(Entries=[{"Source": name, "DetailType": "t", "Detail": '{"a": 1}'}])
    events.put_events(
        Entries=[{"Source": name, "DetailType": "t", "Detail": '{"a": 1}', "EventBusName": arn}]
    )
    assert hook.next()[2]["source"] == name
    events.put_events(Entries=[{"Source": name + "-forwarded", "DetailType": "t", "Detail": '{"a": 1}'}])
    assert hook.next()[2]["source"] == name + "-forwarded"
    assert hook.calls.empty()
    with refusal("ValidationException.*has rules"):
        events.delete_event_bus(Name=name)


def test_event_pattern(aws: AwsServer) -> None:
    events = aws.client("events")
    event = {
        "id": "1",
        "account": "0",
        "source": "s",
        "time": "2030-01-01T00:00:00Z",
        "region": "r",
        "resources": [],
        "detail-type": "t",
        "detail": {"a": 1},
    }
    assert (
        events.test_event_pattern(EventPattern='{"source": ["s"]}', Event=json.dumps(event))["Result"] is True
    )
    assert (
        events.test_event_pattern(EventPattern='{"source": ["x"]}', Event=json.dumps(event))["Result"]
        is False
    )
    with refusal("InvalidEventPatternException"):
        events.test_event_pattern(EventPattern="{}", Event=json.dumps(event))
    with refusal("ValidationException"):
        events.test_event_pattern(EventPattern='{"source": ["s"]}', Event="{}")


def test_every_change_of_state_of_a_task_is_an_event(
    aws: AwsServer, hook: Hook, name: str, definition: str
) -> None:
    put_rule(
        aws,
        name,
        {"source": ["aws.ecs"], "detail-type": ["ECS Task State Change"], "detail": {"group": [name]}},
        {"Arn": hook.url},
    )
    ecs = aws.client("ecs")
    task = ecs.run_task(
        taskDefinition=definition, launchType="FARGATE", group=name, tags=[{"key": "k", "value": "v"}]
    )
    arn = task["tasks"][0]["taskArn"]
    told = sorted((hook.next()[2] for _ in range(2)), key=lambda e: e["detail"]["version"])
    assert [e["detail"]["lastStatus"] for e in told] == ["PROVISIONING", "PENDING"]
    assert [e["detail"]["version"] for e in told] == [1, 2]
    assert all(e["resources"] == [arn] and e["source"] == "aws.ecs" for e in told)
    detail = told[1]["detail"]
    shown = ecs.describe_tasks(tasks=[arn], include=["TAGS"])["tasks"][0]
    assert detail["createdAt"] == shown["createdAt"].astimezone(UTC).isoformat(
        timespec="milliseconds"
    ).replace("+00:00", "Z")
    for member in (
        "taskArn",
        "clusterArn",
        "taskDefinitionArn",
        "desiredStatus",
        "cpu",
        "memory",
        "group",
        "launchType",
        "attachments",
        "overrides",
        "tags",
        "version",
    ):
        assert detail[member] == shown[member], member
    assert len({e["id"] for e in told}) == 2
    ecs.stop_task(task=arn, reason="enough")
    asked = hook.next()[2]["detail"]
    assert (asked["desiredStatus"], asked["lastStatus"], asked["version"]) == ("STOPPED", "PENDING", 3)
    assert (asked["stopCode"], asked["stoppedReason"]) == ("UserInitiated", "enough")
    with native(aws) as client:
        log = client.native("GET", "/events", {"task": arn.rpartition("/")[2]})["events"]
    assert [(e["id"], e["detail"]["version"]) for e in log][:2] == [
        (e["id"], e["detail"]["version"]) for e in told
    ]
    assert len(log) == 3


def test_container_instances_tell_of_themselves(
    aws: AwsServer, hook: Hook, name: str, definition: str
) -> None:
    events = put_rule(aws, name, {"detail-type": ["ECS Container Instance State Change"]}, {"Arn": hook.url})
    ecs = aws.client("ecs")
    arn = ecs.list_container_instances()["containerInstanceArns"][0]
    ecs.update_container_instances_state(containerInstances=[arn], status="DRAINING")
    detail = hook.next()[2]["detail"]
    assert (detail["containerInstanceArn"], detail["status"], detail["clusterArn"]) == (
        arn,
        "DRAINING",
        CLUSTER,
    )
    ecs.update_container_instances_state(containerInstances=[arn], status="ACTIVE")
    later = hook.next()[2]["detail"]
    assert later["status"] == "ACTIVE" and later["version"] > detail["version"]
    events.remove_targets(Rule=name, Ids=["0"])


def test_following_the_log_misses_nothing(aws: AwsServer, name: str) -> None:
    events = aws.client("events")
    with native(aws) as client:
        at = client.native("GET", "/events", {"limit": "0"})["next"]
        for n in range(30):
            events.put_events(Entries=[{"Source": name, "DetailType": "t", "Detail": json.dumps({"n": n})}])
        seen: list[int] = []
        while len(seen) < 30:
            answer = client.native("GET", "/events", {"after": str(at)})
            assert answer["next"] > at
            at = answer["next"]
            seen += [e["detail"]["n"] for e in answer["events"] if e["source"] == name]
        assert seen == list(range(30))


def test_a_rule_runs_tasks(aws: AwsServer, name: str, definition: str) -> None:
    target = {
        "Arn": CLUSTER,
        "RoleArn": ROLE,
        "InputTransformer": {
            "InputPathsMap": {"who": "$.detail.who"},
            "InputTemplate": '{"containerOverrides": [{"name": "main", "environment": [{"name": "WHO", "value": <who>}]}]}',
        },
        "EcsParameters": {
            "TaskDefinitionArn": definition,
            "LaunchType": "FARGATE",
            "TaskCount": 2,
            "Tags": [{"Key": "a", "Value": "b"}],
            "NetworkConfiguration": {
                "awsvpcConfiguration": {"Subnets": [_subnet(aws)], "AssignPublicIp": "ENABLED"}
            },
        },
    }
    events = put_rule(aws, name, {"source": [name]}, target)
    assert events.list_targets_by_rule(Rule=name)["Targets"][0]["EcsParameters"] == target["EcsParameters"]
    events.put_events(Entries=[{"Source": name, "DetailType": "t", "Detail": '{"who": "me"}'}])
    ecs = aws.client("ecs")
    arns = until(aws, lambda: ecs.list_tasks(startedBy=f"events-rule/{name}")["taskArns"])
    tasks = ecs.describe_tasks(tasks=arns, include=["TAGS"])["tasks"]
    assert len(tasks) == 2 and tasks[0]["tags"] == [{"key": "a", "value": "b"}]
    assert tasks[0]["overrides"]["containerOverrides"][0]["environment"] == [{"name": "WHO", "value": "me"}]


def _subnet(aws: AwsServer) -> str:
    return str(aws.client("ec2").describe_subnets()["Subnets"][0]["SubnetId"])


# -- schedules


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


# -- permissions


def someone(aws: AwsServer, name: str, *allowed: tuple[str, str]) -> dict[str, str]:
    """The keys of a new user who may do these things."""
    iam = aws.client("iam")
    iam.create_user(UserName=name)
    statements = [{"Effect": "Allow", "Action": a, "Resource": r} for a, r in allowed]
    policy = json.dumps({"Version": "2012-10-17", "Statement": statements})
    iam.put_user_policy(UserName=name, PolicyName="p", PolicyDocument=policy)
    key = iam.create_access_key(UserName=name)["AccessKey"]
    return {"aws_access_key_id": key["AccessKeyId"], "aws_secret_access_key": key["SecretAccessKey"]}


def test_who_lets_a_rule_run_tasks_must_be_allowed_to_run_them(
    aws: AwsServer, name: str, definition: str
) -> None:
    aws.client("events").put_rule(Name=name, EventPattern='{"source": ["x"]}')
    own = ("events:PutTargets", PREFIX.format("events", f"rule/{name}"))
    passing, running = ("iam:PassRole", ROLE), ("ecs:RunTask", definition)
    ecs = {"TaskDefinitionArn": definition}
    target = {"Id": "1", "Arn": CLUSTER, "RoleArn": ROLE, "EcsParameters": ecs}
    for number, allowed in enumerate([(own,), (own, passing), (own, running), (passing, running)]):
        client = aws.http.client("events", **someone(aws, f"{name}-{number}", *allowed))
        with refusal("AccessDenied"):
            client.put_targets(Rule=name, Targets=[target])
    client = aws.http.client("events", **someone(aws, f"{name}-all", own, passing, running))
    client.put_targets(Rule=name, Targets=[target])
    with refusal("AccessDenied"):
        overrides = '{"taskRoleArn": "arn:aws:iam::000000000000:role/admin"}'
        client.put_targets(Rule=name, Targets=[{**target, "Input": overrides}])
    with refusal("AccessDenied"):
        client.put_targets(Rule=name + "-other", Targets=[target])


def test_who_makes_a_schedule_must_be_allowed_to_run_its_tasks(
    aws: AwsServer, name: str, definition: str
) -> None:
    own = ("scheduler:CreateSchedule", PREFIX.format("scheduler", f"schedule/default/{name}"))
    passing, running = ("iam:PassRole", ROLE), ("ecs:RunTask", definition)
    given = {
        "Name": name,
        "ScheduleExpression": "rate(1 day)",
        "FlexibleTimeWindow": NO_WINDOW,
        "State": "DISABLED",
        "Target": {"Arn": CLUSTER, "RoleArn": ROLE, "EcsParameters": {"TaskDefinitionArn": definition}},
    }
    for number, allowed in enumerate([(own,), (own, passing), (own, running), (passing, running)]):
        client = aws.http.client("scheduler", **someone(aws, f"{name}-{number}", *allowed))
        with refusal("AccessDenied"):
            client.create_schedule(**given)
    aws.http.client("scheduler", **someone(aws, f"{name}-all", own, passing, running)).create_schedule(
        **given
    )


def test_an_event_does_not_choose_the_role_of_a_task(aws: AwsServer, name: str, definition: str) -> None:
    target = {"Arn": CLUSTER, "InputPath": "$.detail", "EcsParameters": {"TaskDefinitionArn": definition}}
    events = put_rule(aws, name, {"source": [name]}, target)
    detail = '{"taskRoleArn": "arn:aws:iam::000000000000:role/admin"}'
    events.put_events(Entries=[{"Source": name, "DetailType": "t", "Detail": detail}])
    with native(aws) as client:
        runs = until(aws, lambda: (r := client.native("GET", f"/runs/rule/default/{name}"))["failed"] and r)
    assert "only a constant Input" in runs["last_error"]
    assert aws.client("ecs").list_tasks(startedBy=f"events-rule/{name}")["taskArns"] == []
