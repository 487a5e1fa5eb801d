"""Every protocol through real clients: boto3's requests in, answers and errors that botocore reads back."""

import asyncio
import datetime
import json
import subprocess
from pathlib import Path

import botocore.exceptions
import pytest
from botocore.config import Config
from tests.api.support.server import ApiServer
from tests.api.support.toys import Toys

AWS = Path(__file__).resolve().parents[2] / ".venv" / "bin" / "aws"


def error_of(call, **given):
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        call(**given)
    response = caught.value.response
    assert response["ResponseMetadata"]["RequestId"]
    return response


def unchecked(server: ApiServer, service: str):
    """A client that leaves validation to the server."""
    config = Config(parameter_validation=False, retries={"total_max_attempts": 1})
    return server.client(service, config=config)


def test_sts_knows_the_root_key(server: ApiServer) -> None:
    answer = server.client("sts").get_caller_identity()
    assert answer["Arn"] == "arn:aws:iam::000000000000:root"
    assert (answer["Account"], answer["UserId"]) == ("000000000000", "000000000000")
    assert len(answer["ResponseMetadata"]["RequestId"]) == 36


def test_json_in_and_out(server: ApiServer, toys: Toys) -> None:
    toys.answers["ListClusters"] = {"clusterArns": ["arn:é", "b"], "nextToken": "t"}
    answer = server.client("ecs").list_clusters(maxResults=7)
    assert answer["clusterArns"] == ["arn:é", "b"] and answer["nextToken"] == "t"
    assert toys.last == {"maxResults": 7}


@pytest.mark.parametrize(
    ("cause", "code", "status"),
    [
        ("invalid", "InvalidParameterException", 400),
        ("missing", "InvalidParameterException", 400),
        ("own-code", "ClusterNotFoundException", 400),
        ("conflict", "ConflictException", 400),
        ("later", "ServerException", 500),
        ("refused", "UnsupportedFeatureException", 400),
        ("bug", "ServerException", 500),
    ],
)
def test_json_errors(server: ApiServer, cause: str, code: str, status: int) -> None:
    response = error_of(server.client("ecs").delete_cluster, cluster=cause)
    assert response["Error"]["Code"] == code
    assert response["ResponseMetadata"]["HTTPStatusCode"] == status
    assert response["ResponseMetadata"]["HTTPHeaders"]["x-amzn-errortype"] == code
    if cause == "bug":
        assert "a bug of ours" not in response["Error"]["Message"]
        assert response["ResponseMetadata"]["RequestId"] in response["Error"]["Message"]


def test_a_conflict_names_its_resources(server: ApiServer) -> None:
    client = server.client("ecs")
    with pytest.raises(client.exceptions.ConflictException) as caught:
        client.run_task(cluster="conflict", taskDefinition="x")
    assert caught.value.response["resourceIds"] == ["arn:one", "arn:two"]


def test_operations_that_are_not_served(server: ApiServer) -> None:
    assert error_of(server.client("ecs").list_services)["Error"]["Code"] == "UnknownOperationException"
    assert error_of(server.client("iam").list_users)["Error"]["Code"] == "InvalidAction"
    assert error_of(server.client("ec2").describe_images)["Error"]["Code"] == "InvalidAction"
    response = error_of(server.client("scheduler").list_schedule_groups)
    assert response["Error"]["Code"] == "UnknownOperationException"
    assert "does not serve ListScheduleGroups yet" in response["Error"]["Message"]
    assert error_of(server.client("ssm").describe_parameters)["Error"]["Code"] == "UnknownOperationException"
    assert error_of(server.client("sqs").list_queues)["Error"]["Code"] == "UnknownOperationException"
    assert error_of(server.client("elbv2").describe_load_balancers)["Error"]["Code"] == "InvalidAction"


def test_rest_json(server: ApiServer, toys: Toys) -> None:
    scheduler = server.client("scheduler")
    moment = datetime.datetime(2026, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    toys.answers["GetSchedule"] = {"Name": "a b", "CreationDate": moment.timestamp(), "State": "ENABLED"}
    answer = scheduler.get_schedule(Name="n-1", GroupName="g.2")
    assert answer["CreationDate"] == moment and answer["Name"] == "a b"
    assert toys.last == {"Name": "n-1", "GroupName": "g.2"}

    toys.answers["ListSchedules"] = {"Schedules": []}
    scheduler.list_schedules(MaxResults=5, State="ENABLED", NamePrefix="p-")
    assert toys.last == {"MaxResults": 5, "State": "ENABLED", "NamePrefix": "p-"}

    arn = "arn:aws:scheduler:us-east-1:000000000000:schedule-group/odd-name"
    scheduler.tag_resource(ResourceArn=arn, Tags=[{"Key": "k é/+ ~", "Value": "v"}])
    assert toys.last == {"ResourceArn": arn, "Tags": [{"Key": "k é/+ ~", "Value": "v"}]}
    scheduler.untag_resource(ResourceArn=arn, TagKeys=["k é/+ ~&=", "two"])
    assert toys.last == {"ResourceArn": arn, "TagKeys": ["k é/+ ~&=", "two"]}


def test_rest_json_errors(server: ApiServer) -> None:
    scheduler = server.client("scheduler")
    with pytest.raises(scheduler.exceptions.ResourceNotFoundException) as caught:
        scheduler.get_schedule(Name="missing")
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    assert caught.value.response["Error"]["Message"] == "there is no such thing"
    response = error_of(unchecked(server, "scheduler").list_schedules, MaxResults=101)
    assert response["Error"]["Code"] == "ValidationException"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_query(server: ApiServer, toys: Toys) -> None:
    iam = server.client("iam")
    moment = datetime.datetime(2026, 2, 3, 4, 5, 6, 789000, tzinfo=datetime.UTC)
    role = {
        "Path": "/",
        "RoleName": 'r <&> "é"',
        "RoleId": "AROA1234567890123456",
        "Arn": "arn:aws:iam::000000000000:role/r",
        "CreateDate": moment.timestamp(),
        "Tags": [{"Key": "a", "Value": ""}, {"Key": "b", "Value": "\x01]]>"}],
    }
    toys.answers["GetRole"] = {"Role": role}
    answer = iam.get_role(RoleName="r")["Role"]
    assert answer["CreateDate"] == moment and answer["RoleName"] == role["RoleName"]
    assert answer["Tags"] == [{"Key": "a", "Value": ""}, {"Key": "b", "Value": "�]]>"}]

    assert "Error" not in iam.tag_role(RoleName="r", Tags=[{"Key": "k", "Value": "v=+ é"}])
    assert toys.last == {"RoleName": "r", "Tags": [{"Key": "k", "Value": "v=+ é"}]}
    iam.tag_role(RoleName="r", Tags=[])
    assert toys.last == {"RoleName": "r", "Tags": []}

    toys.answers["ListRoles"] = {"Roles": [], "IsTruncated": False}
    assert iam.list_roles(MaxItems=3)["IsTruncated"] is False
    assert toys.last == {"MaxItems": 3}


def test_query_errors(server: ApiServer) -> None:
    iam = server.client("iam")
    with pytest.raises(iam.exceptions.NoSuchEntityException) as caught:
        iam.get_role(RoleName="missing")
    assert caught.value.response["Error"] == {
        "Type": "Sender",
        "Code": "NoSuchEntity",
        "Message": "there is no such thing",
    }
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
    response = error_of(iam.get_role, RoleName="later")
    assert response["Error"]["Type"] == "Receiver"
    assert response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert error_of(unchecked(server, "iam").list_roles, MaxItems=1001)["Error"]["Code"] == "ValidationError"


def test_ec2(server: ApiServer, toys: Toys) -> None:
    ec2 = server.client("ec2")
    vpc = {
        "VpcId": "vpc-1",
        "CidrBlock": "172.31.0.0/16",
        "IsDefault": True,
        "Tags": [{"Key": "a", "Value": "b"}],
        "CidrBlockAssociationSet": [
            {"CidrBlock": "172.31.0.0/16", "CidrBlockState": {"State": "associated"}}
        ],
    }
    toys.answers["DescribeVpcs"] = {"Vpcs": [vpc, {"VpcId": "vpc-2"}]}
    answer = ec2.describe_vpcs(
        Filters=[{"Name": "isDefault", "Values": ["true", "x"]}], VpcIds=["vpc-1"], DryRun=False
    )
    assert answer["Vpcs"] == [vpc, {"VpcId": "vpc-2"}]
    assert toys.last == {
        "Filters": [{"Name": "isDefault", "Values": ["true", "x"]}],
        "VpcIds": ["vpc-1"],
        "DryRun": False,
    }
    assert len(answer["ResponseMetadata"]["RequestId"]) == 36
    toys.answers["DescribeVpcs"] = {"Vpcs": []}
    assert ec2.describe_vpcs()["Vpcs"] == []


def test_ec2_errors(server: ApiServer) -> None:
    response = error_of(unchecked(server, "ec2").describe_vpcs, MaxResults=1)
    assert response["Error"]["Code"] == "InvalidParameterValue"
    response = error_of(server.client("ec2").describe_vpcs, NextToken="x")
    assert response["Error"]["Code"] == "UnsupportedOperation"
    assert "NextToken" in response["Error"]["Message"]


def test_live_tail(server: ApiServer, toys: Toys) -> None:
    stream = server.client("logs").start_live_tail(logGroupIdentifiers=["done"])["responseStream"]
    events = list(stream)
    assert events[0]["sessionStart"]["sessionId"] == "one"
    assert events[1]["sessionUpdate"]["sessionResults"] == [{"message": "hello é", "timestamp": 5}]


@pytest.mark.parametrize(
    ("how", "code"), [("fails", "InvalidParameterException"), ("bug", "InternalFailure")]
)
def test_a_stream_that_fails_says_so(server: ApiServer, how: str, code: str) -> None:
    stream = server.client("logs").start_live_tail(logGroupIdentifiers=[how])["responseStream"]
    with pytest.raises(botocore.exceptions.EventStreamError) as caught:
        list(stream)
    assert caught.value.response["Error"]["Code"] == code


def test_a_client_that_leaves_ends_the_stream(server: ApiServer, toys: Toys) -> None:
    toys.closed.clear()
    stream = server.client("logs").start_live_tail(logGroupIdentifiers=["endless"])["responseStream"]
    assert "sessionStart" in next(iter(stream))
    stream.close()
    asyncio.run_coroutine_threadsafe(asyncio.wait_for(toys.closed.wait(), 10), server.loop).result(15)


def test_an_answer_that_the_model_does_not_have_is_a_bug(server: ApiServer, toys: Toys) -> None:
    toys.answers["ListClusters"] = {"clusterArns": "not a list"}
    assert error_of(server.client("ecs").list_clusters)["Error"]["Code"] == "ServerException"
    toys.answers["ListClusters"] = {"invented": 1}
    assert error_of(server.client("ecs").list_clusters)["Error"]["Code"] == "ServerException"


def test_the_aws_cli(server: ApiServer, toys: Toys, tmp_path: Path) -> None:
    toys.answers["ListClusters"] = {"clusterArns": ["arn:one"]}
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": server.key.access_key_id,
        "AWS_SECRET_ACCESS_KEY": server.key.secret_key,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_ENDPOINT_URL": server.url,
    }
    command = [str(AWS), "ecs", "list-clusters", "--no-paginate", "--output", "json"]
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout) == {"clusterArns": ["arn:one"]}
