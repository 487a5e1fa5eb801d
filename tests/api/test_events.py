"""EventBridge over HTTP, by boto3: rules, targets, deliveries, and the event log."""

import json
from datetime import UTC
from typing import Any

import pytest
from tests.api.support.aws import AwsServer
from tests.api.support.events import CLUSTER, PREFIX, ROLE, Hook, native, put_rule, refusal, until


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
        ({"ScheduleExpression": "rate(1 minutes)"}, "ValidationException"),
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
