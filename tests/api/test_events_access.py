"""Who may let rules and schedules run tasks."""

import json

from tests.api.support.aws import AwsServer
from tests.api.support.events import CLUSTER, NO_WINDOW, PREFIX, ROLE, native, put_rule, refusal, until


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
