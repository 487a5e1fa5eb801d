"""ECS over HTTP, by boto3: container instances, attributes, deletions that end, and AWS's answer to what is wrong."""

import http.client
import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError
from msgspec.structs import replace
from tests.api.support.aws import HOST_ID, AwsServer, until_changed
from tests.api.support.signed import signed_headers

from hutch.model.record import Cause
from hutch.store import tables
from hutch.store.contract import Tx

TARGET = "AmazonEC2ContainerServiceV20141113"
PREFIX = "arn:aws:ecs:us-east-1:000000000000"
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def ecs(aws: AwsServer) -> Any:
    return aws.client("ecs")


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    with pytest.raises(ClientError) as refused:
        call()
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400
    error = refused.value.response["Error"]
    return error["Code"], error["Message"]


def register(ecs: Any, family: str, launch_type: str = "FARGATE") -> str:
    mode = "awsvpc" if launch_type == "FARGATE" else "bridge"
    answer = ecs.register_task_definition(
        family=family,
        networkMode=mode,
        requiresCompatibilities=[launch_type],
        cpu="256",
        memory="512",
        containerDefinitions=[{"name": "a", "image": "x"}],
    )
    return str(answer["taskDefinition"]["taskDefinitionArn"])


@pytest.fixture
def cluster(aws: AwsServer, ecs: Any) -> str:
    """A cluster of its own, with the host in it."""
    name = f"c{next(_NUMBERS)}"
    ecs.create_cluster(clusterName=name)
    seen = -1
    while not ecs.list_container_instances(cluster=name)["containerInstanceArns"]:
        seen = until_changed(aws, seen)
    return name


def the_instance(ecs: Any, cluster: str) -> str:
    (arn,) = ecs.list_container_instances(cluster=cluster)["containerInstanceArns"]
    return str(arn)


def test_a_deregistered_instance_stays_away_until_it_is_registered(
    aws: AwsServer, ecs: Any, cluster: str
) -> None:
    arn = the_instance(ecs, cluster)
    gone = ecs.deregister_container_instance(cluster=cluster, containerInstance=arn)["containerInstance"]
    assert (gone["containerInstanceArn"], gone["status"]) == (arn, "INACTIVE")
    assert ecs.list_container_instances(cluster=cluster)["containerInstanceArns"] == []
    shown = ecs.describe_container_instances(cluster=cluster, containerInstances=[arn])
    assert shown["containerInstances"][0]["status"] == "INACTIVE"
    assert ecs.describe_clusters(clusters=[cluster])["clusters"][0]["registeredContainerInstancesCount"] == 0
    drained = ecs.update_container_instances_state(
        cluster=cluster, containerInstances=[arn], status="DRAINING"
    )
    assert drained["failures"] == [{"arn": arn, "reason": "INACTIVE"}]
    aws.connect_host()
    assert ecs.list_container_instances(cluster=cluster)["containerInstanceArns"] == []
    register(ecs, "on-ec2", "EC2")
    started = ecs.start_task(cluster=cluster, taskDefinition="on-ec2", containerInstances=[arn])
    assert started["failures"] == [{"arn": arn, "reason": "INACTIVE"}]
    back = ecs.register_container_instance(
        cluster=cluster,
        containerInstanceArn=arn,
        attributes=[{"name": "rack", "value": "7"}],
        tags=[{"key": "a", "value": "b"}],
    )["containerInstance"]
    assert (back["containerInstanceArn"], back["status"]) == (arn, "ACTIVE")
    assert {"name": "rack", "value": "7"} in back["attributes"] and back["tags"] == [
        {"key": "a", "value": "b"}
    ]


def test_an_instance_is_registered_by_its_host(ecs: Any, cluster: str) -> None:
    document = json.dumps({"instanceId": HOST_ID, "region": "us-east-1"})
    again = ecs.register_container_instance(cluster=cluster, instanceIdentityDocument=document)
    assert again["containerInstance"]["containerInstanceArn"] == the_instance(ecs, cluster)
    unknown = json.dumps({"instanceId": "i-who"})
    code, words = refusal(
        lambda: ecs.register_container_instance(cluster=cluster, instanceIdentityDocument=unknown)
    )
    assert code == "ClientException" and "i-who" in words
    assert refusal(lambda: ecs.register_container_instance(cluster=cluster))[0] == "ClientException"
    code, _ = refusal(lambda: ecs.register_container_instance(cluster=cluster, instanceIdentityDocument="{"))
    assert code == "InvalidParameterException"


def test_deregistering_an_instance_with_tasks_needs_force(ecs: Any, cluster: str) -> None:
    arn = the_instance(ecs, cluster)
    register(ecs, "on-ec2", "EC2")
    task = ecs.run_task(cluster=cluster, taskDefinition="on-ec2", launchType="EC2")["tasks"][0]
    assert task["containerInstanceArn"] == arn
    assert refusal(lambda: ecs.deregister_container_instance(cluster=cluster, containerInstance=arn)) == (
        "InvalidParameterException",
        "Found running tasks on the instance.",
    )
    ecs.deregister_container_instance(cluster=cluster, containerInstance=arn, force=True)
    stopping = ecs.describe_tasks(cluster=cluster, tasks=[task["taskArn"]])["tasks"][0]
    assert stopping["desiredStatus"] == "STOPPED"
    assert stopping["stoppedReason"] == "Container instance deregistration forced by user"


def test_attributes(ecs: Any, cluster: str) -> None:
    arn = the_instance(ecs, cluster)
    short = arn.rpartition("/")[2]

    def listed(**how: Any) -> list[tuple[str, str]]:
        pages = ecs.get_paginator("list_attributes").paginate(
            cluster=cluster, targetType="container-instance", **how
        )
        return [(a["name"], a.get("value", "")) for p in pages for a in p["attributes"]]

    put = ecs.put_attributes(
        cluster=cluster,
        attributes=[
            {"name": "stack", "value": "prod", "targetType": "container-instance", "targetId": short},
            {"name": "bare", "targetId": arn},
        ],
    )["attributes"]
    assert put[0] == {
        "name": "stack",
        "value": "prod",
        "targetType": "container-instance",
        "targetId": arn,
    }
    assert listed(attributeName="stack") == listed(attributeName="stack", attributeValue="prod")
    assert listed(attributeName="stack", attributeValue="test") == []
    assert {("stack", "prod"), ("bare", ""), ("ecs.os-type", "linux")} <= set(listed())
    assert listed(PaginationConfig={"PageSize": 1}) == listed()
    found = ecs.list_container_instances(cluster=cluster, filter="attribute:stack == prod")
    assert found["containerInstanceArns"] == [arn]
    ecs.delete_attributes(cluster=cluster, attributes=[{"name": "stack", "targetId": arn}])
    assert listed(attributeName="stack") == []
    code, _ = refusal(
        lambda: ecs.put_attributes(cluster=cluster, attributes=[{"name": "a", "targetId": "0" * 32}])
    )
    assert code == "TargetNotFoundException"

    def put_as(name: str, value: str = "v") -> Any:
        one = {"name": name, "value": value, "targetId": arn}
        return ecs.put_attributes(cluster=cluster, attributes=[one])

    for name, value in (("a b", "v"), ("a", " v"), ("a", "v" * 129)):
        assert refusal(lambda n=name, v=value: put_as(n, v))[0] == "InvalidParameterException"  # type: ignore[misc]
    while True:
        before = {n for n, _ in listed()}
        if len(before - {"ecs.os-type"}) > 40:
            pytest.fail("there is no limit")
        try:
            put_as(f"more-{len(before)}")
        except ClientError as refused:
            assert refused.response["Error"]["Code"] == "AttributeLimitExceededException"
            break
    put_as("bare", "changed")


def test_an_instance_tells_its_version_and_its_health(ecs: Any, cluster: str) -> None:
    arn = the_instance(ecs, cluster)

    def described(**how: Any) -> Any:
        return ecs.describe_container_instances(cluster=cluster, containerInstances=[arn], **how)[
            "containerInstances"
        ][0]

    before = described()
    assert "healthStatus" not in before
    ecs.update_container_instances_state(cluster=cluster, containerInstances=[arn], status="DRAINING")
    after = described(include=["CONTAINER_INSTANCE_HEALTH"])
    assert after["version"] > before["version"]
    assert after["healthStatus"]["overallStatus"] == "OK"
    missing = ecs.start_task(
        cluster=cluster, taskDefinition=register(ecs, "on-none", "EC2"), containerInstances=["0" * 32]
    )
    assert missing["failures"] == [
        {"arn": f"{PREFIX}:container-instance/{cluster}/{'0' * 32}", "reason": "MISSING"}
    ]


def test_a_deleted_task_definition_goes_when_its_last_task_has_stopped(aws: AwsServer, ecs: Any) -> None:
    used, unused = register(ecs, "deleted"), register(ecs, "deleted")
    task = ecs.run_task(taskDefinition=used, launchType="FARGATE")["tasks"][0]["taskArn"]
    for arn in (used, unused):
        ecs.deregister_task_definition(taskDefinition=arn)
    answer = ecs.delete_task_definitions(taskDefinitions=[used, unused, "deleted:99"])
    assert [d["status"] for d in answer["taskDefinitions"]] == ["DELETE_IN_PROGRESS"] * 2
    assert [(f["arn"], f["reason"].partition(". ")[0]) for f in answer["failures"]] == [
        (f"{PREFIX}:task-definition/deleted:99", "The specified task definition does not exist")
    ]
    assert until_gone(aws, ecs, unused)
    assert (
        ecs.describe_task_definition(taskDefinition=used)["taskDefinition"]["status"] == "DELETE_IN_PROGRESS"
    )
    assert refusal(lambda: ecs.run_task(taskDefinition=used, launchType="FARGATE"))[0] == "ClientException"
    assert "deleted" in ecs.list_task_definition_families(status="INACTIVE")["families"]
    finish(aws, task.rpartition("/")[2])
    assert until_gone(aws, ecs, used)
    assert "deleted" not in ecs.list_task_definition_families(status="ALL")["families"]
    assert register(ecs, "deleted").endswith(":3"), "revisions are never used again"


def until_gone(aws: AwsServer, ecs: Any, definition: str) -> bool:
    """Waits until a revision is not there any more."""
    seen = -1
    while True:
        newest = aws.store.last_seq() if seen < 0 else seen
        try:
            ecs.describe_task_definition(taskDefinition=definition)
        except ClientError as error:
            return error.response["Error"]["Message"] == "Unable to describe task definition."
        seen = until_changed(aws, newest)


def finish(aws: AwsServer, task_id: str) -> None:
    """As if the host had reported the end of a task."""

    def work(tx: Tx) -> None:
        (task,) = tx.scan(tables.TASKS, task_id, index="by_id")
        tx.put(tables.TASKS, replace(task, last_status="STOPPED", desired_status="STOPPED", stopped_at=1.0))

    aws.run(aws.store.write(Cause(id="test", actor="test", action="finish"), work))


def test_another_request_with_the_same_token_names_the_tasks_of_the_first(ecs: Any) -> None:
    register(ecs, "token")
    for count in (0, 11, 2**31 - 1):
        code, words = refusal(
            lambda c=count: ecs.run_task(taskDefinition="token", launchType="FARGATE", count=c)
        )
        assert code == "InvalidParameterException" and "between 1 and 10" in words
    first = ecs.run_task(taskDefinition="token", launchType="FARGATE", clientToken="t")["tasks"][0]["taskArn"]
    with pytest.raises(ecs.exceptions.ConflictException) as refused:
        ecs.run_task(taskDefinition="token", launchType="FARGATE", clientToken="t", count=2)
    assert refused.value.response["resourceIds"] == [first]


def test_a_cap_of_cpu_is_asked_for_by_a_tag_of_the_task_or_its_definition(aws: AwsServer, ecs: Any) -> None:
    off, on = ([{"key": "hutch:cpuBurst", "value": value}] for value in ("off", "on"))

    def is_capped(definition: str, tags: list[dict[str, str]]) -> bool:
        (task,) = ecs.run_task(taskDefinition=definition, launchType="FARGATE", tags=tags)["tasks"]
        with aws.store.read() as reader:
            return reader.get(tables.TASKS, "default", task["taskArn"].rpartition("/")[2]).cpu_capped

    plain, tagged = register(ecs, "plain"), register(ecs, "tagged")
    ecs.tag_resource(resourceArn=tagged, tags=off)
    assert [is_capped(plain, []), is_capped(plain, off)] == [False, True]
    assert [is_capped(tagged, []), is_capped(tagged, on)] == [True, False]
    bad = [{"key": "hutch:cpuBurst", "value": "maybe"}]
    code, message = refusal(lambda: ecs.run_task(taskDefinition=plain, launchType="FARGATE", tags=bad))
    assert code == "InvalidParameterException" and "neither on nor off" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"family": "a b"}, "Family"),
        ({"family": "x" * 256}, "Family"),
        ({"networkMode": "carrier-pigeon"}, "networkMode"),
        ({"tags": [{"key": "aws:x", "value": "y"}]}, "aws:"),
        ({"tags": [{"key": f"k{i}", "value": ""} for i in range(51)]}, "'tags'"),
        ({"pidMode": "host"}, "pidMode"),
        ({"proxyConfiguration": {"containerName": "a"}}, "proxyConfiguration"),
        ({"containerDefinitions": [{"name": "a", "image": "x", "links": ["b"]}]}, "links"),
        ({"containerDefinitions": [{"name": "a", "image": "x" * 1_000_000}]}, ""),
    ],
)
def test_every_refusal_of_a_task_definition_is_a_client_exception(
    aws: AwsServer, change: dict[str, Any], words: str
) -> None:
    given = {
        "family": "wrong",
        "networkMode": "awsvpc",
        "requiresCompatibilities": ["FARGATE"],
        "cpu": "256",
        "memory": "512",
        "containerDefinitions": [{"name": "a", "image": "x"}],
        **change,
    }
    code, message = refusal(lambda: aws.client("ecs", checks=False).register_task_definition(**given))
    assert code == "ClientException" and words in message and len(message) < 2000


@pytest.mark.parametrize(
    ("call", "given", "code"),
    [
        ("create_cluster", {"clusterName": "a/b"}, "InvalidParameterException"),
        ("create_cluster", {"clusterName": "a\x1b[31m"}, "InvalidParameterException"),
        ("create_cluster", {"clusterName": "x" * 1_000_000}, "InvalidParameterException"),
        ("delete_cluster", {"cluster": "arn:aws:ecs:us-east-1:0:cluster/a b"}, "InvalidParameterException"),
        ("delete_cluster", {"cluster": "nope"}, "ClusterNotFoundException"),
        ("describe_tasks", {"tasks": []}, "InvalidParameterException"),
        ("describe_tasks", {"tasks": ["x"] * 101}, "InvalidParameterException"),
        ("describe_tasks", {"tasks": ["arn:aws:ecs:x"]}, "InvalidParameterException"),
        ("list_tasks", {"maxResults": 0}, "InvalidParameterException"),
        ("list_tasks", {"nextToken": "made up"}, "InvalidParameterException"),
        ("list_clusters", {"maxResults": 101}, "InvalidParameterException"),
        ("run_task", {}, "InvalidParameterException"),
        ("stop_task", {"task": "0" * 32}, "InvalidParameterException"),
        ("stop_task", {"task": "0" * 32, "reason": "x" * 1025}, "InvalidParameterException"),
        ("tag_resource", {"resourceArn": "arn:aws:ecs:us-east-1:0:cluster/no", "tags": []}, None),
        ("put_account_setting", {"name": "containerInsights", "value": "x"}, "InvalidParameterException"),
        (
            "list_attributes",
            {"targetType": "container-instance", "cluster": "no"},
            "ClusterNotFoundException",
        ),
    ],
)
def test_error_codes(aws: AwsServer, call: str, given: dict[str, Any], code: str | None) -> None:
    found, message = refusal(lambda: getattr(aws.client("ecs", checks=False), call)(**given))
    assert found == (code or "ClusterNotFoundException")
    assert message and len(message) < 2000


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", "application/x-amz-json-1.1", 400, "SerializationException"),
        (b"[]", "application/x-amz-json-1.1", 400, "SerializationException"),
        (b'{"clusterName": 7}', "application/x-amz-json-1.1", 400, "SerializationException"),
        (b'{"clusterName": "\\ud800"}', "application/x-amz-json-1.1", 400, "SerializationException"),
        (b'{"clusterName": "\xff"}', "application/x-amz-json-1.1", 400, "SerializationException"),
        (b'{"color": "red"}', "application/x-amz-json-1.1", 400, "InvalidParameterException"),
        (b"[" * 100_000, "application/x-amz-json-1.1", 400, "SerializationException"),
        (b"{}", "text/plain", 415, "SerializationException"),
        (b"x" * (2 * 1024 * 1024 + 1), "application/x-amz-json-1.1", 413, "RequestEntityTooLargeException"),
    ],
)
def test_bodies_that_are_no_input(aws: AwsServer, body: bytes, kind: str, status: int, code: str) -> None:
    headers = {"content-type": kind, "x-amz-target": f"{TARGET}.CreateCluster"}
    signed = signed_headers(aws.http, "ecs", "POST", "/", "", headers, body)
    connection = http.client.HTTPConnection("127.0.0.1", aws.http.port, timeout=20)
    try:
        connection.request("POST", "/", body=body, headers=signed)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["__type"]) == (status, code)
    finally:
        connection.close()


def test_tags_of_every_kind_of_resource(ecs: Any, cluster: str) -> None:
    definition = register(ecs, "tagged")
    task = ecs.run_task(
        taskDefinition=definition, launchType="FARGATE", tags=[{"key": "at", "value": "start"}]
    )
    arns = [
        f"{PREFIX}:cluster/{cluster}",
        definition,
        task["tasks"][0]["taskArn"],
        the_instance(ecs, cluster),
    ]
    for arn in arns:
        before = ecs.list_tags_for_resource(resourceArn=arn)["tags"]
        ecs.tag_resource(resourceArn=arn, tags=[{"key": "a", "value": "1"}, {"key": "b", "value": ""}])
        ecs.tag_resource(resourceArn=arn, tags=[{"key": "a", "value": "2"}])
        ecs.untag_resource(resourceArn=arn, tagKeys=["b", "never there"])
        assert ecs.list_tags_for_resource(resourceArn=arn)["tags"] == [*before, {"key": "a", "value": "2"}]
        assert refusal(lambda a=arn: ecs.untag_resource(resourceArn=a, tagKeys=["aws:x"]))[0] == (
            "InvalidParameterException"
        )
        many = [{"key": f"k{i}", "value": ""} for i in range(50)]
        code, words = refusal(lambda a=arn, m=many: ecs.tag_resource(resourceArn=a, tags=m))
        assert code == "InvalidParameterException" and "50 tags" in words
        assert refusal(lambda a=arn: ecs.list_tags_for_resource(resourceArn=f"{a}9"))[0] in (
            "InvalidParameterException",
            "ClusterNotFoundException",
        )
    shown = ecs.describe_clusters(clusters=[cluster], include=["TAGS"])["clusters"][0]
    assert shown["tags"] == [{"key": "a", "value": "2"}]
    unknown = f"{PREFIX}:task-definition/f:{'9' * 5000}"
    assert refusal(lambda: ecs.list_tags_for_resource(resourceArn=unknown))[0] == "InvalidParameterException"


def test_account_settings(aws: AwsServer, ecs: Any) -> None:
    """Root's settings are the account's; a user's are his own, and else the account's."""
    root = "arn:aws:iam::000000000000:root"
    user = "arn:aws:iam::000000000000:user/settings"

    def listed(**how: Any) -> dict[str, str]:
        pages = ecs.get_paginator("list_account_settings").paginate(**how)
        return {s["name"]: s["value"] for p in pages for s in p["settings"]}

    assert listed() == {} and listed(effectiveSettings=True)["taskLongArnFormat"] == "enabled"
    put = ecs.put_account_setting_default(name="containerInsights", value="enhanced")["setting"]
    assert (put["principalArn"], put["type"]) == (root, "user")
    assert listed(name="containerInsights") == {"containerInsights": "enhanced"}
    assert listed(principalArn=user) == {}
    assert listed(principalArn=user, effectiveSettings=True)["containerInsights"] == "enhanced"
    ecs.put_account_setting(name="containerInsights", value="enabled", principalArn=user)
    assert listed(name="containerInsights", value="enabled", principalArn=user)
    gone = ecs.delete_account_setting(name="containerInsights", principalArn=user)["setting"]
    assert (gone["value"], gone["principalArn"]) == ("enhanced", user)
    assert ecs.delete_account_setting(name="containerInsights")["setting"]["value"] == "disabled"
    assert listed() == {}
    first = ecs.list_account_settings(effectiveSettings=True)
    assert len(first["settings"]) == 10 and len(listed(effectiveSettings=True)) > 10
    assert len(listed(effectiveSettings=True, PaginationConfig={"PageSize": 3})) > 10
    managed = ecs.list_account_settings(effectiveSettings=True, name="guardDutyActivate")["settings"]
    assert [s["type"] for s in managed] == ["aws_managed"]
    for call in (
        lambda: ecs.put_account_setting(name="guardDutyActivate", value="on"),
        lambda: ecs.list_account_settings(maxResults=11),
    ):
        assert refusal(call)[0] == "InvalidParameterException"


def test_a_cluster_is_counted_in_every_answer(ecs: Any, cluster: str) -> None:
    answer = ecs.put_cluster_capacity_providers(
        cluster=cluster, capacityProviders=["FARGATE_SPOT"], defaultCapacityProviderStrategy=[]
    )
    assert answer["cluster"]["registeredContainerInstancesCount"] == 1
    assert ecs.create_cluster(clusterName=cluster)["cluster"]["registeredContainerInstancesCount"] == 1
    fargate, ec2 = register(ecs, "counted"), register(ecs, "counted-ec2", "EC2")
    for definition, launch_type, count in ((fargate, "FARGATE", 2), (ec2, "EC2", 1)):
        ecs.run_task(cluster=cluster, taskDefinition=definition, launchType=launch_type, count=count)
    seen = ecs.describe_clusters(clusters=[cluster], include=["STATISTICS"])["clusters"][0]
    counted = {s["name"]: int(s["value"]) for s in seen["statistics"]}
    assert counted["runningFargateTasksCount"] + counted["pendingFargateTasksCount"] == 2
    assert counted["runningEC2TasksCount"] + counted["pendingEC2TasksCount"] == 1
    assert counted["activeFargateServiceCount"] == counted["drainingEC2ServiceCount"] == 0


def test_capacity_providers_of_the_account_and_of_a_cluster(ecs: Any, cluster: str) -> None:
    def named(**how: Any) -> list[str]:
        pages, token = [], {}
        while True:
            pages.append(ecs.describe_capacity_providers(**how, **token))
            if not (following := pages[-1].get("nextToken")):
                return [p["name"] for page in pages for p in page["capacityProviders"]]
            token = {"nextToken": following}

    assert named() == named(maxResults=1) == ["FARGATE", "FARGATE_SPOT"]
    assert named(cluster=cluster) == []
    ecs.put_cluster_capacity_providers(
        cluster=cluster, capacityProviders=["FARGATE_SPOT"], defaultCapacityProviderStrategy=[]
    )
    assert named(cluster=cluster) == ["FARGATE_SPOT"]
    answer = ecs.describe_capacity_providers(capacityProviders=["mine"])
    assert answer["failures"] == [{"arn": f"{PREFIX}:capacity-provider/mine", "reason": "MISSING"}]
    two = [{"capacityProvider": "FARGATE_SPOT", "base": 1, "weight": 1}] * 2
    assert refusal(
        lambda: ecs.put_cluster_capacity_providers(
            cluster=cluster, capacityProviders=["FARGATE_SPOT"], defaultCapacityProviderStrategy=two
        )
    )[1].startswith("Only one capacity provider")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"clientToken": "x" * 65}, "clientToken"),
        ({"clientToken": "a b"}, "clientToken"),
        ({"placementStrategy": [{"type": "binpack", "field": "disk"}]}, "binpack field 'disk' is invalid"),
        ({"placementStrategy": [{"type": "spread", "field": "disk"}]}, "spread field 'disk' is invalid"),
        ({"placementStrategy": [{"type": "random"}] * 6}, "at most 5 placement strategies"),
        ({"placementStrategy": [{"field": "cpu"}]}, "needs a type"),
        ({"placementConstraints": [{}]}, "needs a type"),
        ({"placementConstraints": [{"type": "distinctInstance"}] * 11}, "at most 10 placement constraints"),
        ({"placementConstraints": [{"type": "distinctInstance", "expression": "a == b"}]}, "an expression"),
        ({"placementConstraints": [{"type": "memberOf", "expression": "attribute:a =="}]}, "expression"),
        (
            {"capacityProviderStrategy": [{"capacityProvider": "FARGATE", "base": 1}], "launchType": None},
            "weight value greater than zero",
        ),
    ],
)
def test_launches_that_say_what_no_launch_can(ecs: Any, given: dict[str, Any], words: str) -> None:
    ecs.create_cluster(clusterName="launches", capacityProviders=["FARGATE"])
    register(ecs, "launches", "EC2")
    whole = {"cluster": "launches", "taskDefinition": "launches", "launchType": "EC2", **given}
    code, message = refusal(lambda: ecs.run_task(**{k: v for k, v in whole.items() if v is not None}))
    assert code == "InvalidParameterException" and words in message


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"containerOverrides": [{"name": "a", "memory": -100_000}]}, "'memory' must be at least 6"),
        ({"containerOverrides": [{"name": "a", "memory": 600}]}, "greater than for the task"),
        ({"containerOverrides": [{"name": "a", "memory": 60, "memoryReservation": 70}]}, "greater than or"),
        ({"containerOverrides": [{"name": "a", "cpu": -1}]}, "'cpu' can't be negative"),
        ({"containerOverrides": [{"name": "a", "cpu": 300}]}, "cpu (300) is more than the task's (256)"),
        ({"containerOverrides": [{"name": "a", "environment": [{"value": "x"}]}]}, "needs a name"),
        ({"ephemeralStorage": {"sizeInGiB": -5}}, "EphemeralStorage size"),
    ],
)
def test_overrides_that_make_no_task(ecs: Any, cluster: str, overrides: dict[str, Any], words: str) -> None:
    definition = register(ecs, "overridden")
    how = {"cluster": cluster, "taskDefinition": definition, "launchType": "FARGATE"}
    code, message = refusal(lambda: ecs.run_task(**how, overrides=overrides))
    assert code == "InvalidParameterException" and words in message
    enough = {
        "cpu": "512",
        "memory": "1024",
        "containerOverrides": [{"name": "a", "cpu": 300, "memory": 600}],
    }
    assert len(ecs.run_task(**how, overrides=enough)["tasks"]) == 1


def test_a_definition_with_a_constraint_that_nobody_can_read_is_refused(ecs: Any) -> None:
    wrong = [{"type": "memberOf", "expression": "attribute:a =="}]
    code, message = refusal(
        lambda: ecs.register_task_definition(
            family="unread",
            placementConstraints=wrong,
            containerDefinitions=[{"name": "a", "image": "x", "memory": 64}],
        )
    )
    assert code == "ClientException" and "expression" in message


def test_a_task_is_placed_by_what_is_known_of_every_instance(ecs: Any, cluster: str) -> None:
    definition = register(ecs, "built-in", "EC2")
    known = "attribute:ecs.os-type == linux and attribute:ecs.cpu-architecture == x86_64"
    for expression, instances in ((known, 1), ("attribute:ecs.os-type == windows", 0)):
        found = ecs.list_container_instances(cluster=cluster, filter=expression)
        assert len(found["containerInstanceArns"]) == instances
        run = ecs.run_task(
            cluster=cluster,
            taskDefinition=definition,
            launchType="EC2",
            placementConstraints=[{"type": "memberOf", "expression": expression}],
        )
        assert (len(run["tasks"]), len(run["failures"])) == (instances, 1 - instances)


def test_a_task_keeps_to_or_away_from_a_group_of_tasks(ecs: Any, cluster: str) -> None:
    definition = register(ecs, "grouped", "EC2")

    def placed(expression: str, **how: Any) -> int:
        wanted = [{"type": "memberOf", "expression": expression}]
        run = ecs.run_task(
            cluster=cluster, taskDefinition=definition, launchType="EC2", placementConstraints=wanted, **how
        )
        return len(run["tasks"])

    assert placed("task:group == databases") == 0
    assert placed("not(task:group == databases)", group="databases") == 1
    assert placed("not(task:group == databases)") == 0
    assert placed("task:group == databases") == 1
    found = ecs.list_container_instances(cluster=cluster, filter="task:group == databases")
    assert len(found["containerInstanceArns"]) == 1


def test_a_client_token_is_used_once_in_all_clusters(ecs: Any, cluster: str) -> None:
    ecs.create_cluster(clusterName="other-token")
    definition = register(ecs, "tokens")
    how = {"taskDefinition": definition, "launchType": "FARGATE", "clientToken": f"once-{cluster}"}
    first = ecs.run_task(cluster=cluster, **how)["tasks"][0]["taskArn"]
    assert ecs.run_task(cluster=cluster, **how)["tasks"][0]["taskArn"] == first
    code, message = refusal(lambda: ecs.run_task(cluster="other-token", **how))
    assert code == "ConflictException" and "already in use with a different RunTask request" in message


def test_names_of_tasks_that_can_mean_no_task_here(ecs: Any, cluster: str) -> None:
    for name, words in (
        ("abc", "taskId length should be one of [32,36]"),
        (f"{PREFIX}:cluster/{cluster}", "Unsupported resource type: cluster"),
        (
            f"{PREFIX}:task/other/{'0' * 32}",
            f"Invalid identifier: Identifier is for cluster other. Your cluster is {cluster}",
        ),
    ):
        expected = ("InvalidParameterException", words)
        assert refusal(lambda n=name: ecs.describe_tasks(cluster=cluster, tasks=[n])) == expected  # type: ignore[misc]
        assert refusal(lambda n=name: ecs.stop_task(cluster=cluster, task=n)) == expected  # type: ignore[misc]


def test_clusters_are_listed_in_pages_and_gone_ones_said_missing(ecs: Any) -> None:
    names = {f"page-{i}" for i in range(3)}
    for name in names:
        ecs.create_cluster(clusterName=name)
    pages = list(ecs.get_paginator("list_clusters").paginate(PaginationConfig={"PageSize": 2}))
    found = [arn for p in pages for arn in p["clusterArns"]]
    assert all(len(p["clusterArns"]) <= 2 for p in pages) and len(found) == len(set(found))
    assert {f"{PREFIX}:cluster/{n}" for n in names} <= set(found)
    for name in names:
        assert ecs.delete_cluster(cluster=name)["cluster"]["status"] == "INACTIVE"
    seen = ecs.describe_clusters(clusters=["page-0", "never"])
    assert [c["status"] for c in seen["clusters"]] == ["INACTIVE"]
    assert seen["failures"] == [{"arn": f"{PREFIX}:cluster/never", "reason": "MISSING"}]
    register(ecs, "keeps")
    ecs.create_cluster(clusterName="busy")
    ecs.run_task(cluster="busy", taskDefinition="keeps", launchType="FARGATE")
    assert refusal(lambda: ecs.delete_cluster(cluster="busy"))[0] == "ClusterContainsTasksException"
    assert ecs.create_cluster(clusterName="page-0")["cluster"]["status"] == "ACTIVE"
